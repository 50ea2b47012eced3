//! A block's products and norms for serving, and all blocks one after the other.

use crate::cpu::block::{Activations, NormOf, Pass, Product, Sizes, activate, forward};
use crate::cpu::kernels::matmul::Columns;
use crate::cpu::kernels::packed::Prepared;
use crate::cpu::weights::{HeadNormNumbers, LinearNumbers, NormNumbers, PackedLinear};
use crate::error::Result;
use crate::layers::{AttentionInput, Block, HeadNorms, Linear, Mlp, Norm};
use crate::layout::Heads;
use crate::weight_type::WeightType;
use rayon::prelude::*;

/// Rows of which one task computes norms or activations.
const ROWS_A_TASK: usize = 16;

/// How the rows of a call attend.
pub(crate) trait Attend {
    /// Attention of every row of one layer, from joint rows; queries and keys may be turned by
    /// their positions in place.
    fn attend(&mut self, layer: usize, joint: &mut [f32], mixed: &mut [f32]);
}

/// The blocks of a model as they are held.
#[derive(Clone, Copy)]
pub(crate) enum Layers<'a> {
    Tensors(&'a [Block]),
    Packed(&'a [PackedBlock]),
}

/// `x (N, D)` through all blocks, in place.
pub(crate) fn blocks(
    layers: Layers<'_>,
    sizes: &Sizes,
    x: &mut [f32],
    attend: &mut impl Attend,
) -> Result<()> {
    match layers {
        Layers::Tensors(blocks) => through(blocks.iter().map(BlockNumbers::of), sizes, x, attend),
        Layers::Packed(blocks) => {
            through(blocks.iter().map(PackedBlock::numbers), sizes, x, attend)
        }
    }
}

fn through<W: Weights>(
    layers: impl Iterator<Item = Result<W>>,
    sizes: &Sizes,
    x: &mut [f32],
    attend: &mut impl Attend,
) -> Result<()> {
    let rows = x.len() / sizes.width;
    let mut buffer = vec![0.0f32; sizes.activations_len(rows)];
    let mut scratch = W::Scratch::default();
    for (layer, weights) in layers.enumerate() {
        let activations = Activations::cut_mut(sizes, rows, &mut buffer);
        activations.x.copy_from_slice(x);
        let mut pass = Serving {
            weights: weights?,
            heads: sizes.heads,
            layer,
            attend,
            scratch: &mut scratch,
        };
        forward(sizes, &mut pass, activations, x);
    }
    Ok(())
}

/// What a block computes with its weights.
trait Weights {
    /// Memory to be used again.
    type Scratch: Default;

    fn norm(&self, which: NormOf) -> &NormNumbers<'_>;

    /// Norms of the query and key heads, in models that have them.
    fn head_norms(&self) -> Option<&HeadNormNumbers<'_>>;

    /// A linear layer over every row, with its bias.
    fn product(&self, which: Product, x: &[f32], out: &mut [f32], scratch: &mut Self::Scratch);
}

/// The norm of every row.
pub(crate) fn apply_norm(norm: &Norm, x: &[f32]) -> Result<Vec<f32>> {
    let mut out = vec![0.0f32; x.len()];
    NormNumbers::of(norm)?.apply(x, &mut out);
    Ok(out)
}

/// A linear layer over every row.
pub(crate) fn apply_linear(linear: &Linear, x: &[f32], rows: usize) -> Result<Vec<f32>> {
    let numbers = LinearNumbers::of(linear)?;
    let width = numbers.outputs();
    let mut out = vec![0.0f32; rows * width];
    let columns = Columns {
        rows: &mut out,
        width,
        first: 0,
    };
    numbers.apply(x, columns, &mut Vec::new());
    Ok(out)
}

/// The weights of a block; those of one product side by side.
struct BlockNumbers<'a> {
    attention_norm: NormNumbers<'a>,
    qkv: Vec<LinearNumbers<'a>>,
    head_norms: Option<HeadNormNumbers<'a>>,
    output: LinearNumbers<'a>,
    mlp_norm: NormNumbers<'a>,
    inner: Vec<LinearNumbers<'a>>,
    down: LinearNumbers<'a>,
}

impl<'a> BlockNumbers<'a> {
    fn of(block: &'a Block) -> Result<Self> {
        let side_by_side = |layers: &[&'a Linear]| -> Result<Vec<_>> {
            layers
                .iter()
                .map(|linear| LinearNumbers::of(linear))
                .collect()
        };
        let qkv = match &block.attention.input {
            AttentionInput::Split { q, k, v } => side_by_side(&[q, k, v])?,
            AttentionInput::Joint(joint) => side_by_side(&[joint])?,
        };
        let (inner, down) = match &block.mlp {
            Mlp::Swiglu { gate, up, down } => (side_by_side(&[gate, up])?, down),
            Mlp::Gelu { fc, proj } => (side_by_side(&[fc])?, proj),
        };
        Ok(Self {
            attention_norm: NormNumbers::of(&block.attention_norm)?,
            qkv,
            head_norms: block
                .attention
                .head_norms
                .as_ref()
                .map(HeadNormNumbers::of)
                .transpose()?,
            output: LinearNumbers::of(&block.attention.output)?,
            mlp_norm: NormNumbers::of(&block.mlp_norm)?,
            inner,
            down: LinearNumbers::of(down)?,
        })
    }
}

