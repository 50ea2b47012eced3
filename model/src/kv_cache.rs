//! Keys and values of one sequence.

use crate::config::Shape;
use crate::error::{Error, Result};
use crate::{cpu, tensor};

/// Keys and values of the positions of one sequence that were computed; made by
/// [`Decoder::new_cache`](crate::Decoder::new_cache).
#[derive(Debug)]
pub struct KvCache(pub(crate) Held);

/// In the form that the model's path uses.
#[derive(Debug)]
pub(crate) enum Held {
    /// f32 in host memory.
    Cpu(cpu::cache::Cache),
    /// Tensors on the model's device, in its type.
    Tensor(tensor::Cache),
}

impl KvCache {
    /// Number of positions held.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Cpu(cache) => cache.len(),
            Held::Tensor(cache) => cache.len(),
        }
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is a cache of a model of this shape.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        match &self.0 {
            Held::Cpu(cache) => cache.fits(shape),
            Held::Tensor(cache) => cache.fits(shape),
        }
    }

    pub(crate) fn cpu(&mut self) -> Result<&mut cpu::cache::Cache> {
        match &mut self.0 {
            Held::Cpu(cache) => Ok(cache),
            Held::Tensor(_) => Err(other_device()),
        }
    }

    pub(crate) fn tensor(&mut self) -> Result<&mut tensor::Cache> {
        match &mut self.0 {
            Held::Tensor(cache) => Ok(cache),
            Held::Cpu(_) => Err(other_device()),
        }
    }
}

fn other_device() -> Error {
    Error::Argument("a cache of a model on another device".into())
}
