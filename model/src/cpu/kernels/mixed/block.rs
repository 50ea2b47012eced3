//! A block of the output: two tiles of rows by two of columns.

use super::tile::{BLOCK, Sums, TILE, Tile};
use super::unit::Unit;
use crate::cpu::kernels::simd;

/// `out = left · right`; both have two tiles for each step along the inner side, one after the other.
pub(super) fn multiply(unit: Unit, left: &[Tile], right: &[Tile], out: &mut Sums) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Unit::Amx => super::amx::multiply(left, right, out),
        #[cfg(target_arch = "x86_64")]
        Unit::Avx512 => super::avx512::multiply(left, right, out),
        _ => simd(
            #[inline(always)]
            || plain(left, right, out),
        ),
    }
}

#[inline(always)]
fn plain(left: &[Tile], right: &[Tile], out: &mut Sums) {
    *out = [[0.0; BLOCK]; BLOCK];
    for (left, right) in left.chunks_exact(2).zip(right.chunks_exact(2)) {
        for (row, sums) in out.iter_mut().enumerate() {
            for (pair, x) in left[row / TILE][row % TILE].iter().enumerate() {
                let [x_low, x_high] = halves(*x);
                for (sums, right) in sums.chunks_exact_mut(TILE).zip(right) {
                    for (sum, w) in sums.iter_mut().zip(&right[pair]) {
                        let [low, high] = halves(*w);
                        *sum = x_high.mul_add(high, x_low.mul_add(low, *sum));
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn halves(pair: u32) -> [f32; 2] {
    [
        f32::from_bits(pair << 16),
        f32::from_bits(pair & 0xffff_0000),
    ]
}
