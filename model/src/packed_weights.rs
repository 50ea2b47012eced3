//! One packed product on its own, to measure.

use crate::cpu::kernels::matmul::Weight;
use crate::cpu::kernels::packed::{Packed, Prepared};
use crate::error::{Error, Result};
use crate::layout::WeightLayout;
use crate::weight_type::WeightType;

/// The weights of one product, packed as [`Decoder::pack`](crate::Decoder::pack) packs a model's.
#[derive(Debug)]
pub struct PackedWeights {
    weights: Packed,
    scratch: Prepared,
}

impl PackedWeights {
    /// Packs weights `(out, in)`.
    ///
    /// # Errors
    /// A number of weights that is no multiple of `inputs`, or 0.
    pub fn new(kind: WeightType, values: &[f32], inputs: usize) -> Result<Self> {
        if values.is_empty() || inputs == 0 || !values.len().is_multiple_of(inputs) {
            let len = values.len();
            return Err(Error::Argument(format!("{len} weights of {inputs} inputs")));
        }
        let weight = Weight {
            values,
            layout: WeightLayout::OutIn,
            inputs,
            outputs: values.len() / inputs,
        };
        Ok(Self {
            weights: Packed::new(kind, &[weight]),
            scratch: Prepared::default(),
        })
    }

    /// `x (N, in)` times the weights into `out (N, out)`, on the threads of rayon's pool.
    ///
    /// # Errors
    /// Lengths that do not fit.
    pub fn product(&mut self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let (inputs, outputs) = (self.weights.inputs(), self.weights.outputs());
        if !x.len().is_multiple_of(inputs) || x.len() / inputs * outputs != out.len() {
            let (x, out) = (x.len(), out.len());
            return Err(Error::Argument(format!(
                "a product of {inputs} to {outputs} numbers with rows of {x} and {out} in all"
            )));
        }
        self.weights.product(x, None, out, &mut self.scratch);
        Ok(())
    }

    /// Memory of the weights.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Instruction set of the kernel: avx512, avx2 or portable.
    pub fn kernels(&self) -> &'static str {
        self.weights.level().name()
    }
}
