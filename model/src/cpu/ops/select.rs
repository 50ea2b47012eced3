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

    /// The gradient of the rows from `first` on of a table: each row of `grad` is added where it
    /// came from, in order. None for a table that is not trained.
    fn backward(&self, grad: &Tensor, table: &Tensor, first: usize) -> Result<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let (rows, width) = table.dims2()?;
        let mut values = vec![0.0f32; rows * width];
        with_slice(grad, |grad| {
            for (&i, grad) in self.index.iter().zip(grad.chunks(width)) {
                let Some(row) = (i as usize).checked_sub(first).filter(|&row| row < rows) else {
                    continue;
                };
                let to = &mut values[row * width..(row + 1) * width];
                for (to, g) in to.iter_mut().zip(grad) {
                    *to += g;
                }
            }
            Ok(())
        })?;
        gradient(values, table)
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
        self.backward(grad, table, 0)
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
        Ok((
            self.backward(grad, first, 0)?,
            self.backward(grad, second, first.dim(0)?)?,
        ))
    }
}
