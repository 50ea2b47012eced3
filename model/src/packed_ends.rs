//! Token embedding and output layer of a model packed for serving on a CPU.

use crate::cpu::kernels::packed::Prepared;
use crate::cpu::weights::PackedLinear;
use crate::error::{Error, Result};
use crate::layers::Linear;
use crate::storage::with_slice;
use crate::weight_type::WeightType;
use candle_core::Tensor;
use half::bf16;
use rayon::prelude::*;

/// Rows of the token embedding that one task reads, at least.
const ROWS_A_TASK: usize = 16;

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
    fn new(kind: WeightType, tied: bool, embedding: &Tensor) -> Result<Self> {
        if tied {
            return Ok(Self::Output);
        }
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
    /// Packs them; `bytes` is the memory of all other weights.
    pub(crate) fn new(
        kind: WeightType,
        embedding: &Tensor,
        output: &Linear,
        bytes: usize,
    ) -> Result<Self> {
        let tokens = TokenRows::new(kind, output.weight.id() == embedding.id(), embedding)?;
        let output = PackedLinear::new(output_type(kind), &[output])?;
        let packing = Packing {
            weights: kind,
            kernels: output.weight.level().name(),
            bytes: bytes + tokens.bytes() + output.weight.bytes(),
        };
        Ok(Self {
            packing,
            tokens,
            vocab: output.weight.outputs(),
            output,
        })
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

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }
}
