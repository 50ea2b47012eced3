//! Large matrix products for training, of bf16 factors summed in f32.
//!
//! Both factors are rounded to bf16 while they are packed into tiles, which AMX, AVX512-BF16 or
//! plain Rust multiply, whatever the machine has. The last bits of a sum are up to which.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod avx512;
mod block;
mod pack;
mod tile;
mod unit;

use super::strided::Matrix;
use std::cell::RefCell;
use tile::{BLOCK, DEPTH, Sums, Tile};
pub(crate) use unit::Unit;

/// Inner positions that are packed at once: two blocks of so many fit into a core's nearest cache.
const INNER: usize = 512;
/// Rows of the left factor that are packed at once.
const ROWS: usize = 512;

/// `out = a · b`, or `out += a · b`, on the calling thread. Sizes have been checked.
pub(super) fn product(unit: Unit, a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], add: bool) {
    thread_local! {
        static PANELS: RefCell<[Vec<Tile>; 2]> = RefCell::default();
    }
    PANELS.with_borrow_mut(|[left, right]| {
        unit.with_tiles(|| {
            for first in (0..a.columns).step_by(INNER) {
                let inner = first..(first + INNER).min(a.columns);
                pack::columns(unit, b, inner.clone(), right);
                for row in (0..a.rows).step_by(ROWS) {
                    let rows = row..(row + ROWS).min(a.rows);
                    pack::rows(unit, a, rows.clone(), inner.clone(), left);
                    let out = &mut out[rows.start * b.columns..rows.end * b.columns];
                    let steps = inner.len().div_ceil(DEPTH);
                    blocks(unit, (left, right, steps), b.columns, out, add || first > 0);
                }
            }
        });
    });
    if a.columns == 0 && !add {
        out.fill(0.0);
    }
}

/// All blocks of some rows of the output.
fn blocks(
    unit: Unit,
    (left, right, steps): (&[Tile], &[Tile], usize),
    columns: usize,
    out: &mut [f32],
    add: bool,
) {
    let mut sums: Sums = [[0.0; BLOCK]; BLOCK];
    for (c, right) in right.chunks_exact(2 * steps).enumerate() {
        for (r, left) in left.chunks_exact(2 * steps).enumerate() {
            block::multiply(unit, left, right, &mut sums);
            let rows = out[r * BLOCK * columns..].chunks_mut(columns);
            for (out, sums) in rows.zip(&sums) {
                let end = columns.min((c + 1) * BLOCK);
                give(&mut out[c * BLOCK..end], sums, add);
            }
        }
    }
}

/// Sums of a row of a block into its place, as much of it as there is.
fn give(out: &mut [f32], sums: &[f32; BLOCK], add: bool) {
    // Most rows are whole: of a known length they are a few instructions, no call.
    match (<&mut [f32; BLOCK]>::try_from(&mut *out), add) {
        (Ok(out), false) => *out = *sums,
        (Ok(out), true) => (0..BLOCK).for_each(|i| out[i] += sums[i]),
        (Err(_), false) => out.copy_from_slice(&sums[..out.len()]),
        (Err(_), true) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
    }
}

#[cfg(test)]
mod tests;
