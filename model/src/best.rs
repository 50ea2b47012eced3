//! The token of the largest logit, found where the logits are.

use crate::error::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

/// In place of a token where logits are no numbers.
pub(crate) const NO_BEST: u32 = u32::MAX;

/// For each row of logits `(N, V)` the column of the largest, the first of several; [`NO_BEST`] where one
/// is NaN or the largest is not finite.
pub(crate) fn best_of_rows(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.contiguous()?.apply_op1_no_bwd(&Best)?.to_vec1()?)
}

struct Best;

impl CustomOp1 for Best {
    fn name(&self) -> &'static str {
        "best-of-rows"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let numbers = layout.start_offset()..layout.start_offset() + rows * width;
        fn all<T: Copy + Sync>(x: &[T], width: usize, f32: impl Fn(T) -> f32 + Sync) -> Vec<u32> {
            let rows = x.par_chunks(width.max(1));
            rows.map(|row| best(row.iter().map(|x| f32(*x)))).collect()
        }
        let best = match logits {
            CpuStorage::F32(x) => all(&x[numbers], width, |x| x),
            CpuStorage::F16(x) => all(&x[numbers], width, half::f16::to_f32),
            CpuStorage::BF16(x) => all(&x[numbers], width, half::bf16::to_f32),
            _ => candle_core::bail!("logits of type {:?}", DType::F32),
        };
        Ok((CpuStorage::U32(best), rows.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let best = crate::tensor::best_on_cuda(logits, layout)?;
        Ok((best, layout.shape().dims2()?.0.into()))
    }
}

fn best(logits: impl Iterator<Item = f32>) -> u32 {
    let (mut best, mut largest, mut nan) = (NO_BEST, f32::NEG_INFINITY, false);
    for (i, x) in logits.enumerate() {
        nan |= x.is_nan();
        if x > largest {
            (best, largest) = (i as u32, x);
        }
    }
    match nan || largest == f32::INFINITY {
        true => NO_BEST,
        false => best,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_first_of_the_largest_and_none_where_there_is_no_number() {
        let (nan, endless) = (f32::NAN, f32::INFINITY);
        let rows = [
            [0.5, 2.0, -1.0, 2.0],
            [-3.0, -4.0, -endless, -3.0],
            [1.0, nan, 0.0, 0.0],
            [1.0, endless, 0.0, 0.0],
            [-endless; 4],
        ];
        let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
        let expected = [1, 0, NO_BEST, NO_BEST, NO_BEST];
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let logits = logits.to_dtype(dtype).unwrap();
            assert_eq!(best_of_rows(&logits).unwrap(), expected);
        }
    }
}
