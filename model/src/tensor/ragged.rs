//! Attention of a serving step: rows of sequences of any lengths, in one call for all of them, over keys
//! and values in the blocks of a pool.
//!
//! A GPU runs the kernels of `kernels.cu`. What is here for the CPU is the same arithmetic in plain
//! loops, so that all but the kernels is tested without a GPU.

use super::pool::slot;
use super::rows::{Sizes, row_stride};
use crate::error::{Error, Result};
use crate::kv_blocks::{KV_BLOCK_POSITIONS, Part};
use crate::layout::Heads;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, DType, Device, InplaceOp3, Layout, Shape, Storage, Tensor,
};
use half::{bf16, f16};

/// Where the rows of a step write to and what they see; the same for all layers, on the device once.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For N rows: slot, positions seen, where the list of blocks begins, N numbers each; then the
    /// rotary frequencies, as bits; then the lists of blocks.
    words: Tensor,
    sizes: Sizes,
}

impl Plan {
    /// Of the rows of all parts, end to end.
    ///
    /// # Errors
    /// Heads of an odd width.
    pub(crate) fn new(
        parts: &[Part<'_>],
        heads: Heads,
        frequencies: Option<&[f32]>,
        device: &Device,
    ) -> Result<Self> {
        if !heads.head_dim.is_multiple_of(2) {
            let width = heads.head_dim;
            return Err(Error::Argument(format!(
                "heads of {width} numbers, here only even widths are computed"
            )));
        }
        let (mut seen, mut starts, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut lists = Vec::new();
        for part in parts {
            let end = part.held + part.len;
            for position in part.held..end {
                slots.push(slot(part, position));
                seen.push(position as u32 + 1);
                starts.push(lists.len() as u32);
            }
            lists.extend_from_slice(&part.blocks[..end.div_ceil(KV_BLOCK_POSITIONS)]);
        }
        let frequencies = frequencies.unwrap_or_default();
        let sizes = Sizes {
            rows: slots.len(),
            frequencies: frequencies.len(),
            heads,
        };
        let mut words = slots;
        words.extend(seen);
        words.extend(starts);
        words.extend(frequencies.iter().map(|x| x.to_bits()));
        words.extend(lists);
        let count = words.len();
        Ok(Self {
            words: Tensor::from_vec(words, count, device)?,
            sizes,
        })
    }

    /// Writes keys, turned to their positions, and values, `(N, Hkv·Dh)` each, to where the rows go.
    /// `held (2, slots, Hkv·Dh)`: keys and values of a layer.
    pub(crate) fn write(&self, held: &Tensor, keys: &Tensor, values: &Tensor) -> Result<()> {
        let write = Write {
            sizes: self.sizes,
            values: values.clone(),
        };
        Ok(held.inplace_op3(keys, &self.words, &write)?)
    }

    /// From queries `(N, H·Dh)` before they are turned, and keys and values of a layer, to the mixed
    /// values `(N, H·Dh)`. A row's result depends on what it sees alone.
    pub(crate) fn attend(&self, queries: &Tensor, held: &Tensor) -> Result<Tensor> {
        Ok(queries.apply_op3_no_bwd(held, &self.words, &Attend(self.sizes))?)
    }
}

/// `silu(gate) · up`, rows of equal width, without gradients.
pub(crate) fn gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.apply_op2_no_bwd(up, &Gate)?)
}

/// candle hands over two tensors beside the one that is written.
struct Write {
    sizes: Sizes,
    values: Tensor,
}

struct Attend(Sizes);
struct Gate;

