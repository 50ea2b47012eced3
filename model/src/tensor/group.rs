//! Attention of several sequences with as many new positions each, in one go.

use super::pool::{Pool, slot};
use crate::error::Result;
use crate::kv_blocks::Part;
use crate::layout::Heads;
use candle_core::{DType, Tensor};

/// B sequences of T new positions each, padded to S positions in all.
pub(crate) struct Group {
    /// Rows of the step that are theirs; none when all are, in order.
    rows: Option<Tensor>,
    batch: usize,
    new: usize,
    /// Slots of all positions, `(B · S)`.
    slots: Tensor,
    padded: usize,
    /// What a position may not see, `(B, 1, 1, T, S)`; none when it sees all.
    mask: Option<Tensor>,
}

impl Group {
    /// Parts of equal length, at these rows of the step `x (N, D)`.
    pub(crate) fn new(parts: &[Part<'_>], rows: &[u32], x: &Tensor) -> Result<Self> {
        let device = x.device();
        let (batch, new) = (parts.len(), parts.first().map_or(0, |part| part.len));
        let padded = parts.iter().map(|part| part.held).max().unwrap_or(0) + new;
        let mut slots = Vec::with_capacity(batch * padded);
        let mut mask = Vec::with_capacity(batch * new * padded);
        for part in parts {
            let end = part.held + new;
            slots.extend((0..end).map(|at| slot(part, at)));
            // Padded with what the sequence itself holds: never seen, but multiplied by 0.
            slots.resize(slots.len() + padded - end, slot(part, 0));
            for at in part.held..end {
                mask.extend(
                    (0..padded).map(|seen| if seen > at { f32::NEG_INFINITY } else { 0.0 }),
                );
            }
        }
        let mask = match mask.iter().any(|x| *x != 0.0) {
            true => {
                let mask = Tensor::from_vec(mask, (batch, 1, 1, new, padded), device)?;
                Some(mask.to_dtype(x.dtype())?)
            }
            false => None,
        };
        let all = rows.len() == x.dim(0)?;
        Ok(Self {
            rows: match all {
                true => None,
                false => Some(Tensor::from_slice(rows, rows.len(), device)?),
            },
            batch,
            new,
            slots: Tensor::from_vec(slots, batch * padded, device)?,
            padded,
            mask,
        })
    }

    /// From queries `(N, H·Dh)` of the step and what the pool holds to the mixed values
    /// `(B · T, H·Dh)` of this group.
    pub(crate) fn attend(
        &self,
        q: &Tensor,
        pool: &Pool,
        layer: usize,
        heads: &Heads,
    ) -> Result<Tensor> {
        let q = match &self.rows {
            Some(rows) => q.index_select(rows, 0)?,
            None => q.clone(),
        };
        let (b, t, s) = (self.batch, self.new, self.padded);
        let (kv, group, dim) = (heads.num_kv_heads, heads.group(), heads.head_dim);
        // (B·T, H·Dh) to (B, Hkv, G·T, Dh)
        let q = q
            .reshape((b, t, kv, group, dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((b, kv, group * t, dim))?;
        let (keys, values) = pool.read(layer, &self.slots, q.dtype())?;
        // (B·S, Hkv·Dh) to (B, Hkv, S, Dh)
        let split = |x: Tensor| x.reshape((b, s, kv, dim))?.transpose(1, 2)?.contiguous();
        let (keys, values) = (split(keys)?, split(values)?);
        let mut scores = (q.matmul(&keys.t()?)? * f64::from(heads.scale()))?;
        if let Some(mask) = &self.mask {
            scores = scores
                .reshape((b, kv, group, t, s))?
                .broadcast_add(mask)?
                .reshape((b, kv, group * t, s))?;
        }
        // Serving needs no gradient, so candle's fused softmax will do; the sum is taken in f32.
        let dtype = scores.dtype();
        let exact = match dtype {
            DType::F16 | DType::BF16 => scores.to_dtype(DType::F32)?,
            _ => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&exact)?.to_dtype(dtype)?;
        let mixed = weights.matmul(&values)?;
        Ok(mixed
            .reshape((b, kv, group, t, dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((b * t, heads.q_width()))?)
    }
}
