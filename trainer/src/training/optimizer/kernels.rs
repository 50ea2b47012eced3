//! The kernels of `kernels.cu`, compiled when they are first used, and launched.
#![expect(unsafe_code, reason = "kernels are launched with pointers")]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::{CudaDevice, CudaStorage, Layout, Result, builder_arg};

use super::coefficients::Coefficients;

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block: what `squares` is written for.
const THREADS: u32 = 256;

/// Numbers in a device's memory, and where.
type Numbers<'a> = (&'a CudaStorage, &'a Layout);
type NumbersMut<'a> = (&'a mut CudaStorage, &'a Layout);

/// Moments `(2, N)` take in a gradient of N numbers.
pub(super) fn take_in(
    moments: NumbersMut<'_>,
    grad: Numbers<'_>,
    step: Coefficients,
) -> Result<()> {
    let device = grad.0.device().clone();
    let function = function(&device, "take_in")?;
    let (of_moments, of_grad) = (range(moments.1)?, range(grad.1)?);
    let count = of_grad.len();
    same_size(of_moments.len(), 2 * count)?;
    let mut both = moments.0.as_cuda_slice_mut::<f32>()?.slice_mut(of_moments);
    let grad = grad.0.as_cuda_slice::<f32>()?.slice(of_grad);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut both);
    launch.arg(&grad);
    builder_arg!(launch, count as i64, step.clip, step.beta1, step.beta2);
    // SAFETY: the arguments are those of `take_in`; sizes are checked above.
    unsafe { launch.launch(blocks(count.div_ceil(THREADS as usize))) }.w()?;
    Ok(())
}

/// A parameter of N numbers moves by its moments `(2, N)`.
pub(super) fn move_parameter(
    param: NumbersMut<'_>,
    moments: Numbers<'_>,
    step: Coefficients,
) -> Result<()> {
    let device = moments.0.device().clone();
    let function = function(&device, "move")?;
    let (of_param, of_moments) = (range(param.1)?, range(moments.1)?);
    let count = of_param.len();
    same_size(of_moments.len(), 2 * count)?;
    let mut param = param.0.as_cuda_slice_mut::<f32>()?.slice_mut(of_param);
    let both = moments.0.as_cuda_slice::<f32>()?.slice(of_moments);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut param);
    launch.arg(&both);
    builder_arg!(launch, count as i64, step.decay, step.rate);
    builder_arg!(launch, step.second_scale, step.eps);
    // SAFETY: the arguments are those of `move`; sizes are checked above.
    unsafe { launch.launch(blocks(count.div_ceil(THREADS as usize))) }.w()?;
    Ok(())
}

/// The sum of squares of each `chunk` numbers of a gradient; one f64 each.
pub(super) fn squares(sums: NumbersMut<'_>, grad: Numbers<'_>, chunk: usize) -> Result<()> {
    let device = grad.0.device().clone();
    let function = function(&device, "squares")?;
    let (of_sums, of_grad) = (range(sums.1)?, range(grad.1)?);
    let (count, chunks) = (of_grad.len(), of_sums.len());
    same_size(chunks, count.div_ceil(chunk))?;
    let mut sums = sums.0.as_cuda_slice_mut::<f64>()?.slice_mut(of_sums);
    let grad = grad.0.as_cuda_slice::<f32>()?.slice(of_grad);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut sums);
    launch.arg(&grad);
    builder_arg!(launch, count as i64, chunk as i32);
    // SAFETY: the arguments are those of `squares`; sizes are checked above.
    unsafe { launch.launch(blocks(chunks)) }.w()?;
    Ok(())
}

fn same_size(found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => candle_core::bail!("{found} numbers where {expected} belong"),
    }
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a parameter, moment or gradient is not contiguous"),
    }
}

fn blocks(count: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    /// What was compiled.
    static COMPILED: Mutex<Option<String>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let ptx = match &mut *compiled {
        Some(ptx) => ptx,
        none => none.insert(compile_ptx(SOURCE).w()?.to_src()),
    };
    let function = device.get_or_load_custom_func(name, "optimizer", ptx)?;
    Ok(function.into_cuda_function())
}
