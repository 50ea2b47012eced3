//! A block's products and norms for serving, and all blocks one after the other.

use crate::cpu::block::{Activations, NormOf, Pass, Product, Sizes, forward};
use crate::cpu::kernels::matmul::Columns;
use crate::cpu::weights::{HeadNormNumbers, LinearNumbers, NormNumbers};
use crate::error::Result;
use crate::layers::{AttentionInput, Block, Linear, Mlp, Norm};

/// How the rows of a call attend.
pub(crate) trait Attend {
    /// Attention of every row of one layer, from joint rows; queries and keys may be turned by
    /// their positions in place.
    fn attend(&mut self, layer: usize, joint: &mut [f32], mixed: &mut [f32]);
}

/// `x (N, D)` through all blocks, in place.
pub(crate) fn blocks(
    blocks: &[Block],
    sizes: &Sizes,
    x: &mut [f32],
    attend: &mut impl Attend,
) -> Result<()> {
    let rows = x.len() / sizes.width;
    let mut buffer = vec![0.0f32; sizes.activations_len(rows)];
    let mut scratch = Vec::new();
    for (layer, block) in blocks.iter().enumerate() {
        let activations = Activations::cut_mut(sizes, rows, &mut buffer);
        activations.x.copy_from_slice(x);
        let mut pass = Serving {
            weights: BlockNumbers::of(block)?,
            sizes,
            layer,
            attend,
            scratch: &mut scratch,
        };
        forward(sizes, &mut pass, activations, x);
    }
    Ok(())
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

struct Serving<'a, A> {
    weights: BlockNumbers<'a>,
    sizes: &'a Sizes,
    layer: usize,
    attend: &'a mut A,
    scratch: &'a mut Vec<f32>,
}

impl<A: Attend> Pass for Serving<'_, A> {
    fn norm(&mut self, which: NormOf, x: &[f32], out: &mut [f32]) {
        match which {
            NormOf::Attention => self.weights.attention_norm.apply(x, out),
            NormOf::Mlp => self.weights.mlp_norm.apply(x, out),
        }
    }

    fn product(&mut self, which: Product, x: &[f32], out: &mut [f32]) {
        let layers = match which {
            Product::Qkv => self.weights.qkv.as_slice(),
            Product::Output => std::slice::from_ref(&self.weights.output),
            Product::Inner => self.weights.inner.as_slice(),
            Product::Down => std::slice::from_ref(&self.weights.down),
        };
        let width = layers.iter().map(LinearNumbers::outputs).sum();
        let mut first = 0;
        for layer in layers {
            let columns = Columns {
                rows: &mut *out,
                width,
                first,
            };
            layer.apply(x, columns, self.scratch);
            first += layer.outputs();
        }
        if let (Product::Qkv, Some(norms)) = (which, &self.weights.head_norms) {
            norms.apply(self.sizes.heads, out);
        }
    }

    fn attend(&mut self, joint: &mut [f32], mixed: &mut [f32]) {
        self.attend.attend(self.layer, joint, mixed);
    }
}
