//! One block's forward pass, and all blocks one after the other.

use super::ops::{self, linear};
use crate::error::Result;
use crate::layers::{Attention, AttentionInput, Block, Mlp, Norm};
use crate::layout::Heads;
use candle_core::Tensor;

/// How the rows of a call attend to each other, and to what came before.
pub(crate) trait Attend {
    /// Queries `(N, H·Dh)`, keys and values `(N, Hkv·Dh)` of one layer, without rotary positions:
    /// the mixed values `(N, H·Dh)`.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;

    /// The norm over the last axis.
    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        ops::norm(norm, x)
    }

    /// `silu(gate) · up`.
    fn gate(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        Ok((gate.silu()? * up)?)
    }
}

/// `(N, D)` through all blocks.
pub(crate) fn blocks(blocks: &[Block], x: &Tensor, attend: &mut impl Attend) -> Result<Tensor> {
    let mut x = x.clone();
    for (layer, one) in blocks.iter().enumerate() {
        x = block(one, layer, &x, attend)?;
    }
    Ok(x)
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
fn block(block: &Block, layer: usize, x: &Tensor, attend: &mut impl Attend) -> Result<Tensor> {
    let (mut q, mut k, v) = project(&block.attention, &attend.norm(&block.attention_norm, x)?)?;
    if let Some(norms) = &block.attention.head_norms {
        let heads = &block.attention.heads;
        (q, k) = (
            norm_heads(&norms.q, &q, heads, attend)?,
            norm_heads(&norms.k, &k, heads, attend)?,
        );
    }
    let mixed = attend.attend(layer, &q, &k, &v)?;
    let x = (x + linear(&block.attention.output, &mixed)?)?;
    let y = mlp(&block.mlp, &attend.norm(&block.mlp_norm, &x)?, attend)?;
    Ok((x + y)?)
}

/// The norm of each head of rows `(N, h·Dh)`.
fn norm_heads(weights: &Norm, x: &Tensor, heads: &Heads, attend: &impl Attend) -> Result<Tensor> {
    let split = x.reshape((x.dim(0)?, (), heads.head_dim))?;
    Ok(attend.norm(weights, &split)?.reshape(x.dims())?)
}

/// The feed-forward half, `(N, D)` to `(N, D)`.
fn mlp(mlp: &Mlp, x: &Tensor, attend: &impl Attend) -> Result<Tensor> {
    match mlp {
        Mlp::Swiglu { gate, up, down } => {
            linear(down, &attend.gate(&linear(gate, x)?, &linear(up, x)?)?)
        }
        Mlp::Gelu { fc, proj } => linear(proj, &linear(fc, x)?.gelu()?),
    }
}

/// Queries `(N, H·Dh)`, keys and values `(N, Hkv·Dh)`.
fn project(attention: &Attention, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    match &attention.input {
        AttentionInput::Split { q, k, v } => Ok((linear(q, x)?, linear(k, x)?, linear(v, x)?)),
        AttentionInput::Joint(joint) => {
            let (q, kv) = (attention.heads.q_width(), attention.heads.kv_width());
            let joint = linear(joint, x)?;
            let part = |start, len| joint.narrow(1, start, len);
            Ok((part(0, q)?, part(q, kv)?, part(q + kv, kv)?))
        }
    }
}