impl Weights for BlockNumbers<'_> {
    type Scratch = Vec<f32>;

    fn head_norms(&self) -> Option<&HeadNormNumbers<'_>> {
        self.head_norms.as_ref()
    }

    fn norm(&self, which: NormOf) -> &NormNumbers<'_> {
        match which {
            NormOf::Attention => &self.attention_norm,
            NormOf::Mlp => &self.mlp_norm,
        }
    }

    fn product(&self, which: Product, x: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) {
        let layers = match which {
            Product::Qkv => self.qkv.as_slice(),
            Product::Output => std::slice::from_ref(&self.output),
            Product::Inner => self.inner.as_slice(),
            Product::Down => std::slice::from_ref(&self.down),
        };
        let width = layers.iter().map(LinearNumbers::outputs).sum();
        let mut first = 0;
        for layer in layers {
            let columns = Columns {
                rows: &mut *out,
                width,
                first,
            };
            layer.apply(x, columns, scratch);
            first += layer.outputs();
        }
    }
}

/// A block whose products are packed.
#[derive(Debug)]
pub(crate) struct PackedBlock {
    attention_norm: Norm,
    qkv: PackedLinear,
    head_norms: Option<HeadNorms>,
    output: PackedLinear,
    mlp_norm: Norm,
    inner: PackedLinear,
    down: PackedLinear,
}

impl PackedBlock {
    pub(crate) fn new(kind: WeightType, block: &Block) -> Result<Self> {
        let pack = |layers: &[&Linear]| PackedLinear::new(kind, layers);
        let (inner, down) = match &block.mlp {
            Mlp::Swiglu { gate, up, down } => (pack(&[gate, up])?, down),
            Mlp::Gelu { fc, proj } => (pack(&[fc])?, proj),
        };
        Ok(Self {
            attention_norm: block.attention_norm.clone(),
            qkv: match &block.attention.input {
                AttentionInput::Split { q, k, v } => pack(&[q, k, v])?,
                AttentionInput::Joint(joint) => pack(&[joint])?,
            },
            head_norms: block.attention.head_norms.clone(),
            output: pack(&[&block.attention.output])?,
            mlp_norm: block.mlp_norm.clone(),
            inner,
            down: pack(&[down])?,
        })
    }

    /// Memory of the weights.
    pub(crate) fn bytes(&self) -> usize {
        let products = [&self.qkv, &self.output, &self.inner, &self.down];
        products.iter().map(|linear| linear.weight.bytes()).sum()
    }

    fn numbers(&self) -> Result<PackedNumbers<'_>> {
        Ok(PackedNumbers {
            block: self,
            attention_norm: NormNumbers::of(&self.attention_norm)?,
            head_norms: self
                .head_norms
                .as_ref()
                .map(HeadNormNumbers::of)
                .transpose()?,
            mlp_norm: NormNumbers::of(&self.mlp_norm)?,
        })
    }
}

/// A packed block for one call.
struct PackedNumbers<'a> {
    block: &'a PackedBlock,
    attention_norm: NormNumbers<'a>,
    head_norms: Option<HeadNormNumbers<'a>>,
    mlp_norm: NormNumbers<'a>,
}

impl Weights for PackedNumbers<'_> {
    type Scratch = Prepared;

    fn head_norms(&self) -> Option<&HeadNormNumbers<'_>> {
        self.head_norms.as_ref()
    }

    fn norm(&self, which: NormOf) -> &NormNumbers<'_> {
        match which {
            NormOf::Attention => &self.attention_norm,
            NormOf::Mlp => &self.mlp_norm,
        }
    }

    fn product(&self, which: Product, x: &[f32], out: &mut [f32], scratch: &mut Prepared) {
        let linear = match which {
            Product::Qkv => &self.block.qkv,
            Product::Output => &self.block.output,
            Product::Inner => &self.block.inner,
            Product::Down => &self.block.down,
        };
        linear.apply(x, out, scratch);
    }
}

struct Serving<'a, W: Weights, A> {
    weights: W,
    heads: Heads,
    layer: usize,
    attend: &'a mut A,
    scratch: &'a mut W::Scratch,
}

impl<W: Weights, A: Attend> Pass for Serving<'_, W, A> {
    fn norm(&mut self, which: NormOf, x: &[f32], out: &mut [f32]) {
        let norm = self.weights.norm(which);
        let numbers = ROWS_A_TASK * norm.width();
        if x.len() < 2 * numbers {
            return norm.apply(x, out);
        }
        let norm = norm.borrow();
        let rows = x.par_chunks(numbers).zip(out.par_chunks_mut(numbers));
        rows.for_each(|(x, out)| norm.apply(x, out));
    }

    fn product(&mut self, which: Product, x: &[f32], out: &mut [f32]) {
        self.weights.product(which, x, out, self.scratch);
        if let (Product::Qkv, Some(norms)) = (which, self.weights.head_norms()) {
            norms.apply(self.heads, out);
        }
    }

    fn activate(&mut self, sizes: &Sizes, inner: &[f32], out: &mut [f32]) {
        let (from, to) = (sizes.inner_width(), sizes.intermediate);
        if out.len() < 2 * ROWS_A_TASK * to {
            return activate(sizes, inner, out);
        }
        let rows = inner.par_chunks(ROWS_A_TASK * from);
        rows.zip(out.par_chunks_mut(ROWS_A_TASK * to))
            .for_each(|(inner, out)| activate(sizes, inner, out));
    }

    fn attend(&mut self, joint: &mut [f32], mixed: &mut [f32]) {
        self.attend.attend(self.layer, joint, mixed);
    }
}
