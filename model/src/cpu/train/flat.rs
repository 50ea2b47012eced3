//! The weights of a block as one stretch of numbers.

use crate::config::{Family, Shape};
use crate::cpu::block::Sizes;
use crate::error::Result;
use crate::layers::{AttentionInput, Block, Linear, Mlp, Norm};
use crate::layout::WeightLayout;
use crate::precision::Precision;
use candle_core::Tensor;
use std::ops::Range;

/// Where a linear layer's numbers are. llama's query, key and value weights (and gate and up) lie
/// end to end, which makes them one layer; gpt2's are one in the checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct FlatLinear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Option<Range<usize>>,
}

/// Where a norm's numbers are.
#[derive(Clone, Debug)]
pub(crate) struct FlatNorm {
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Option<Range<usize>>,
}

/// Where everything is, relative to the block's first number.
#[derive(Clone, Debug)]
pub(crate) struct FlatBlock {
    pub(crate) sizes: Sizes,
    pub(crate) eps: f32,
    pub(crate) layout: WeightLayout,
    /// Of its products.
    pub(crate) precision: Precision,
    pub(crate) attention_norm: FlatNorm,
    pub(crate) qkv: FlatLinear,
    pub(crate) output: FlatLinear,
    pub(crate) mlp_norm: FlatNorm,
    /// Into the activation: gate and up end to end (llama), or one layer (gpt2).
    pub(crate) inner: FlatLinear,
    pub(crate) down: FlatLinear,
    pub(crate) len: usize,
}

impl FlatBlock {
    pub(crate) fn new(shape: &Shape) -> Self {
        let gpt2 = shape.family == Family::Gpt2;
        let sizes = Sizes::of(shape);
        let (d, f, heads) = (sizes.width, sizes.intermediate, sizes.heads);
        let (has_bias, qkv_bias) = (gpt2, shape.qkv_bias);
        let mut at = Cursor { next: 0 };
        Self {
            sizes,
            eps: shape.norm_eps as f32,
            layout: if gpt2 {
                WeightLayout::InOut
            } else {
                WeightLayout::OutIn
            },
            precision: Precision::F32,
            attention_norm: at.norm(d, has_bias),
            qkv: at.linear(d, heads.width(), qkv_bias),
            output: at.linear(heads.q_width(), d, has_bias),
            mlp_norm: at.norm(d, has_bias),
            inner: at.linear(d, sizes.inner_width(), has_bias),
            down: at.linear(f, d, has_bias),
            len: at.next,
        }
    }
}

struct Cursor {
    next: usize,
}

impl Cursor {
    fn take(&mut self, n: usize) -> Range<usize> {
        let start = self.next;
        self.next += n;
        start..self.next
    }

    fn norm(&mut self, width: usize, bias: bool) -> FlatNorm {
        FlatNorm {
            weight: self.take(width),
            bias: bias.then(|| self.take(width)),
        }
    }

    fn linear(&mut self, inputs: usize, outputs: usize, bias: bool) -> FlatLinear {
        FlatLinear {
            inputs,
            outputs,
            weight: self.take(inputs * outputs),
            bias: bias.then(|| self.take(outputs)),
        }
    }
}

/// The weights of some blocks end to end, in the order of [`FlatBlock`]; gradients flow back to
/// each.
pub(crate) fn flatten(blocks: &[Block]) -> Result<Tensor> {
    let mut parts: Vec<Tensor> = Vec::new();
    for block in blocks {
        push_norm(&mut parts, &block.attention_norm);
        match &block.attention.input {
            AttentionInput::Split { q, k, v } => push_linear(&mut parts, &[q, k, v]),
            AttentionInput::Joint(joint) => push_linear(&mut parts, &[joint]),
        }
        push_linear(&mut parts, &[&block.attention.output]);
        push_norm(&mut parts, &block.mlp_norm);
        match &block.mlp {
            Mlp::Swiglu { gate, up, down } => {
                push_linear(&mut parts, &[gate, up]);
                push_linear(&mut parts, &[down]);
            }
            Mlp::Gelu { fc, proj } => {
                push_linear(&mut parts, &[fc]);
                push_linear(&mut parts, &[proj]);
            }
        }
    }
    let flat = parts
        .iter()
        .map(Tensor::flatten_all)
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&flat, 0)?)
}

fn push_norm(parts: &mut Vec<Tensor>, norm: &Norm) {
    match norm {
        Norm::Rms { weight, .. } => parts.push(weight.clone()),
        Norm::Layer { weight, bias, .. } => parts.extend([weight.clone(), bias.clone()]),
    }
}

/// Linear layers that are one [`FlatLinear`]: their weights, then their biases.
fn push_linear(parts: &mut Vec<Tensor>, side_by_side: &[&Linear]) {
    parts.extend(side_by_side.iter().map(|linear| linear.weight.clone()));
    parts.extend(side_by_side.iter().filter_map(|linear| linear.bias.clone()));
}
