//! The kernels of `kernels.cu`, compiled for a model's heads and types when they are first used, and
//! launched.
#![expect(unsafe_code, reason = "kernels are launched with pointers")]

use super::rows::{Sizes, row_stride};
use crate::kv_blocks::KV_BLOCK_POSITIONS;
use candle_core::backend::BackendStorage;
use candle_core::builder_arg;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::Mutex;

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block: what `attend` is written for.
const THREADS: u32 = 256;

/// Rows of numbers that are neighbours.
type Rows<'a> = (&'a CudaStorage, &'a Layout);

/// A float type of the kernels.
trait Element: CudaDType + DeviceRepr {
    /// Its name in `kernels.cu`.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "float";
}

impl Element for f16 {
    const NAME: &'static str = "f16";
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

/// Calls a function of one or two element types by those of two tensors.
macro_rules! by_types {
    ($of:expr, $f:ident, $($args:expr),*) => {
        match $of {
            (DType::F32, DType::F32) => $f::<f32, f32>($($args),*),
            (DType::F32, DType::F16) => $f::<f32, f16>($($args),*),
            (DType::F16, DType::F16) => $f::<f16, f16>($($args),*),
            (DType::F16, DType::F32) => $f::<f16, f32>($($args),*),
            (DType::BF16, DType::BF16) => $f::<bf16, bf16>($($args),*),
            (DType::BF16, DType::F32) => $f::<bf16, f32>($($args),*),
            (of, held) => candle_core::bail!("no attention of {of:?} over {held:?}"),
        }
    };
}

/// As [`Plan::write`](super::ragged::Plan::write); `held` with where its values begin.
pub(super) fn write(
    sizes: Sizes,
    held: (&mut CudaStorage, usize),
    rows: (Rows<'_>, Rows<'_>),
    words: &CudaStorage,
) -> Result<()> {
    let types = (rows.0.0.dtype(), held.0.dtype());
    by_types!(types, write_of, sizes, held, rows, words)
}

fn write_of<T: Element, H: Element>(
    sizes: Sizes,
    (held, of_values): (&mut CudaStorage, usize),
    ((keys, key_layout), (values, value_layout)): (Rows<'_>, Rows<'_>),
    words: &CudaStorage,
) -> Result<()> {
    let device = keys.device().clone();
    let function = function::<T, H>(
        &device,
        "write_rows",
        sizes.heads.head_dim,
        sizes.heads.group(),
    )?;
    let keys = keys
        .as_cuda_slice::<T>()?
        .slice(key_layout.start_offset()..);
    let values = values
        .as_cuda_slice::<T>()?
        .slice(value_layout.start_offset()..);
    let words = words.as_cuda_slice::<u32>()?;
    let held = held.as_cuda_slice_mut::<H>()?;
    let (mut held_keys, mut held_values) = held.split_at_mut(of_values);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&keys);
    builder_arg!(launch, row_stride(key_layout)? as i64);
    launch.arg(&values);
    builder_arg!(launch, row_stride(value_layout)? as i64);
    launch.arg(&mut held_keys);
    launch.arg(&mut held_values);
    builder_arg!(launch, sizes.heads.num_kv_heads as i32);
    launch.arg(words);
    builder_arg!(launch, sizes.rows as i32, sizes.frequencies as i32);
    // SAFETY: the arguments are those of `write_rows`; slots are below the pool's, which `Decoder::step`
    // checks, and rows as wide as the plan's heads, by the shapes of the weights.
    unsafe { launch.launch(blocks_of_threads(sizes.rows, 1)) }.w()?;
    Ok(())
}

/// As [`Plan::attend`](super::ragged::Plan::attend); `held` with where its values begin.
pub(super) fn attend(
    sizes: Sizes,
    queries: Rows<'_>,
    held: (&CudaStorage, usize),
    words: &CudaStorage,
) -> Result<CudaStorage> {
    let types = (queries.0.dtype(), held.0.dtype());
    by_types!(types, attend_of, sizes, queries, held, words)
}

