//! bf16 weights.
//!
//! A tile holds pairs of inputs, 32 outputs abreast. An output is one sum over the pairs in order;
//! activations are rounded to bf16, too. How the two products of a pair are rounded is up to the
//! level: the same on all machines of a level, and whatever else is computed in the call.
#![expect(
    unsafe_code,
    reason = "vector instructions that the pulp crate has no words for"
)]

use super::level::{Level, run};
use super::line::TILE;
use pulp::{Simd, WithSimd};

/// Pairs of inputs of a row.
pub(crate) fn pairs(inputs: usize) -> usize {
    inputs.div_ceil(2)
}

/// Rounds to bf16, to even; what is no number stays none.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() {
        (bits >> 16) | 0x40
    } else {
        rounded
    }
}

#[inline(always)]
fn pair(x: &[f32]) -> u32 {
    let high = x.get(1).map_or(0, |x| round(*x));
    round(x[0]) | high << 16
}

/// A row of weights into column `column` of a tile.
pub(crate) fn pack(row: &[f32], tile: &mut [[u32; TILE]], column: usize) {
    for (line, x) in tile.iter_mut().zip(row.chunks(2)) {
        line[column] = pair(x);
    }
}

/// The opposite of [`pack`].
pub(crate) fn unpack(tile: &[[u32; TILE]], column: usize, row: &mut [f32]) {
    for (line, x) in tile.iter().zip(row.chunks_mut(2)) {
        let [low, high] = halves(line[column]);
        x[0] = low;
        if let Some(x) = x.get_mut(1) {
            *x = high;
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

/// R rows of activations, rounded, pairs side by side.
#[inline(always)]
pub(crate) fn prepare(x: &[f32], rows: usize, out: &mut [u32]) {
    let inputs = x.len() / rows;
    for (r, x) in x.chunks_exact(inputs).enumerate() {
        let out = out[r..].iter_mut().step_by(rows);
        for (out, x) in out.zip(x.chunks(2)) {
            *out = pair(x);
        }
    }
}

/// Sums of a tile's outputs for as many rows as `out` has: 1, 2, 4 or 8.
pub(crate) fn block(level: Level, tile: &[[u32; TILE]], x: &[u32], out: &mut [[f32; TILE]]) {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 {
        // SAFETY: a level is only made where `Level::available` found its instructions, those of
        // AVX512-BF16 for weights in bf16.
        unsafe { avx512::block(tile, x, out) };
        return;
    }
    run(level, Block { tile, x, out });
}

struct Block<'a> {
    tile: &'a [[u32; TILE]],
    x: &'a [u32],
    out: &'a mut [[f32; TILE]],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.out.len() {
            8 => self.sums::<S, 8>(simd),
            4 => self.sums::<S, 4>(simd),
            2 => self.sums::<S, 2>(simd),
            _ => self.sums::<S, 1>(simd),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(self, simd: S) {
        let x = self.x.as_chunks::<R>().0;
        let (sixteen, upper) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
        for v in 0..TILE / S::U32_LANES {
            let mut sums = [simd.splat_f32s(0.0); R];
            for (line, x) in self.tile.iter().zip(x) {
                let w = S::as_simd_u32s(line).0[v];
                let low = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(w, sixteen));
                let high = simd.transmute_f32s_u32s(simd.and_u32s(w, upper));
                for r in 0..R {
                    let [first, second] = halves(x[r]).map(|x| simd.splat_f32s(x));
                    let sum = simd.mul_add_f32s(first, low, sums[r]);
                    sums[r] = simd.mul_add_f32s(second, high, sum);
                }
            }
            for (out, sum) in self.out.iter_mut().zip(sums) {
                S::as_mut_simd_f32s(out).0[v] = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::super::line::TILE;
    use crate::cpu::kernels::ahead::look_ahead;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn block(tile: &[[u32; TILE]], x: &[u32], out: &mut [[f32; TILE]]) {
        match out.len() {
            8 => sums::<8>(tile, x, out),
            4 => sums::<4>(tile, x, out),
            2 => sums::<2>(tile, x, out),
            _ => sums::<1>(tile, x, out),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn sums<const R: usize>(tile: &[[u32; TILE]], x: &[u32], out: &mut [[f32; TILE]]) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for (line, x) in tile.iter().zip(x.as_chunks::<R>().0) {
            look_ahead(line);
            let [low, high] = pairs_of(line);
            for r in 0..R {
                let x = bf16(_mm512_set1_epi32(x[r] as i32));
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], low, x);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], high, x);
            }
        }
        for (out, [low, high]) in out.iter_mut().zip(sums) {
            // SAFETY: a row of a tile has 32 numbers, two vectors of 16.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), low);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), high);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs_of(line: &[u32; TILE]) -> [__m512bh; 2] {
        // SAFETY: a line has 32 pairs, two vectors of 16.
        unsafe {
            [
                bf16(_mm512_loadu_si512(line.as_ptr().cast())),
                bf16(_mm512_loadu_si512(line.as_ptr().add(16).cast())),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(bits: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes of which every value is valid.
        unsafe { std::mem::transmute(bits) }
    }
}
