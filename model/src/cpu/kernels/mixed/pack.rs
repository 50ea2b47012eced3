//! Factors as tiles of bf16.

use super::tile::{DEPTH, Order, TILE, Tile, Window};
use super::unit::Unit;
use crate::cpu::kernels::strided::Matrix;
use std::ops::Range;

/// Rows of the left factor: for every 32 of them two tiles a step.
pub(super) fn rows(
    unit: Unit,
    a: Matrix<'_>,
    rows: Range<usize>,
    inner: Range<usize>,
    out: &mut Vec<Tile>,
) {
    let strides = (a.row_stride, a.column_stride);
    lines(unit, a.values, (rows, inner), strides, Order::Rows, out);
}

/// All columns of the right factor: for every 32 of them two tiles a step.
pub(super) fn columns(unit: Unit, b: Matrix<'_>, inner: Range<usize>, out: &mut Vec<Tile>) {
    let strides = (b.column_stride, b.row_stride);
    let all = (0..b.columns, inner);
    lines(unit, b.values, all, strides, Order::Pairs, out);
}

fn lines(
    unit: Unit,
    values: &[f32],
    (lines, inner): (Range<usize>, Range<usize>),
    (line_stride, inner_stride): (usize, usize),
    order: Order,
    out: &mut Vec<Tile>,
) {
    let steps = inner.len().div_ceil(DEPTH);
    let panels = lines.len().div_ceil(2 * TILE);
    // All of it is written below.
    out.resize(2 * steps * panels, [[0; TILE]; TILE]);
    // In the order of the memory that is read.
    for (step, at) in inner.clone().step_by(DEPTH).enumerate() {
        for (half, line) in (0..2 * panels).zip(lines.clone().step_by(TILE)) {
            let window = Window {
                values: &values[line * line_stride + at * inner_stride..],
                lines: (lines.end - line).min(TILE),
                inner: (inner.end - at).min(DEPTH),
                line_stride,
                inner_stride,
            };
            let (panel, half) = (half / 2, half % 2);
            tile(
                unit,
                window,
                order,
                &mut out[2 * (panel * steps + step) + half],
            );
        }
    }
    if lines.len().div_ceil(TILE) % 2 == 1 {
        // The second half of the last panel lies beyond the edge.
        let last = &mut out[2 * steps * (panels - 1)..];
        last.iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|tile| *tile = [[0; TILE]; TILE]);
    }
}

fn tile(unit: Unit, window: Window<'_>, order: Order, out: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if unit.packs_with_avx512() && super::avx512::pack(window, order, out) {
        return;
    }
    let _ = unit;
    plain(window, order, out);
}

fn plain(window: Window<'_>, order: Order, tile: &mut Tile) {
    *tile = [[0; TILE]; TILE];
    for line in 0..window.lines {
        for at in 0..window.inner {
            let x = window.values[line * window.line_stride + at * window.inner_stride];
            let half = u32::from(half::bf16::from_f32(x).to_bits()) << (16 * (at % 2));
            let (row, column) = match order {
                Order::Rows => (line, at / 2),
                Order::Pairs => (at / 2, line),
            };
            tile[row][column] |= half;
        }
    }
}
