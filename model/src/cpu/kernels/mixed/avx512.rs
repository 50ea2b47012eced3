//! AVX-512 with its BF16: tiles packed, and multiplied.
#![cfg(target_arch = "x86_64")]
#![expect(
    unsafe_code,
    reason = "vector instructions that the pulp crate has no words for"
)]

use super::tile::{Order, Sums, TILE, Tile, Window};
use std::arch::x86_64::*;

/// Rows whose sums are in registers at once.
const ABREAST: usize = 8;

/// A tile of a factor whose lines or whose inner side lie without gaps; `false` and nothing of any other.
pub(super) fn pack(window: Window<'_>, order: Order, out: &mut Tile) -> bool {
    let (lines, inner) = (window.lines, window.inner);
    assert!((1..=TILE).contains(&lines) && (1..=2 * TILE).contains(&inner));
    let last = (lines - 1) * window.line_stride + (inner - 1) * window.inner_stride;
    assert!(last < window.values.len(), "a tile beyond its matrix");
    // SAFETY: `Unit::available` found AVX512-BW and AVX512-BF16. The last element of the window is
    // inside `values`, as the assertion says, and so are all before it.
    unsafe {
        match (window.inner_stride, window.line_stride, order) {
            (1, _, Order::Rows) => by_lines(window, out),
            (1, _, Order::Pairs) => {
                by_lines(window, out);
                transpose(out);
            }
            (_, 1, Order::Pairs) => by_pairs(window, out),
            (_, 1, Order::Rows) => {
                by_pairs(window, out);
                transpose(out);
            }
            _ => return false,
        }
    }
    true
}

/// Mask of the first `n` of 16 lanes.
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(TILE)) - 1) as __mmask16
}

/// Inner positions without gaps: a line of the window is a line of the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn by_lines(window: Window<'_>, tile: &mut Tile) {
    let (low, high) = (
        first(window.inner),
        first(window.inner.saturating_sub(TILE)),
    );
    for (line, out) in tile.iter_mut().take(window.lines).enumerate() {
        // SAFETY: lanes beyond the window are masked out and not read.
        unsafe {
            let x = window.values.as_ptr().add(line * window.line_stride);
            let low = _mm512_maskz_loadu_ps(low, x);
            let high = _mm512_maskz_loadu_ps(high, x.wrapping_add(TILE));
            store(_mm512_cvtne2ps_pbh(high, low), out);
        }
    }
    tile[window.lines..].fill([0; TILE]);
}

/// Lines without gaps: two inner positions of all lines are a line of the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn by_pairs(window: Window<'_>, tile: &mut Tile) {
    let lanes = first(window.lines);
    // Numbers 0, 16, 1, 17, … of 32.
    let side_by_side = _mm512_add_epi32(
        _mm512_set1_epi32(16 << 16),
        _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(0x0001_0001),
        ),
    );
    for (pair, out) in tile.iter_mut().take(window.inner.div_ceil(2)).enumerate() {
        let second = if 2 * pair + 1 < window.inner {
            lanes
        } else {
            0
        };
        // SAFETY: lanes beyond the window are masked out and not read.
        unsafe {
            let x = window.values.as_ptr().add(2 * pair * window.inner_stride);
            let low = _mm512_maskz_loadu_ps(lanes, x);
            let high = _mm512_maskz_loadu_ps(second, x.wrapping_add(window.inner_stride));
            let both = bits(_mm512_cvtne2ps_pbh(high, low));
            store(bf16(_mm512_permutexvar_epi16(side_by_side, both)), out);
        }
    }
    tile[window.inner.div_ceil(2)..].fill([0; TILE]);
}

/// Rows and columns of 16 x 16 numbers exchanged.
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(tile: &mut Tile) {
    let mut rows = [_mm512_setzero_si512(); TILE];
    for (row, line) in rows.iter_mut().zip(&*tile) {
        *row = bits(load(line));
    }
    // Pairs of rows, then pairs of pairs: 4 x 4 numbers within every quarter of a register.
    for r in (0..TILE).step_by(2) {
        let (a, b) = (rows[r], rows[r + 1]);
        rows[r] = _mm512_unpacklo_epi32(a, b);
        rows[r + 1] = _mm512_unpackhi_epi32(a, b);
    }
    for r in (0..TILE).step_by(4) {
        let [a, b, c, d] = [rows[r], rows[r + 1], rows[r + 2], rows[r + 3]];
        rows[r] = _mm512_unpacklo_epi64(a, c);
        rows[r + 1] = _mm512_unpackhi_epi64(a, c);
        rows[r + 2] = _mm512_unpacklo_epi64(b, d);
        rows[r + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Then the quarters.
    for column in 0..4 {
        let quarter = |r: usize| rows[4 * r + column];
        let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
        let even_low = _mm512_shuffle_i32x4::<0x88>(a, b);
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(a, b);
        let even_high = _mm512_shuffle_i32x4::<0x88>(c, d);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(c, d);
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(even_low, even_high),
            _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high),
            _mm512_shuffle_i32x4::<0xdd>(even_low, even_high),
            _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high),
        ];
        for (quarter, columns) in columns.into_iter().enumerate() {
            store(bf16(columns), &mut tile[4 * quarter + column]);
        }
    }
}

/// `out = left · right`, two tiles a step.
pub(super) fn multiply(left: &[Tile], right: &[Tile], out: &mut Sums) {
    // SAFETY: `Unit::available` found AVX512-BF16.
    unsafe { sums(left, right, out) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn sums(left: &[Tile], right: &[Tile], out: &mut Sums) {
    for (first, out) in out.chunks_exact_mut(ABREAST).enumerate() {
        let first = first * ABREAST;
        let mut sums = [[_mm512_setzero_ps(); 2]; ABREAST];
        for (left, right) in left.chunks_exact(2).zip(right.chunks_exact(2)) {
            let rows = &left[first / TILE][first % TILE..first % TILE + ABREAST];
            for pair in 0..TILE {
                let columns = [load(&right[0][pair]), load(&right[1][pair])];
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let x = bf16(_mm512_set1_epi32(row[pair] as i32));
                    sums[0] = _mm512_dpbf16_ps(sums[0], x, columns[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], x, columns[1]);
                }
            }
        }
        for (out, [low, high]) in out.iter_mut().zip(sums) {
            // SAFETY: a row of a block has 32 numbers, two vectors of 16.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), low);
                _mm512_storeu_ps(out.as_mut_ptr().add(TILE), high);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &[u32; TILE]) -> __m512bh {
    // SAFETY: a line has 16 pairs, one vector.
    bf16(unsafe { _mm512_loadu_si512(line.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: __m512bh, line: &mut [u32; TILE]) {
    // SAFETY: a line has 16 pairs, one vector.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), bits(values)) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every value is valid.
    unsafe { std::mem::transmute(bits) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bits(values: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes of which every value is valid.
    unsafe { std::mem::transmute(values) }
}
