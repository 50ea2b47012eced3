//! The one place that chooses between the two paths.

use crate::config::Shape;
use crate::cpu::block::Sizes;
use crate::cpu::serve::PackedBlock;
use crate::cpu::train::{Stack, Workspace};
use crate::cpu::{ops as fused, serve};
use crate::error::{Error, Result};
use crate::kv_cache::{Held as HeldCache, KvCache};
use crate::layers::{Block, Linear, Norm, Weights};
use crate::positions::Positions;
use crate::storage::Numbers;
use crate::weight_type::WeightType;
use crate::{cpu, tensor};
use candle_core::{DType, Tensor};
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
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[u32],
    ) -> Result<Tensor> {
        match self {
            Self::Cpu => fused::linear_cross_entropy(hidden, weight, targets),
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
            Self::Tensor => tensor::norm(norm, x),
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

    /// An empty cache for a model of this shape.
    pub(crate) fn new_cache(self, shape: &Shape) -> KvCache {
        match self {
            Self::Cpu => KvCache(HeldCache::Cpu(cpu::cache::Cache::new(shape))),
            Self::Tensor => KvCache(HeldCache::Tensor(tensor::Cache::new(shape))),
        }
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
    rope_theta: Option<f64>,
    workspace: Workspace,
}

impl Blocks {
    /// Loads the blocks below `w`, by number.
    pub(crate) fn load(path: Path, shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let blocks = (0..shape.num_layers)
            .map(|i| Block::load(shape, &w.below(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            path,
            blocks: Held::Tensors(blocks),
            sizes: Sizes::of(shape),
            rope_theta: shape.rope_theta,
            workspace: Workspace::new(shape),
        })
    }

    #[cfg(test)]
    pub(crate) fn on_the_tensor_path(&mut self) {
        self.path = Path::Tensor;
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
        let bytes = blocks.iter().map(PackedBlock::bytes).sum();
        self.blocks = Held::Packed(blocks);
        Ok(bytes)
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
            Path::Cpu => Stack::apply(&self.workspace, blocks, x, positions),
            Path::Tensor => {
                let (heads, theta) = (self.sizes.heads, self.rope_theta);
                let mut attend = tensor::Whole::new(positions, heads, theta, x.device())?;
                tensor::blocks(blocks, x, &mut attend)
            }
        }
    }

    /// `(N, D)`, the next positions of all segments end to end, to `(N, D)`, without gradients.
    /// The caches get the new positions; after an error they are as before.
    pub(crate) fn step(
        &self,
        x: &Tensor,
        segments: &mut [(&mut KvCache, usize)],
    ) -> Result<Tensor> {
        let theta = self.rope_theta;
        match self.path {
            Path::Cpu => {
                let mut numbers = Numbers::of(&x.contiguous()?)?.values().to_vec();
                let mut parts = Vec::with_capacity(segments.len());
                for (cache, len) in segments.iter_mut() {
                    let (cache, len) = (cache.cpu()?, *len);
                    parts.push(serve::Part { cache, len });
                }
                let layers = match &self.blocks {
                    Held::Tensors(blocks) => serve::Layers::Tensors(blocks),
                    Held::Packed(blocks) => serve::Layers::Packed(blocks),
                };
                // On a thread of the pool, so that its parts are not handed over one by one.
                rayon::scope(|_| serve::step(layers, &self.sizes, theta, &mut numbers, parts))?;
                Ok(Tensor::from_vec(numbers, x.dims(), x.device())?)
            }
            Path::Tensor => {
                let mut parts = Vec::with_capacity(segments.len());
                for (cache, len) in segments.iter_mut() {
                    let (cache, len) = (cache.tensor()?, *len);
                    parts.push(tensor::Part { cache, len });
                }
                tensor::step(self.tensors()?, x, parts, self.sizes.heads, theta)
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
