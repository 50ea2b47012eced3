//! Large matrix products for training: in f32 by the gemm crate, of bf16 factors by [`mixed`].
//!
//! Faster than [`matmul`](super::matmul) on many rows, but a row's last bits depend on the number
//! of rows, so not for serving.
#![expect(
    unsafe_code,
    reason = "gemm takes raw pointers; bounds are checked right before the call"
)]

use super::mixed::{self, Unit};
pub(crate) use super::strided::Matrix;
use crate::precision::Precision;
use rayon::prelude::*;

/// Rows of a product of bf16 factors that one task of the pool computes.
const TASK_ROWS: usize = 256;

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread.
    One,
    /// The rayon pool.
    Pool,
}

/// `out = a · b`, row-major without gaps.
///
/// # Panics
/// When shapes do not fit, or a matrix is larger than its slice.
pub(crate) fn gemm(
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    (precision, threads): (Precision, Threads),
) {
    product(a, b, out, false, (precision, threads));
}

/// `out += a · b` on the calling thread.
///
/// # Panics
/// As [`gemm`].
pub(crate) fn add_gemm(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], precision: Precision) {
    product(a, b, out, true, (precision, Threads::One));
}

fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    add: bool,
    (precision, threads): (Precision, Threads),
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner sizes of a product");
    assert!(a.fits() && b.fits(), "a matrix beyond its slice");
    assert_eq!(Some(out.len()), m.checked_mul(n), "size of a product");
    match (precision, threads) {
        (Precision::F32, _) => f32_product(a, b, out, add, threads),
        (Precision::Bf16, Threads::One) => mixed::product(Unit::best(), a, b, out, add),
        (Precision::Bf16, Threads::Pool) => {
            let tasks = out.par_chunks_mut((TASK_ROWS * n).max(1)).enumerate();
            tasks.for_each(|(task, out)| {
                let first = task * TASK_ROWS;
                let rows = Matrix {
                    values: &a.values[first * a.row_stride..],
                    rows: TASK_ROWS.min(m - first),
                    ..a
                };
                mixed::product(Unit::best(), rows, b, out, add);
            });
        }
    }
}

fn f32_product(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool, threads: Threads) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::Pool => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the caller's assertions say that every element of the two inputs, at the strides given
    // (which are below `isize::MAX`, being offsets inside slices), and of the m × n output lies
    // inside its slice; `out` is initialised and borrowed mutably, so nothing else aliases it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_matrices() {
        let a: Vec<f32> = (0..35).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..42).map(|i| (i as f32).cos()).collect();
        // a is (5, 7); b is columns 1..5 of (7, 6).
        let left = Matrix::new(&a, 5, 7);
        let right = Matrix {
            values: &b[1..],
            rows: 7,
            columns: 4,
            row_stride: 6,
            column_stride: 1,
        };
        for threads in [Threads::One, Threads::Pool] {
            let mut out = vec![f32::NAN; 20];
            gemm(left, right, &mut out, (Precision::F32, threads));
            let mut back = vec![f32::NAN; 20];
            gemm(
                right.transposed(),
                left.transposed(),
                &mut back,
                (Precision::F32, threads),
            );
            let mut doubled = out.clone();
            add_gemm(left, right, &mut doubled, Precision::F32);
            for r in 0..5 {
                for c in 0..4 {
                    let expected: f32 = (0..7).map(|i| a[r * 7 + i] * b[i * 6 + c + 1]).sum();
                    assert!((out[r * 4 + c] - expected).abs() < 1e-5);
                    assert!((back[c * 5 + r] - expected).abs() < 1e-5);
                    assert!((doubled[r * 4 + c] - 2.0 * expected).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_matrix_beyond_its_slice_is_refused() {
        let a = [0.0; 5];
        let b = [0.0; 6];
        let mut out = [0.0; 4];
        gemm(
            Matrix::new(&a, 2, 3),
            Matrix::new(&b, 3, 2),
            &mut out,
            (Precision::F32, Threads::One),
        );
    }
}
