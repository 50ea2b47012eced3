//! The one place that chooses between the two paths.

use crate::config::Shape;
use crate::cpu::block::Sizes;
use crate::cpu::serve::PackedBlock;
use crate::cpu::train::{Stack, Workspace};
use crate::cpu::{ops as fused, serve};
use crate::error::{Error, Result};
use crate::input::{self, Input, Position};
use crate::kv_blocks::{KvDtype, Part};
use crate::kv_pool::{Held as HeldPool, KvPool};
use crate::layers::{Block, Linear, Norm, Weights};
use crate::positions::Positions;
use crate::precision::Precision;
use crate::storage::Numbers;
use crate::weight_type::WeightType;
use crate::{cpu, tensor};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// How a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Our kernels: f32 in host memory, batch-invariant serving and fused training.
    Cpu,
    /// candle's operations: every device and type, training and serving.
    Tensor,
}

impl Path {
    /// The path of a model with such weights.
    pub(crate) fn of(weight: &Tensor) -> Self {
        if weight.device().is_cpu() && weight.dtype() == DType::F32 {
            Self::Cpu
        } else {
            Self::Tensor
        }
    }

    /// The norm over the last axis; differentiable.
    pub(crate) fn norm(self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => fused::norm(norm, x),
            Self::Tensor => tensor::norm(norm, x),
        }
    }

    /// Row `index[i]` of `first (V, D)`, or row `index[i] - V` of `second (R, D)`: `(N, D)`;
    /// differentiable.
    pub(crate) fn select_rows(
        self,
        first: &Tensor,
        second: Option<&Tensor>,
        index: &[u32],
    ) -> Result<Tensor> {
        match self {
            Self::Cpu => fused::select_rows(first, second, index),
            Self::Tensor => tensor::select_rows(first, second, index),
        }
    }

    /// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed; differentiable.
    pub(crate) fn linear_cross_entropy(
        self,
        (hidden, weight): (&Tensor, &Tensor),
        targets: &[u32],
        precision: Precision,
    ) -> Result<Tensor> {
        match self {
            Self::Cpu => fused::linear_cross_entropy((hidden, weight), targets, precision),
            Self::Tensor => tensor::linear_cross_entropy(hidden, weight, targets),
        }
    }

    /// Cross-entropy of each row, without gradients.
    pub(crate) fn token_losses(
        self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[u32],
    ) -> Result<Vec<f32>> {
        match self {
            Self::Cpu => fused::token_losses(hidden, weight, targets),
            Self::Tensor => tensor::token_losses(hidden, weight, targets),
        }
    }

    /// A norm over rows `(N, D)` for serving, without gradients.
    pub(crate) fn serve_norm(self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => {
                let out = serve::apply_norm(norm, Numbers::of(&x.contiguous()?)?.values())?;
                Ok(Tensor::from_vec(out, x.dims(), x.device())?)
            }
            Self::Tensor => tensor::serve_norm(norm, x),
        }
    }

    /// A linear layer over rows `(N, in)` for serving, `(N, out)`, without gradients.
    pub(crate) fn serve_linear(self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu => {
                let rows = x.dim(0)?;
                let x = x.contiguous()?;
                let out = serve::apply_linear(linear, Numbers::of(&x)?.values(), rows)?;
                Ok(Tensor::from_vec(out, (rows, ()), x.device())?)
            }
            Self::Tensor => tensor::linear(linear, x),
        }
    }

    /// The input embeddings of a step, `(N, D)`.
    pub(crate) fn input(
        self,
        token_embedding: &Tensor,
        position_embedding: Option<&Tensor>,
        positions: &[Position<'_>],
    ) -> Result<Input> {
        match self {
            Self::Cpu => {
                let width = token_embedding.dim(1)?;
                let table = Numbers::of(token_embedding)?;
                let token = |id, out: &mut [f32]| {
                    out.copy_from_slice(input::table_row(table.values(), id, width)?);
                    Ok(())
                };
                input::numbers(width, token, position_embedding, positions)
            }
            Self::Tensor => input::tensor(token_embedding, position_embedding, positions),
        }
    }

    /// A pool of so many blocks for a model of this shape with such weights.
    pub(crate) fn new_pool(
        self,
        shape: &Shape,
        dtype: KvDtype,
        blocks: usize,
        weight: &Tensor,
    ) -> Result<KvPool> {
        Ok(KvPool(match self {
            Self::Cpu => HeldPool::Cpu(cpu::pool::Pool::new(shape, dtype, blocks)?),
            Self::Tensor => {
                let dtype = match (dtype, weight.dtype()) {
                    (KvDtype::F16, DType::BF16) => DType::BF16,
                    (KvDtype::F16, _) => DType::F16,
                    (KvDtype::F32, _) => DType::F32,
                };
                HeldPool::Tensor(tensor::Pool::new(shape, dtype, weight.device(), blocks)?)
            }
        }))
    }
}

