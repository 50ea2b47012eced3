//! int8 and int4 by AVX2.
#![expect(
    unsafe_code,
    reason = "vector instructions that the pulp crate has no words for"
)]

use super::grouped::{FOURS, GROUP, Rounded, SCALES, Whole};
use super::line::TILE;
use std::arch::x86_64::*;

/// Outputs of a vector.
const WIDTH: usize = 8;
/// Vectors of a tile.
const PARTS: usize = TILE / WIDTH;

/// Sums of a tile's outputs for as many rows as `out` has: 1, 2, 4 or 8.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn block<W: Whole>(tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    match out.len() {
        8 => sums::<W, 8>(tile, x, out),
        4 => sums::<W, 4>(tile, x, out),
        2 => sums::<W, 2>(tile, x, out),
        _ => sums::<W, 1>(tile, x, out),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums<W: Whole, const R: usize>(tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    let mut sums = [[_mm256_setzero_ps(); R]; PARTS];
    let fours = x.fours.as_chunks::<R>().0.as_chunks::<FOURS>().0;
    let scales = x.scales.as_chunks::<R>().0;
    let groups = tile.chunks_exact(W::BYTES + SCALES);
    for ((group, fours), xs) in groups.zip(fours).zip(scales) {
        for (part, sums) in sums.iter_mut().enumerate() {
            let whole = products::<W, R>(group, part, fours);
            let scale = weight_scales::<W>(group, part);
            for r in 0..R {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(xs[r]));
                let sum = _mm256_cvtepi32_ps(whole[r]);
                sums[r] = _mm256_fmadd_ps(sum, scale, sums[r]);
            }
        }
    }
    for (part, sums) in sums.into_iter().enumerate() {
        for (out, sum) in out.iter_mut().zip(sums) {
            let out = &mut out[part * WIDTH..][..WIDTH];
            // SAFETY: eight numbers, one vector.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// The whole sums of a group of eight outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn products<W: Whole, const R: usize>(
    group: &[u8],
    part: usize,
    fours: &[[u32; R]; FOURS],
) -> [__m256i; R] {
    let mut sums = [_mm256_setzero_si256(); R];
    let offset = _mm256_set1_epi8(W::OFFSET as i8);
    if W::BYTES == GROUP * TILE {
        for (i, fours) in fours.iter().enumerate() {
            let w = _mm256_sub_epi8(four(group, part, i), offset);
            add(&mut sums, w, fours);
        }
        return sums;
    }
    let low_half = _mm256_set1_epi8(15);
    for i in 0..FOURS / 2 {
        let both = four(group, part, i);
        let low = _mm256_and_si256(both, low_half);
        add(&mut sums, _mm256_sub_epi8(low, offset), &fours[i]);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_half);
        let high = _mm256_sub_epi8(high, offset);
        add(&mut sums, high, &fours[i + FOURS / 2]);
    }
    sums
}

/// Adds products of fours. The instruction wants one factor above zero: the sign of an activation
/// moves to its weight. Two products are at most `2 · 127 · 127`, which fits 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add<const R: usize>(sums: &mut [__m256i; R], w: __m256i, x: &[u32; R]) {
    let ones = _mm256_set1_epi16(1);
    for r in 0..R {
        let x = _mm256_set1_epi32(x[r] as i32);
        let twos = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(twos, ones));
    }
}

/// Eight outputs' bytes of a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four(group: &[u8], part: usize, i: usize) -> __m256i {
    let bytes = &group[i * 4 * TILE + part * 4 * WIDTH..][..4 * WIDTH];
    // SAFETY: 32 bytes, one vector.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weight_scales<W: Whole>(group: &[u8], part: usize) -> __m256 {
    let scales = &group[W::BYTES + part * 2 * WIDTH..][..2 * WIDTH];
    // SAFETY: 16 bytes, one vector of half the width.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast())) }
}
