//! Numeric loops on plain slices, for CPUs.
//!
//! Every sum is taken over [`LANES`] interleaved partial sums with fused multiply-add, and the
//! partial sums are added in one fixed order. So a result depends on its own inputs only: not on
//! the number of rows in the call, the number of threads, or the width of the machine's vectors.
//! The loops are plain Rust; [`simd`] compiles them for the best instruction set of the machine.

pub(crate) mod ahead;
pub(crate) mod attention;
pub(crate) mod causal;
pub(crate) mod gemm;
pub(crate) mod gradients;
pub(crate) mod half;
pub(crate) mod math;
pub(crate) mod matmul;
mod mixed;
pub(crate) mod packed;
pub(crate) mod paged;
pub(crate) mod rows;
mod strided;
pub(crate) mod tree;

/// Partial sums of a reduction: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// Runs a closure compiled for the best vector instructions this machine has. What the closure
/// calls must be `#[inline(always)]`, or it is compiled for the baseline (and a `mul_add` there
/// is a slow library call).
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
