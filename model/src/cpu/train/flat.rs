//! The weights of a block as one stretch of numbers.

use crate::config::{Family, Shape};
use crate::cpu::block::Sizes;
use crate::error::Result;
use crate::layers::{AttentionInput, Block, Linear, Mlp, Norm};
use crate::layout::WeightLayout;
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
        let mut at = Cursor { next: 0, gpt2 };
        Self {
            sizes,
            eps: shape.norm_eps as f32,
            layout: if gpt2 {
                WeightLayout::InOut
            } else {
                WeightLayout::OutIn
            },
            attention_norm: at.norm(d),
            qkv: at.linear(d, heads.width()),
            output: at.linear(heads.q_width(), d),
            mlp_norm: at.norm(d),
            inner: at.linear(d, sizes.inner_width()),
            down: at.linear(f, d),
            len: at.next,
        }
    }
}

struct Cursor {
    next: usize,
    gpt2: bool,
}

impl Cursor {
    fn take(&mut self, n: usize) -> Range<usize> {
        let start = self.next;
        self.next += n;
        start..self.next
    }

    fn norm(&mut self, width: usize) -> FlatNorm {
        FlatNorm {
            weight: self.take(width),
            bias: self.gpt2.then(|| self.take(width)),
        }
    }

    fn linear(&mut self, inputs: usize, outputs: usize) -> FlatLinear {
        FlatLinear {
            inputs,
            outputs,
            weight: self.take(inputs * outputs),
            bias: self.gpt2.then(|| self.take(outputs)),
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
            AttentionInput::Split { q, k, v } => {
                for linear in [q, k, v] {
                    push_linear(&mut parts, linear);
                }
            }
            AttentionInput::Joint(joint) => push_linear(&mut parts, joint),
        }
        push_linear(&mut parts, &block.attention.output);
        push_norm(&mut parts, &block.mlp_norm);
        match &block.mlp {
            Mlp::Swiglu { gate, up, down } => {
                for linear in [gate, up, down] {
                    push_linear(&mut parts, linear);
                }
            }
            Mlp::Gelu { fc, proj } => {
                push_linear(&mut parts, fc);
                push_linear(&mut parts, proj);
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

fn push_linear(parts: &mut Vec<Tensor>, linear: &Linear) {
    parts.push(linear.weight.clone());
    parts.extend(linear.bias.clone());
}