impl InplaceOp3 for Write {
    fn name(&self) -> &'static str {
        "write-keys-and-values"
    }

    fn cpu_fwd(
        &self,
        held: &mut CpuStorage,
        of_held: &Layout,
        keys: &CpuStorage,
        of_keys: &Layout,
        words: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let (values, of_values) = self.values.storage_and_layout();
        let Storage::Cpu(values) = &*values else {
            candle_core::bail!("values on another device than keys");
        };
        let (keys, values) = (Rows::new(keys, of_keys)?, Rows::new(values, of_values)?);
        let (plan, heads) = (Words::new(words, self.sizes)?, self.sizes.heads);
        let (width, half) = (heads.kv_width(), heads.head_dim / 2);
        let of_values = value_offset(of_held)?;
        for row in 0..self.sizes.rows {
            let to = plan.slot(row) * width;
            for head in (0..width).step_by(heads.head_dim) {
                for i in head..head + half {
                    let pair = (keys.get(row, i), keys.get(row, i + half));
                    let (a, b) = plan.turn(row, i - head, pair);
                    set(held, to + i, a)?;
                    set(held, to + i + half, b)?;
                }
            }
            for i in 0..width {
                set(held, of_values + to + i, values.get(row, i))?;
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        held: &mut CudaStorage,
        of_held: &Layout,
        keys: &CudaStorage,
        of_keys: &Layout,
        words: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let (values, of_values) = self.values.storage_and_layout();
        let Storage::Cuda(values) = &*values else {
            candle_core::bail!("values on another device than keys");
        };
        let held = (held, value_offset(of_held)?);
        let rows = ((keys, of_keys), (values, of_values));
        super::kernels::write(self.sizes, held, rows, words)
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        of_queries: &Layout,
        held: &CpuStorage,
        of_held: &Layout,
        words: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let heads = self.0.heads;
        let rows = Rows::new(queries, of_queries)?;
        let plan = Words::new(words, self.0)?;
        let keys = Rows::of(held, 0, heads.kv_width())?;
        let values = Rows::of(held, value_offset(of_held)?, heads.kv_width())?;
        let mut out = Vec::with_capacity(self.0.rows * heads.q_width());
        for row in 0..self.0.rows {
            let slots = plan.slots(row);
            for head in 0..heads.num_heads {
                let (from, seen) = (heads.kv_head(head) * heads.head_dim, slots.len());
                let query = plan.query(&rows, row, head);
                let score = |&slot: &usize| -> f32 {
                    let terms = query.iter().enumerate();
                    terms.map(|(i, q)| q * keys.get(slot, from + i)).sum()
                };
                let mut weights: Vec<f32> = slots.iter().map(score).collect();
                let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                weights.iter_mut().for_each(|w| *w = (*w - top).exp());
                let all: f32 = weights.iter().sum();
                out.extend((0..heads.head_dim).map(|i| {
                    let terms = (0..seen).map(|at| weights[at] * values.get(slots[at], from + i));
                    terms.sum::<f32>() / all
                }));
            }
        }
        let shape = (self.0.rows, heads.q_width()).into();
        Ok((in_type_of(queries, out)?, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        queries: &CudaStorage,
        of_queries: &Layout,
        held: &CudaStorage,
        of_held: &Layout,
        words: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let held = (held, value_offset(of_held)?);
        let out = super::kernels::attend(self.0, (queries, of_queries), held, words)?;
        Ok((out, (self.0.rows, self.0.heads.q_width()).into()))
    }
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        of_gate: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = of_gate.shape().dims2()?;
        let (gates, ups) = (Rows::new(gate, of_gate)?, Rows::new(up, of_up)?);
        let one = |at: usize| {
            let x = gates.get(at / width, at % width);
            x / (1.0 + (-x).exp()) * ups.get(at / width, at % width)
        };
        let out = (0..rows * width).map(one).collect();
        Ok((in_type_of(gate, out)?, (rows, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        of_gate: &Layout,
        up: &CudaStorage,
        of_up: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let out = super::kernels::gate((gate, of_gate), (up, of_up))?;
        Ok((out, of_gate.shape().clone()))
    }
}

/// Where the values of a layer begin behind its keys.
fn value_offset(held: &Layout) -> candle_core::Result<usize> {
    let (_, slots, width) = held.shape().dims3()?;
    if !held.is_contiguous() || held.start_offset() != 0 {
        candle_core::bail!("keys and values of a layer are in one piece");
    }
    Ok(slots * width)
}

/// Rows of numbers in host memory, of any float type.
struct Rows<'a> {
    numbers: &'a CpuStorage,
    start: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    fn new(numbers: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let mut rows = Self::of(numbers, layout.start_offset(), 0)?;
        rows.stride = row_stride(layout)?;
        Ok(rows)
    }

    fn of(numbers: &'a CpuStorage, start: usize, stride: usize) -> candle_core::Result<Self> {
        match numbers {
            CpuStorage::F32(_) | CpuStorage::F16(_) | CpuStorage::BF16(_) => Ok(Self {
                numbers,
                start,
                stride,
            }),
            _ => candle_core::bail!("attention knows f32, f16 and bf16"),
        }
    }

    fn get(&self, row: usize, i: usize) -> f32 {
        let at = self.start + row * self.stride + i;
        match self.numbers {
            CpuStorage::F32(x) => x[at],
            CpuStorage::F16(x) => x[at].to_f32(),
            CpuStorage::BF16(x) => x[at].to_f32(),
            _ => unreachable!("checked in `of`"),
        }
    }
}

fn set(numbers: &mut CpuStorage, at: usize, x: f32) -> candle_core::Result<()> {
    match numbers {
        CpuStorage::F32(to) => to[at] = x,
        CpuStorage::F16(to) => to[at] = f16::from_f32(x),
        CpuStorage::BF16(to) => to[at] = bf16::from_f32(x),
        _ => candle_core::bail!("keys and values are f32, f16 or bf16"),
    }
    Ok(())
}

fn in_type_of(like: &CpuStorage, numbers: Vec<f32>) -> candle_core::Result<CpuStorage> {
    Ok(match like {
        CpuStorage::F16(_) => CpuStorage::F16(numbers.into_iter().map(f16::from_f32).collect()),
        CpuStorage::BF16(_) => CpuStorage::BF16(numbers.into_iter().map(bf16::from_f32).collect()),
        _ => CpuStorage::F32(numbers),
    })
}

/// A plan's words, read.
struct Words<'a> {
    words: &'a [u32],
    sizes: Sizes,
}

impl<'a> Words<'a> {
    fn new(words: &'a CpuStorage, sizes: Sizes) -> candle_core::Result<Self> {
        match words {
            CpuStorage::U32(words) => Ok(Self { words, sizes }),
            _ => candle_core::bail!("a plan is {:?}", DType::U32),
        }
    }

    fn slot(&self, row: usize) -> usize {
        self.words[row] as usize
    }

    fn seen(&self, row: usize) -> usize {
        self.words[self.sizes.rows + row] as usize
    }

    /// Slots of all positions that a row sees.
    fn slots(&self, row: usize) -> Vec<usize> {
        let lists = 3 * self.sizes.rows + self.sizes.frequencies;
        let list = lists + self.words[2 * self.sizes.rows + row] as usize;
        let slot = |at: usize| {
            let block = self.words[list + at / KV_BLOCK_POSITIONS] as usize;
            block * KV_BLOCK_POSITIONS + at % KV_BLOCK_POSITIONS
        };
        (0..self.seen(row)).map(slot).collect()
    }

    /// Elements i and `i + Dh/2` of a head of a row, turned.
    fn turn(&self, row: usize, i: usize, (a, b): (f32, f32)) -> (f32, f32) {
        if self.sizes.frequencies == 0 {
            return (a, b);
        }
        let frequency = f32::from_bits(self.words[3 * self.sizes.rows + i]);
        let (sin, cos) = ((self.seen(row) - 1) as f32 * frequency).sin_cos();
        (a * cos - b * sin, b * cos + a * sin)
    }

    /// The query of a head, turned and scaled.
    fn query(&self, rows: &Rows<'_>, row: usize, head: usize) -> Vec<f32> {
        let heads = self.sizes.heads;
        let (from, half) = (heads.query(head), heads.head_dim / 2);
        let mut query = vec![0.0; heads.head_dim];
        for i in 0..half {
            let pair = (rows.get(row, from + i), rows.get(row, from + i + half));
            let (a, b) = self.turn(row, i, pair);
            query[i] = a * heads.scale();
            query[i + half] = b * heads.scale();
        }
        query
    }
}
