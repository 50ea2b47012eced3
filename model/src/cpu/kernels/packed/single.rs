//! f32 weights.
//!
//! An output is summed in [`LANES`] partial sums over the inputs, input i in sum `i % LANES`, which
//! are then added as a balanced tree: the order of [`math::dot`](crate::cpu::kernels::math::dot),
//! bit for bit. A tile holds the inputs of one partial sum after the other, so that every sum is
//! one walk through memory, 32 outputs abreast.

use super::level::{Level, run};
use super::line::TILE;
use crate::cpu::kernels::LANES;
use crate::cpu::kernels::ahead::look_ahead;
use pulp::{Simd, WithSimd};

/// Partial sums in the order in which a stack adds them up as a balanced tree.
const ORDER: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];
/// Most sums that wait for their other half.
const DEPTH: usize = 5;

/// The inputs in the order of a tile.
pub(crate) fn order(inputs: usize) -> impl Iterator<Item = usize> {
    ORDER
        .into_iter()
        .flat_map(move |lane| (lane..inputs).step_by(LANES))
}

/// A row of weights into column `column` of a tile.
pub(crate) fn pack(row: &[f32], tile: &mut [[f32; TILE]], column: usize) {
    for (line, input) in tile.iter_mut().zip(order(row.len())) {
        line[column] = row[input];
    }
}

/// The opposite of [`pack`].
pub(crate) fn unpack(tile: &[[f32; TILE]], column: usize, row: &mut [f32]) {
    for (line, input) in tile.iter().zip(order(row.len())) {
        row[input] = line[column];
    }
}

/// R rows of activations side by side in the order of a tile.
pub(crate) fn prepare(x: &[f32], rows: usize, out: &mut [f32]) {
    let inputs = x.len() / rows;
    for (r, x) in x.chunks_exact(inputs).enumerate() {
        let out = out[r..].iter_mut().step_by(rows);
        for (out, input) in out.zip(order(inputs)) {
            *out = x[input];
        }
    }
}

/// Sums of a tile's outputs for as many rows as `out` has: 1, 2, 4 or 8.
pub(crate) fn block(level: Level, tile: &[[f32; TILE]], x: &[f32], out: &mut [[f32; TILE]]) {
    run(level, Block { tile, x, out });
}

struct Block<'a> {
    tile: &'a [[f32; TILE]],
    x: &'a [f32],
    out: &'a mut [[f32; TILE]],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES >= 16 {
            self.rows::<S, 2>(simd);
        } else {
            self.rows::<S, 1>(simd);
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(self, simd: S) {
        match self.out.len() {
            8 => self.sums::<S, V, 8>(simd),
            4 => self.sums::<S, V, 4>(simd),
            2 => self.sums::<S, V, 2>(simd),
            _ => self.sums::<S, V, 1>(simd),
        }
    }

    /// V vectors of outputs at a time.
    #[inline(always)]
    fn sums<S: Simd, const V: usize, const R: usize>(self, simd: S) {
        let inputs = self.tile.len();
        let x = &self.x.as_chunks::<R>().0[..inputs];
        for start in (0..TILE / S::F32_LANES).step_by(V) {
            let mut stack = [[[simd.splat_f32s(0.0); V]; R]; DEPTH];
            let mut height = 0;
            let mut first = 0;
            for (n, lane) in ORDER.into_iter().enumerate() {
                let end = first + (inputs + LANES - 1 - lane) / LANES;
                let mut sums = walk(simd, &self.tile[first..end], start, &x[first..end]);
                first = end;
                for _ in 0..n.trailing_ones() {
                    height -= 1;
                    for r in 0..R {
                        for v in 0..V {
                            sums[r][v] = simd.add_f32s(stack[height][r][v], sums[r][v]);
                        }
                    }
                }
                stack[height] = sums;
                height += 1;
            }
            for (out, sums) in self.out.iter_mut().zip(&stack[0]) {
                S::as_mut_simd_f32s(out).0[start..start + V].copy_from_slice(sums);
            }
        }
    }
}

/// One partial sum of every output and row.
#[inline(always)]
fn walk<S: Simd, const V: usize, const R: usize>(
    simd: S,
    tile: &[[f32; TILE]],
    start: usize,
    x: &[[f32; R]],
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (line, x) in tile.iter().zip(x) {
        look_ahead(line);
        let line = &S::as_simd_f32s(line).0[start..start + V];
        for r in 0..R {
            let x = simd.splat_f32s(x[r]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(x, line[v], sums[r][v]);
            }
        }
    }
    sums
}
