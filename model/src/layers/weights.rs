//! Named tensors of a checkpoint, with errors that say which one is wrong.

use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;

/// A [`VarBuilder`] below some prefix.
#[derive(Clone)]
pub(crate) struct Weights<'a> {
    vb: VarBuilder<'a>,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(vb: VarBuilder<'a>) -> Self {
        Self { vb }
    }

    pub(crate) fn below(&self, prefix: impl ToString) -> Self {
        Self::new(self.vb.pp(prefix))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }

    pub(crate) fn get(&self, shape: &[usize], name: &str) -> Result<Tensor> {
        let prefix = self.vb.prefix();
        let full = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        if !self.vb.contains_tensor(name) {
            return Err(Error::MissingTensor { name: full });
        }
        let tensor = self.vb.get_unchecked(name)?;
        if tensor.dims() != shape {
            return Err(Error::TensorShape {
                name: full,
                expected: shape.to_vec(),
                got: tensor.dims().to_vec(),
            });
        }
        Ok(if tensor.is_contiguous() {
            tensor
        } else {
            tensor.contiguous()?
        })
    }
}
