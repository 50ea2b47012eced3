//! The types weights are stored in: f32, f16 and bf16.

use crate::error::{Error, Result};
use crate::init::Parameters;
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

/// Type of the weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl StoredDtype {
    /// From the name in `config.json`.
    ///
    /// # Errors
    /// A name other than `float32`, `float16` and `bfloat16`.
    pub fn from_torch(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::F32),
            "float16" => Ok(Self::F16),
            "bfloat16" => Ok(Self::Bf16),
            other => Err(Error::config(
                "torch_dtype",
                format!("`{other}` is not float32, float16 or bfloat16"),
            )),
        }
    }

    /// The name in `config.json`.
    pub fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// A tensor as it will be read back, in f32.
    ///
    /// # Errors
    /// A tensor that cannot be converted.
    pub fn round(self, tensor: &Tensor) -> Result<Tensor> {
        let dtype = match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        };
        Ok(tensor.to_dtype(dtype)?.to_dtype(DType::F32)?)
    }

    pub(super) fn round_all(self, parameters: &Parameters) -> Result<Parameters> {
        parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), self.round(tensor)?)))
            .collect()
    }

    /// `None` for a type that no weight has.
    pub(super) fn from_safetensors(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(super) fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends the bytes of some numbers.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        }
    }

    /// Appends the numbers of some bytes, whose length is a multiple of a number's.
    pub(super) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        let halves = || bytes.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                out.extend(words.map(|&b| f32::from_le_bytes(b)));
            }
            Self::F16 => out.extend(halves().map(|&b| f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => out.extend(halves().map(|&b| bf16::from_le_bytes(b).to_f32())),
        }
    }
}
