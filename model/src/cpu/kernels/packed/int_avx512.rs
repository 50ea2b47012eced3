//! int8 and int4 by AVX512-VNNI: four products and their sum in one instruction.
#![expect(
    unsafe_code,
    reason = "vector instructions that the pulp crate has no words for"
)]

use super::grouped::{FOURS, GROUP, Rounded, SCALES, Whole};
use super::line::TILE;
use crate::cpu::kernels::ahead::look_ahead;
use std::arch::x86_64::*;

/// Sums of a tile's outputs for as many rows as `out` has: 1, 2, 4 or 8.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) fn block<W: Whole>(tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    match out.len() {
        8 => sums::<W, 8>(tile, x, out),
        4 => sums::<W, 4>(tile, x, out),
        2 => sums::<W, 2>(tile, x, out),
        _ => sums::<W, 1>(tile, x, out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums<W: Whole, const R: usize>(tile: &[u8], x: &Rounded<'_>, out: &mut [[f32; TILE]]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let fours = x.fours.as_chunks::<R>().0.as_chunks::<FOURS>().0;
    let scales = x.scales.as_chunks::<R>().0;
    let offsets = x.sums.as_chunks::<R>().0;
    let groups = tile.chunks_exact(W::BYTES + SCALES);
    for (((group, fours), xs), offsets) in groups.zip(fours).zip(scales).zip(offsets) {
        let whole = products::<W, R>(group, fours, offsets);
        let scales = &group[W::BYTES..];
        // SAFETY: a group ends in 64 bytes of scales, two vectors of 32.
        let scales = unsafe {
            [
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast())),
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().add(32).cast())),
            ]
        };
        for r in 0..R {
            let x = _mm512_set1_ps(xs[r]);
            for v in 0..2 {
                let scale = _mm512_mul_ps(scales[v], x);
                let sum = _mm512_cvtepi32_ps(whole[r][v]);
                sums[r][v] = _mm512_fmadd_ps(sum, scale, sums[r][v]);
            }
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

/// The whole sums of a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<W: Whole, const R: usize>(
    group: &[u8],
    fours: &[[u32; R]; FOURS],
    offsets: &[i32; R],
) -> [[__m512i; 2]; R] {
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for r in 0..R {
        sums[r] = [_mm512_set1_epi32(-W::OFFSET * offsets[r]); 2];
    }
    let low_half = _mm512_set1_epi8(15);
    let lines = group[..W::BYTES].as_chunks::<{ 4 * TILE }>().0;
    for (i, line) in lines.iter().enumerate() {
        look_ahead(line);
        // SAFETY: 128 bytes, two vectors of 64.
        let w = unsafe {
            [
                _mm512_loadu_si512(line.as_ptr().cast()),
                _mm512_loadu_si512(line.as_ptr().add(64).cast()),
            ]
        };
        if W::BYTES == GROUP * TILE {
            for r in 0..R {
                let x = _mm512_set1_epi32(fours[i][r] as i32);
                sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w[0], x);
                sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], w[1], x);
            }
            continue;
        }
        let low = [
            _mm512_and_si512(w[0], low_half),
            _mm512_and_si512(w[1], low_half),
        ];
        let high = [
            _mm512_and_si512(_mm512_srli_epi16::<4>(w[0]), low_half),
            _mm512_and_si512(_mm512_srli_epi16::<4>(w[1]), low_half),
        ];
        for r in 0..R {
            let x = _mm512_set1_epi32(fours[i][r] as i32);
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low[0], x);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], low[1], x);
        }
        for r in 0..R {
            let x = _mm512_set1_epi32(fours[i + FOURS / 2][r] as i32);
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], high[0], x);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], high[1], x);
        }
    }
    sums
}
