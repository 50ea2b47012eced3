//! The numbers of layers: borrowed from their tensors for one call, or packed for serving.

use crate::cpu::kernels::matmul::{Columns, Weight, matmul};
use crate::cpu::kernels::packed::{Packed, Prepared};
use crate::cpu::kernels::{rows, simd};
use crate::error::Result;
use crate::layers::{HeadNorms, Linear, Norm};
use crate::layout::Heads;
use crate::layout::WeightLayout;
use crate::storage::Numbers;
use crate::weight_type::WeightType;

/// A linear layer.
pub(crate) struct LinearNumbers<'a> {
    weight: Numbers<'a>,
    bias: Option<Numbers<'a>>,
    layout: WeightLayout,
    inputs: usize,
    outputs: usize,
}

impl<'a> LinearNumbers<'a> {
    pub(crate) fn of(linear: &'a Linear) -> Result<Self> {
        let (a, b) = linear.weight.dims2()?;
        let (inputs, outputs) = match linear.layout {
            WeightLayout::OutIn => (b, a),
            WeightLayout::InOut => (a, b),
        };
        Ok(Self {
            weight: Numbers::of(&linear.weight)?,
            bias: linear.bias.as_ref().map(Numbers::of).transpose()?,
            layout: linear.layout,
            inputs,
            outputs,
        })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x (N, in)` times the weight, plus the bias, into some columns of N rows; a row's result
    /// does not depend on the others.
    pub(crate) fn apply(&self, x: &[f32], out: Columns<'_>, scratch: &mut Vec<f32>) {
        let bias = self.bias.as_ref().map(Numbers::values);
        matmul(x, self.weight(), bias, out, scratch);
    }

    fn weight(&self) -> Weight<'_> {
        Weight {
            values: self.weight.values(),
            layout: self.layout,
            inputs: self.inputs,
            outputs: self.outputs,
        }
    }
}

/// Linear layers of the same input, packed side by side as one.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    pub(crate) weight: Packed,
    /// Of all layers or of none.
    bias: Option<Vec<f32>>,
}

impl PackedLinear {
    pub(crate) fn new(kind: WeightType, layers: &[&Linear]) -> Result<Self> {
        let numbers: Vec<LinearNumbers<'_>> = layers
            .iter()
            .map(|linear| LinearNumbers::of(linear))
            .collect::<Result<_>>()?;
        let weights: Vec<Weight<'_>> = numbers.iter().map(LinearNumbers::weight).collect();
        let biased = numbers.iter().any(|layer| layer.bias.is_some());
        let bias = biased.then(|| {
            let bias_of = |layer: &LinearNumbers<'_>| match &layer.bias {
                Some(bias) => bias.values().to_vec(),
                None => vec![0.0; layer.outputs],
            };
            numbers.iter().flat_map(bias_of).collect()
        });
        Ok(Self {
            weight: Packed::new(kind, &weights),
            bias,
        })
    }

    /// `x (N, in)` times the weights, plus the bias, into `out (N, out)`; a row's result does not
    /// depend on the others.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32], scratch: &mut Prepared) {
        self.weight.product(x, self.bias.as_deref(), out, scratch);
    }
}

/// A norm.
pub(crate) struct NormNumbers<'a> {
    weight: Numbers<'a>,
    bias: Option<Numbers<'a>>,
    eps: f32,
}

impl<'a> NormNumbers<'a> {
    pub(crate) fn of(norm: &'a Norm) -> Result<Self> {
        let (weight, bias, eps) = match norm {
            Norm::Rms { weight, eps } => (weight, None, *eps),
            Norm::Layer { weight, bias, eps } => (weight, Some(bias), *eps),
        };
        Ok(Self {
            weight: Numbers::of(weight)?,
            bias: bias.map(Numbers::of).transpose()?,
            eps,
        })
    }

    pub(crate) fn width(&self) -> usize {
        self.weight.values().len()
    }

    /// The norm of every row of `x`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32]) {
        self.borrow().apply(x, out);
    }

    /// The numbers for other threads to read, which a lock of a tensor cannot be given to.
    pub(crate) fn borrow(&self) -> NormSlices<'_> {
        NormSlices {
            weight: self.weight.values(),
            bias: self.bias.as_ref().map(Numbers::values),
            eps: self.eps,
        }
    }
}

/// A norm's plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct NormSlices<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl NormSlices<'_> {
    /// The norm of every row of `x`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32]) {
        norm_rows(x, self.weight, self.bias, self.eps, out);
    }
}

/// The norms of query and key heads.
pub(crate) struct HeadNormNumbers<'a> {
    q: NormNumbers<'a>,
    k: NormNumbers<'a>,
}

impl<'a> HeadNormNumbers<'a> {
    pub(crate) fn of(norms: &'a HeadNorms) -> Result<Self> {
        Ok(Self {
            q: NormNumbers::of(&norms.q)?,
            k: NormNumbers::of(&norms.k)?,
        })
    }

    /// The norm of every query and key head of joint rows, in place.
    pub(crate) fn apply(&self, heads: Heads, joint: &mut [f32]) {
        let (keys, values) = (heads.key(0), heads.value(0));
        simd(
            #[inline(always)]
            || {
                for row in joint.chunks_mut(heads.width()) {
                    for (norm, part) in [(&self.q, 0..keys), (&self.k, keys..values)] {
                        for head in row[part].chunks_mut(heads.head_dim) {
                            rows::rms_norm_in_place(head, norm.weight.values(), norm.eps);
                        }
                    }
                }
            },
        );
    }
}

/// RMSNorm of every row, or LayerNorm where there is a bias.
pub(crate) fn norm_rows(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    simd(
        #[inline(always)]
        || {
            for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
                match bias {
                    None => rows::rms_norm(x, weight, eps, out),
                    Some(bias) => rows::layer_norm(x, weight, bias, eps, out),
                }
            }
        },
    );
}
