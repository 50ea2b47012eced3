//! One block's forward pass.

use crate::config::{Family, Shape};
use crate::cpu::kernels::{rows, simd};
use crate::layout::Heads;

/// The sizes of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) family: Family,
    /// D.
    pub(crate) width: usize,
    /// Width of the feed-forward layer.
    pub(crate) intermediate: usize,
    pub(crate) heads: Heads,
}

impl Sizes {
    pub(crate) fn of(shape: &Shape) -> Self {
        Self {
            family: shape.family,
            width: shape.hidden_size,
            intermediate: shape.intermediate_size,
            heads: shape.heads(),
        }
    }

    /// Width before the activation: gate and up side by side (llama), or one layer (gpt2).
    pub(crate) fn inner_width(&self) -> usize {
        match self.family {
            Family::Llama => 2 * self.intermediate,
            Family::Gpt2 => self.intermediate,
        }
    }

    fn widths(&self) -> [usize; 8] {
        let (d, f) = (self.width, self.intermediate);
        let (joint, mixed) = (self.heads.width(), self.heads.q_width());
        [d, d, joint, mixed, d, d, self.inner_width(), f]
    }

    /// Numbers of the [`Activations`] of some rows.
    pub(crate) fn activations_len(&self, rows: usize) -> usize {
        rows * self.widths().iter().sum::<usize>()
    }
}

/// All that a block computes on the way from its input to its output, rows after rows: slices of
/// one buffer. The backward pass needs every one.
pub(crate) struct Activations<B> {
    /// Input of the block.
    pub(crate) x: B,
    pub(crate) attention_normed: B,
    /// Queries, keys and values side by side.
    pub(crate) joint: B,
    /// Attention's result, before the output layer.
    pub(crate) mixed: B,
    /// After the first residual addition.
    pub(crate) middle: B,
    pub(crate) mlp_normed: B,
    /// Before and after the activation.
    pub(crate) inner: B,
    pub(crate) activated: B,
}

impl<B> Activations<B> {
    fn from_parts(parts: [B; 8]) -> Self {
        let [
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        ] = parts;
        Self {
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        }
    }
}

impl<'a> Activations<&'a mut [f32]> {
    /// Of `rows` rows, in the first numbers of a buffer.
    pub(crate) fn cut_mut(sizes: &Sizes, rows: usize, mut buffer: &'a mut [f32]) -> Self {
        Self::from_parts(sizes.widths().map(|width| {
            let (head, tail) = std::mem::take(&mut buffer).split_at_mut(rows * width);
            buffer = tail;
            head
        }))
    }
}

impl<'a> Activations<&'a [f32]> {
    /// As [`cut_mut`](Activations::cut_mut), to read.
    pub(crate) fn cut(sizes: &Sizes, rows: usize, mut buffer: &'a [f32]) -> Self {
        Self::from_parts(sizes.widths().map(|width| {
            let (head, tail) = buffer.split_at(rows * width);
            buffer = tail;
            head
        }))
    }
}

/// The norms of a block.
#[derive(Clone, Copy)]
pub(crate) enum NormOf {
    Attention,
    Mlp,
}

/// The products of a block with a weight. Weights that lie side by side in a row of the result
/// (query, key, value; gate, up) are one product.
#[derive(Clone, Copy)]
pub(crate) enum Product {
    Qkv,
    Output,
    Inner,
    Down,
}

/// How a block's parts are computed: for serving, or for training.
pub(crate) trait Pass {
    /// The norm of every row.
    fn norm(&mut self, which: NormOf, x: &[f32], out: &mut [f32]);

    /// A linear layer over every row, with its bias.
    fn product(&mut self, which: Product, x: &[f32], out: &mut [f32]);

    /// SwiGLU (llama) or GELU (gpt2) of every row.
    fn activate(&mut self, sizes: &Sizes, inner: &[f32], out: &mut [f32]) {
        activate(sizes, inner, out);
    }

    /// Attention of every row; queries and keys may be turned by their positions in place.
    fn attend(&mut self, joint: &mut [f32], mixed: &mut [f32]);
}

/// `a.x` through the block; the result is in `out`.
pub(crate) fn forward(
    sizes: &Sizes,
    pass: &mut impl Pass,
    a: Activations<&mut [f32]>,
    out: &mut [f32],
) {
    pass.norm(NormOf::Attention, a.x, a.attention_normed);
    pass.product(Product::Qkv, a.attention_normed, a.joint);
    pass.attend(a.joint, a.mixed);
    pass.product(Product::Output, a.mixed, a.middle);
    add(a.middle, a.x);
    pass.norm(NormOf::Mlp, a.middle, a.mlp_normed);
    pass.product(Product::Inner, a.mlp_normed, a.inner);
    pass.activate(sizes, a.inner, a.activated);
    pass.product(Product::Down, a.activated, out);
    add(out, a.middle);
}

/// SwiGLU (llama) or GELU (gpt2) of every row.
pub(crate) fn activate(sizes: &Sizes, inner: &[f32], out: &mut [f32]) {
    let f = sizes.intermediate;
    simd(
        #[inline(always)]
        || match sizes.family {
            Family::Llama => {
                for (inner, out) in inner.chunks(2 * f).zip(out.chunks_mut(f)) {
                    rows::swiglu(&inner[..f], &inner[f..], out);
                }
            }
            Family::Gpt2 => rows::gelu(inner, out),
        },
    );
}

/// `to += x`.
pub(crate) fn add(to: &mut [f32], x: &[f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x;
    }
}
