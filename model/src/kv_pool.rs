//! Memory for keys and values, in blocks that sequences take and give back.

use crate::config::Shape;
use crate::cpu;
use crate::error::{Error, Result};
use crate::tensor;

/// Keys and values of all sequences, in numbered blocks of [`KV_BLOCK_POSITIONS`](crate::KV_BLOCK_POSITIONS) positions of all
/// layers; made by [`Decoder::new_pool`](crate::Decoder::new_pool). Which sequence has which
/// blocks is its owner's business: a block may be in several sequences as long as nobody writes to
/// it.
#[derive(Debug)]
pub struct KvPool(pub(crate) Held);

/// In the form that the model's path uses.
#[derive(Debug)]
pub(crate) enum Held {
    /// In host memory.
    Cpu(cpu::pool::Pool),
    /// Tensors on the model's device.
    Tensor(tensor::Pool),
}

impl KvPool {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        match &self.0 {
            Held::Cpu(pool) => pool.blocks(),
            Held::Tensor(pool) => pool.blocks(),
        }
    }

    /// Whether this is a pool of a model of this shape.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        match &self.0 {
            Held::Cpu(pool) => pool.fits(shape),
            Held::Tensor(pool) => pool.fits(shape),
        }
    }

    pub(crate) fn cpu(&mut self) -> Result<&mut cpu::pool::Pool> {
        match &mut self.0 {
            Held::Cpu(pool) => Ok(pool),
            Held::Tensor(_) => Err(other_device()),
        }
    }

    pub(crate) fn tensor(&mut self) -> Result<&mut tensor::Pool> {
        match &mut self.0 {
            Held::Tensor(pool) => Ok(pool),
            Held::Cpu(_) => Err(other_device()),
        }
    }
}

fn other_device() -> Error {
    Error::Argument("a pool of a model on another device".into())
}
