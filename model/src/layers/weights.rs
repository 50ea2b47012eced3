//! Named tensors of a checkpoint, with errors that say which one is wrong.

use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;

/// Where a model's tensors come from when it is built.
pub(crate) trait Source {
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// A tensor that there is.
    fn get(&self, name: &str) -> Result<Tensor>;
}

impl Source for VarBuilder<'_> {
    fn contains(&self, name: &str) -> bool {
        self.contains_tensor(name)
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        Ok(self.get_unchecked(name)?)
    }
}

/// The tensors below some prefix.
#[derive(Clone)]
pub(crate) struct Weights<'a> {
    source: &'a dyn Source,
    prefix: String,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            prefix: String::new(),
        }
    }

    pub(crate) fn below(&self, prefix: impl ToString) -> Self {
        Self {
            source: self.source,
            prefix: self.full(&prefix.to_string()),
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.full(name))
    }

    pub(crate) fn get(&self, shape: &[usize], name: &str) -> Result<Tensor> {
        let name = self.full(name);
        if !self.source.contains(&name) {
            return Err(Error::MissingTensor { name });
        }
        let tensor = self.source.get(&name)?;
        if tensor.dims() != shape {
            return Err(Error::TensorShape {
                name,
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

    fn full(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        }
    }
}
