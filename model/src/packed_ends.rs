//! Token embedding and output layer of a model packed for serving on a CPU.

use crate::config::Shape;
use crate::cpu::kernels::packed::Prepared;
use crate::cpu::weights::PackedLinear;
use crate::device::host;
use crate::error::{Error, Result};
use crate::layers::Linear;
use crate::layout::WeightLayout;
use crate::storage::{Numbers, with_slice};
use crate::weight_type::WeightType;
use candle_core::{DType, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Rows of the token embedding that one task reads, at least.
const ROWS_A_TASK: usize = 16;

/// Hidden states whose logits exist at a time when their losses are wanted.
const LOGITS: usize = 64;

/// How a model is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Type of the weights.
    pub weights: WeightType,
    /// Instruction set of the kernels: avx512, avx2 or portable.
    pub kernels: &'static str,
    /// Memory of the weights of all products and of the token embedding.
    pub bytes: usize,
}

/// Token embedding and output layer of a packed model.
#[derive(Debug)]
pub(crate) struct PackedEnds {
    packing: Packing,
    tokens: TokenRows,
    output: PackedLinear,
    vocab: usize,
}

/// Where rows of the token embedding are read.
#[derive(Debug)]
enum TokenRows {
    /// In the output layer.
    Output,
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl TokenRows {
    fn new(kind: WeightType, embedding: &Tensor) -> Result<Self> {
        Ok(with_slice(embedding, |values| {
            Ok(match kind {
                WeightType::F32 => Self::F32(values.to_vec()),
                _ => Self::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
            })
        })?)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Output => 0,
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
        }
    }
}

/// The type of the output layer. It is a fifth of a small model's weights and decides between
/// tokens, so it is not held in 4 bits.
fn output_type(kind: WeightType) -> WeightType {
    match kind {
        WeightType::Int4 => WeightType::Int8,
        kind => kind,
    }
}

impl PackedEnds {
    /// Packs a token embedding that is the output layer as well.
    pub(crate) fn tied(kind: WeightType, embedding: Tensor) -> Result<Self> {
        Self::new(kind, TokenRows::Output, embedding)
    }

    /// Packs a token embedding and then the output layer, which is asked for once the former is
    /// dropped.
    pub(crate) fn apart(
        kind: WeightType,
        embedding: Tensor,
        output: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Self> {
        let tokens = TokenRows::new(kind, &embedding)?;
        drop(embedding);
        Self::new(kind, tokens, output()?)
    }

    fn new(kind: WeightType, tokens: TokenRows, weight: Tensor) -> Result<Self> {
        let output = Linear {
            weight,
            bias: None,
            layout: WeightLayout::OutIn,
        };
        let output = PackedLinear::new(output_type(kind), &[&output])?;
        let packing = Packing {
            weights: kind,
            kernels: output.weight.level().name(),
            bytes: tokens.bytes() + output.weight.bytes(),
        };
        Ok(Self {
            packing,
            tokens,
            vocab: output.weight.outputs(),
            output,
        })
    }

    /// Adds the memory of all other weights to what is reported.
    pub(crate) fn count_blocks(&mut self, bytes: usize) {
        self.packing.bytes += bytes;
    }

    /// Rows of the token embedding, `(N, D)`.
    pub(crate) fn embed(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let width = self.output.weight.inputs();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Error::Argument(format!(
                "token {id} is not below the vocabulary size, {}",
                self.vocab
            )));
        }
        let rows = out.par_chunks_mut(width).with_min_len(ROWS_A_TASK);
        rows.zip(ids).for_each(|(out, &id)| {
            let at = id as usize * width;
            match &self.tokens {
                TokenRows::Output => self.output.weight.row(id as usize, out),
                TokenRows::F32(values) => out.copy_from_slice(&values[at..at + width]),
                TokenRows::Bf16(values) => {
                    let row = &values[at..at + width];
                    out.iter_mut().zip(row).for_each(|(to, x)| *to = x.to_f32());
                }
            }
        });
        Ok(())
    }

    /// Logits of rows `(N, D)`: `(N, V)`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        let mut out = vec![0.0f32; rows * self.vocab];
        with_slice(hidden, |x| {
            self.output.apply(x, &mut out, &mut Prepared::default());
            Ok(())
        })?;
        Ok(Tensor::from_vec(out, (rows, self.vocab), hidden.device())?)
    }

    /// Cross-entropy in nats of each of `hidden (N, D)`.
    pub(crate) fn token_losses(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(targets.len());
        for (chunk, targets) in targets.chunks(LOGITS).enumerate() {
            let rows = hidden.narrow(0, chunk * LOGITS, targets.len())?;
            let logits: Vec<Vec<f32>> = self.logits(&rows.contiguous()?)?.to_vec2()?;
            losses.extend(logits.iter().zip(targets).map(|(row, &id)| loss(row, id)));
        }
        Ok(losses)
    }

    /// Rows of the token embedding, and of `rows (R, D)` for indices from the vocabulary on.
    pub(crate) fn input_embeddings(&self, rows: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
        let (vocab, width) = (self.vocab as u32, self.output.weight.inputs());
        let mut out = vec![0.0; index.len() * width];
        let rows = rows.map(Tensor::contiguous).transpose()?;
        let rows = rows.as_ref().map(Numbers::of).transpose()?;
        let numbers = rows.as_ref().map_or(&[][..], Numbers::values);
        for (out, &id) in out.chunks_mut(width).zip(index) {
            let Some(row) = id.checked_sub(vocab) else {
                self.embed(&[id], out)?;
                continue;
            };
            let row = numbers.chunks_exact(width).nth(row as usize);
            let beyond =
                || Error::Argument(format!("index {id} is beyond token embedding and rows"));
            out.copy_from_slice(row.ok_or_else(beyond)?);
        }
        Ok(Tensor::from_vec(out, (index.len(), width), &host())?)
    }

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }
}

fn loss(logits: &[f32], target: u32) -> f32 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    (sum.ln() - f64::from(logits[target as usize] - largest)) as f32
}

/// What stands where packed weights were.
pub(crate) fn nothing(shape: &Shape) -> Result<Tensor> {
    Ok(Tensor::zeros((0, shape.hidden_size), DType::F32, &host())?)
}

pub(crate) fn not_on_the_cpu(weight: &Tensor) -> Error {
    Error::Argument(format!(
        "weights are packed for the CPU alone and of f32, these are on {:?} in {:?}",
        weight.device().location(),
        weight.dtype()
    ))
}