/// How the blocks of a model are held.
#[derive(Clone, Debug)]
enum Held {
    Tensors(Vec<Block>),
    /// For serving on the CPU path.
    Packed(Arc<[PackedBlock]>),
}

/// The blocks of a model, and what its path needs to compute them.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    path: Path,
    blocks: Held,
    sizes: Sizes,
    frequencies: Option<Arc<[f32]>>,
    head_norms: bool,
    workspace: Workspace,
}

impl Blocks {
    /// Loads the blocks below `w`, by number.
    pub(crate) fn load(path: Path, shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let blocks = (0..shape.num_layers).map(|i| Block::load(shape, &w.below(i)));
        let blocks = Held::Tensors(blocks.collect::<Result<_>>()?);
        Ok(Self::new(path, shape, blocks))
    }

    /// As [`load`](Self::load), each block packed for serving before the next one is read.
    pub(crate) fn load_packed(
        path: Path,
        shape: &Shape,
        w: &Weights<'_>,
        kind: WeightType,
    ) -> Result<Self> {
        let packed = |i| PackedBlock::new(kind, &Block::load(shape, &w.below(i))?);
        let blocks = Held::Packed((0..shape.num_layers).map(packed).collect::<Result<_>>()?);
        Ok(Self::new(path, shape, blocks))
    }

    fn new(path: Path, shape: &Shape, blocks: Held) -> Self {
        Self {
            path,
            blocks,
            sizes: Sizes::of(shape),
            frequencies: shape.rotary_frequencies(),
            head_norms: shape.qk_norm,
            workspace: Workspace::new(shape),
        }
    }

    /// The blocks of a model that has no rotary positions, whatever its shape says.
    pub(crate) fn without_rotary(self) -> Self {
        Self {
            frequencies: None,
            ..self
        }
    }

    pub(crate) fn set_path(&mut self, path: Path) {
        self.path = path;
    }

    /// The blocks packed for serving, each dropped as its copy is made, and their bytes.
    pub(crate) fn pack(&mut self, kind: WeightType) -> Result<usize> {
        let Held::Tensors(blocks) = &mut self.blocks else {
            return Err(packed());
        };
        let pack = |block| PackedBlock::new(kind, &block);
        let blocks: Arc<[_]> = std::mem::take(blocks)
            .into_iter()
            .map(pack)
            .collect::<Result<_>>()?;
        self.blocks = Held::Packed(blocks);
        self.workspace = self.workspace.for_other_weights();
        Ok(self.packed_bytes())
    }

    /// Memory of the weights of packed blocks.
    pub(crate) fn packed_bytes(&self) -> usize {
        match &self.blocks {
            Held::Tensors(_) => 0,
            Held::Packed(blocks) => blocks.iter().map(PackedBlock::bytes).sum(),
        }
    }

