//! Rows of one or two tables by index.

use crate::storage::{gradient, result, slice, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// Row `index[i]` of the first table, or of the second from the first's end on. The index is
/// checked before.
pub(super) struct SelectRows {
    pub(super) index: Vec<u32>,
}

impl SelectRows {
    fn forward(&self, first: &[f32], second: &[f32], width: usize) -> Result<(CpuStorage, Shape)> {
        let mut out = Vec::with_capacity(self.index.len() * width);
        for &i in &self.index {
            let start = i as usize * width;
            out.extend_from_slice(match start.checked_sub(first.len()) {
                None => &first[start..start + width],
                Some(start) => &second[start..start + width],
            });
        }
        result(out, (self.index.len(), width))
    }

    /// Adds each row of the gradient where it came from, in order.
    fn backward(&self, grad: &Tensor, first: &mut [f32], second: &mut [f32]) -> Result<()> {
        let width = grad.dim(1)?;
        with_slice(grad, |grad| {
            for (&i, grad) in self.index.iter().zip(grad.chunks(width)) {
                let start = i as usize * width;
                let to = match start.checked_sub(first.len()) {
                    None => &mut first[start..start + width],
                    Some(start) => &mut second[start..start + width],
                };
                for (to, g) in to.iter_mut().zip(grad) {
                    *to += g;
                }
            }
            Ok(())
        })
    }
}

impl CustomOp1 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        self.forward(slice(table, layout)?, &[], width)
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut values = vec![0.0f32; table.elem_count()];
        self.backward(grad, &mut values, &mut [])?;
        gradient(values, table)
    }
}

impl CustomOp2 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows-of-two"
    }

    fn cpu_fwd(
        &self,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = first_layout.shape().dims2()?.1;
        let (first, second) = (slice(first, first_layout)?, slice(second, second_layout)?);
        self.forward(first, second, width)
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dfirst = vec![0.0f32; first.elem_count()];
        let mut dsecond = vec![0.0f32; second.elem_count()];
        self.backward(grad, &mut dfirst, &mut dsecond)?;
        Ok((gradient(dfirst, first)?, gradient(dsecond, second)?))
    }
}
