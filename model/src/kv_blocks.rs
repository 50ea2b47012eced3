//! Blocks of keys and values: their size, their type, and where a sequence has its own.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Positions of a block.
pub const KV_BLOCK_POSITIONS: usize = 16;

/// Type of the keys and values held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// IEEE half precision: half the memory, and half the traffic of a decode step.
    #[default]
    F16,
    /// Exact.
    F32,
}

impl KvDtype {
    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        })
    }
}

impl FromStr for KvDtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            other => Err(Error::Argument(format!("{other:?} is none of f16, f32"))),
        }
    }
}

/// One sequence of a step: where its positions are held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Block i holds positions from `i * KV_BLOCK_POSITIONS` on.
    pub(crate) blocks: &'a [u32],
    /// Positions computed before.
    pub(crate) held: usize,
    /// Positions of this step.
    pub(crate) len: usize,
}