    /// The same blocks with their weights in another type.
    pub(crate) fn cast(&mut self, dtype: DType) -> Result<()> {
        let blocks = self.tensors()?.iter().map(|block| block.cast(dtype));
        self.blocks = Held::Tensors(blocks.collect::<Result<_>>()?);
        self.workspace = self.workspace.for_other_weights();
        Ok(())
    }

    /// Trains with less memory: what is in a block is computed again for the backward pass.
    pub(crate) fn recompute(&mut self) -> Result<()> {
        if self.path == Path::Tensor || self.head_norms {
            return Err(Error::Argument(
                "blocks are computed twice on the CPU path only, and without norms of heads".into(),
            ));
        }
        self.workspace.set_recompute();
        Ok(())
    }

    /// What factors of products are rounded to in training.
    pub(crate) fn train_with(&mut self, precision: Precision) -> Result<()> {
        if precision != Precision::F32 && (self.path == Path::Tensor || self.head_norms) {
            return Err(Error::Argument(
                "blocks are trained with factors in bf16 on the CPU path only, and without norms of heads"
                    .into(),
            ));
        }
        self.workspace.set_precision(precision);
        Ok(())
    }

    fn tensors(&self) -> Result<&[Block]> {
        match &self.blocks {
            Held::Tensors(blocks) => Ok(blocks),
            Held::Packed(_) => Err(packed()),
        }
    }

    /// `(N, D)` to `(N, D)`; gradients reach the input and every weight.
    pub(crate) fn forward(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        let blocks = self.tensors()?;
        match self.path {
            // The fused backward pass has no norm of heads: models with one train on the other path.
            Path::Cpu if !self.head_norms => Stack::apply(&self.workspace, blocks, x, positions),
            Path::Cpu | Path::Tensor => {
                let (heads, frequencies) = (self.sizes.heads, self.frequencies.as_deref());
                let mut attend = tensor::Whole::new(positions, heads, frequencies, x.device())?;
                tensor::blocks(blocks, x, &mut attend)
            }
        }
    }

    /// The next positions of some sequences, end to end, to `(N, D)`, without gradients. The pool
    /// gets their keys and values.
    pub(crate) fn step(
        &self,
        input: Input,
        pool: &mut KvPool,
        parts: &[Part<'_>],
        device: &Device,
    ) -> Result<Tensor> {
        let (heads, frequencies) = (self.sizes.heads, self.frequencies.as_deref());
        match input {
            Input::Numbers(mut x) => {
                let pool = pool.cpu()?;
                let layers = match &self.blocks {
                    Held::Tensors(blocks) => serve::Layers::Tensors(blocks),
                    Held::Packed(blocks) => serve::Layers::Packed(blocks),
                };
                let (sizes, numbers) = (&self.sizes, &mut x);
                // On a thread of the pool, so that its parts are not handed over one by one.
                rayon::scope(|_| serve::step(layers, sizes, frequencies, numbers, pool, parts))?;
                let rows = x.len() / self.sizes.width;
                Ok(Tensor::from_vec(x, (rows, self.sizes.width), device)?)
            }
            Input::Tensor(x) => {
                let pool = pool.tensor()?;
                tensor::step(self.tensors()?, &x, pool, parts, heads, frequencies)
            }
        }
    }

    /// Table rows: `(N, D)`, a row for each node of a tree, to `(N, D)`, without gradients.
    pub(crate) fn rows(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        match (self.path, positions) {
            (Path::Cpu, Positions::Tree(tree)) => {
                let mut numbers = Numbers::of(&x.contiguous()?)?.values().to_vec();
                serve::rows(self.tensors()?, &self.sizes, &mut numbers, tree)?;
                Ok(Tensor::from_vec(numbers, x.dims(), x.device())?)
            }
            _ => self.forward(x, positions),
        }
    }
}

/// What a packed model cannot do.
pub(crate) fn packed() -> Error {
    Error::Argument("the weights are packed, which is for serving only".into())
}