fn attend_of<T: Element, H: Element>(
    sizes: Sizes,
    (queries, layout): Rows<'_>,
    (held, of_values): (&CudaStorage, usize),
    words: &CudaStorage,
) -> Result<CudaStorage> {
    let (device, heads) = (queries.device().clone(), sizes.heads);
    let function = function::<T, H>(&device, "attend", heads.head_dim, heads.group())?;
    let queries = queries.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
    let held = held.as_cuda_slice::<H>()?;
    let (held_keys, held_values) = held.split_at(of_values);
    let words = words.as_cuda_slice::<u32>()?;
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { device.alloc::<T>(sizes.rows * heads.q_width()) }?;
    // Scores are exponents of 2.
    let scale = heads.scale() * std::f32::consts::LOG2_E;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&queries);
    builder_arg!(launch, row_stride(layout)? as i64);
    launch.arg(&held_keys);
    launch.arg(&held_values);
    builder_arg!(launch, heads.num_kv_heads as i32);
    launch.arg(words);
    builder_arg!(launch, sizes.rows as i32, sizes.frequencies as i32, scale);
    launch.arg(&mut out);
    // SAFETY: the arguments are those of `attend`; blocks are below the pool's, which `Decoder::step`
    // checks, and every row sees a position, its own.
    unsafe { launch.launch(blocks_of_threads(sizes.rows, heads.num_kv_heads)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// As [`gate`](super::ragged::gate).
pub(super) fn gate(gate: Rows<'_>, up: Rows<'_>) -> Result<CudaStorage> {
    let types = (gate.0.dtype(), up.0.dtype());
    by_types!(types, gate_of, gate, up)
}

fn gate_of<T: Element, H: Element>(
    (gate, gate_layout): Rows<'_>,
    (up, up_layout): Rows<'_>,
) -> Result<CudaStorage> {
    let device = gate.device().clone();
    let (rows, width) = gate_layout.shape().dims2()?;
    let function = function::<T, T>(&device, "gate_rows", 2, 1)?;
    let gate = gate
        .as_cuda_slice::<T>()?
        .slice(gate_layout.start_offset()..);
    let up = up.as_cuda_slice::<T>()?.slice(up_layout.start_offset()..);
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { device.alloc::<T>(rows * width) }?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&gate);
    builder_arg!(launch, row_stride(gate_layout)? as i64);
    launch.arg(&up);
    builder_arg!(launch, row_stride(up_layout)? as i64, width as i32);
    launch.arg(&mut out);
    // SAFETY: the arguments are those of `gate_rows`, both of one shape.
    unsafe { launch.launch(blocks_of_threads(rows, 1)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// Of each row of logits the column of the largest, as `best_of_rows` says.
pub(crate) fn best(logits: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let types = (logits.dtype(), logits.dtype());
    by_types!(types, best_of, logits, layout)
}

fn best_of<T: Element, H: Element>(logits: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let device = logits.device().clone();
    let (rows, width) = layout.shape().dims2()?;
    let function = function::<T, T>(&device, "best_of_rows", 2, 1)?;
    let logits = logits.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { device.alloc::<u32>(rows) }?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&logits);
    builder_arg!(launch, width as i32);
    launch.arg(&mut out);
    // SAFETY: the arguments are those of `best_of_rows`; the logits are contiguous, as `best_of_rows` of
    // `best.rs` makes them.
    unsafe { launch.launch(blocks_of_threads(rows, 1)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// Adds row i of `rows (N, D)` to row `index[i]` of `to (V, D)`, f32 and contiguous. Rows that go to the
/// same one are added in no order.
pub(super) fn add_rows(to: &mut CudaStorage, rows: Rows<'_>, index: Rows<'_>) -> Result<()> {
    let device = to.device().clone();
    let (count, width) = rows.1.shape().dims2()?;
    let function = function::<f32, f32>(&device, "add_rows", 2, 1)?;
    let rows = rows
        .0
        .as_cuda_slice::<f32>()?
        .slice(rows.1.start_offset()..);
    let index = index
        .0
        .as_cuda_slice::<u32>()?
        .slice(index.1.start_offset()..);
    let to = to.as_cuda_slice_mut::<f32>()?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&rows);
    launch.arg(&index);
    builder_arg!(launch, width as i32);
    launch.arg(to);
    // SAFETY: the arguments are those of `add_rows`; indices are below the rows of `to`, which `select_rows`
    // checks.
    unsafe { launch.launch(blocks_of_threads(count, 1)) }.w()?;
    Ok(())
}

fn blocks_of_threads(x: usize, y: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (x as u32, y as u32, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// A kernel for these types and heads.
fn function<T: Element, H: Element>(
    device: &CudaDevice,
    name: &str,
    head_dim: usize,
    group: usize,
) -> Result<CudaFunction> {
    /// What was compiled, by its options.
    static COMPILED: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
    let (of, held) = (T::NAME, H::NAME);
    let module = format!("ragged-{of}-{held}-{head_dim}-{group}");
    let mut compiled = COMPILED.lock().unwrap_or_else(|lock| lock.into_inner());
    let compiled = compiled.get_or_insert_default();
    if !compiled.contains_key(&module) {
        let options = CompileOptions {
            options: vec![
                format!("-DELEMENT={of}"),
                format!("-DHELD={held}"),
                format!("-DHEAD_DIM={head_dim}"),
                format!("-DGROUP={group}"),
                format!("-DBLOCK={KV_BLOCK_POSITIONS}"),
            ],
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(SOURCE, options).w()?;
        compiled.insert(module.clone(), ptx.to_src());
    }
    let function = device.get_or_load_custom_func(name, &module, &compiled[&module])?;
    Ok(function.into_cuda_function())
}
