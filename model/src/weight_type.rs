//! The type that a model's weights are served in.

use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// How a weight is held while a model serves on a CPU. Activations stay in f32 between products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Single precision.
    #[default]
    F32,
    /// The upper half of an f32; a product rounds its activations to the same type.
    Bf16,
    /// 8 bits and a scale for 32 weights of an output; a product rounds its activations to 8 bits.
    Int8,
    /// 4 bits and a scale for 32 weights of an output; activations as for [`Self::Int8`].
    Int4,
}

impl WeightType {
    /// All types, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// What serves best on this processor at no cost to speak of (0.0001 nats/token): bf16 where there
    /// are instructions that multiply it, else f32.
    pub fn default_here() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") {
            return Self::Bf16;
        }
        Self::F32
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| Error::Argument(format!("{text:?} is not f32, bf16, int8 or int4")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in WeightType::ALL {
            assert_eq!(kind.to_string().parse::<WeightType>().unwrap(), kind);
        }
        let error = "f16".parse::<WeightType>().unwrap_err().to_string();
        assert!(error.contains("f16") && error.contains("bf16"), "{error}");
    }
}
