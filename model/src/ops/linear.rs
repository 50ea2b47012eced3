//! Matrix product with a weight.

use super::WeightLayout;
use super::storage::{gradient, result, slice, strided, with_slice, with_storage};
use crate::kernels::gemm::{Matrix, Threads, gemm};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `x (N, in)` and a weight.
///
/// The gradient of the weight comes out in the weight's own layout; candle's product with a
/// transposed view would copy it element by element.
pub(super) struct Linear(pub(super) WeightLayout);

impl Linear {
    /// The weight as an (in, out) matrix.
    fn weight<'a>(&self, storage: &'a CpuStorage, layout: &Layout) -> Result<Matrix<'a>> {
        let (rows, columns) = layout.shape().dims2()?;
        let matrix = Matrix {
            values: strided(storage, layout)?,
            rows,
            columns,
            row_stride: layout.stride()[0],
            column_stride: layout.stride()[1],
        };
        Ok(match self.0 {
            WeightLayout::InOut => matrix,
            WeightLayout::OutIn => matrix.transposed(),
        })
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = x_layout.shape().dims2()?;
        let weight = self.weight(weight, weight_layout)?;
        if weight.rows != inputs {
            candle_core::bail!("rows of {inputs} numbers for a layer of {}", weight.rows);
        }
        let x = Matrix::new(slice(x, x_layout)?, rows, inputs);
        let mut out = vec![0.0f32; rows * weight.columns];
        gemm(x, weight, &mut out, Threads::Pool);
        result(out, (rows, weight.columns))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, inputs) = x.dims2()?;
        let outputs = grad.dim(1)?;
        let mut dx = vec![0.0f32; rows * inputs];
        let mut dw = vec![0.0f32; inputs * outputs];
        with_slice(grad, |grad| {
            let grad = Matrix::new(grad, rows, outputs);
            with_storage(weight, |storage, layout| {
                let weight = self.weight(storage, layout)?;
                gemm(grad, weight.transposed(), &mut dx, Threads::Pool);
                Ok(())
            })?;
            with_slice(x, |x| {
                let x = Matrix::new(x, rows, inputs);
                match self.0 {
                    WeightLayout::OutIn => gemm(grad.transposed(), x, &mut dw, Threads::Pool),
                    WeightLayout::InOut => gemm(x.transposed(), grad, &mut dw, Threads::Pool),
                }
                Ok(())
            })
        })?;
        Ok((gradient(dx, x)?, gradient(dw, weight)?))
    }
}
