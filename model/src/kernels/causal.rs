//! Causal softmax attention over whole sequences, forward and backward, for training.
//!
//! One head is packed into contiguous scratch (padded to whole vectors, keys and values also
//! transposed), then eight queries at a time go over all keys they may see. The scores of eight
//! rows are all that ever exists of the T × T matrix; the backward pass computes them again.

use super::math::{dot, exp, max, sum};
use super::rows::rotate;

/// Queries that share one pass over the keys.
const ROWS: usize = 8;
/// Columns of a block: one vector register.
const WIDTH: usize = 16;

/// Where one head's numbers are in a `(T, heads · Dh)` slice.
#[derive(Clone, Copy)]
pub(crate) struct HeadView {
    /// Positions.
    pub(crate) len: usize,
    /// Dh.
    pub(crate) dim: usize,
    /// Numbers from one position to the next.
    pub(crate) stride: usize,
    /// First number of the head in a position.
    pub(crate) offset: usize,
}

impl HeadView {
    /// Start of the head at one position.
    #[inline(always)]
    fn at(&self, position: usize) -> usize {
        position * self.stride + self.offset
    }
}

/// A `(T, Dh)` matrix in rows padded with zeros, and its transpose when asked for.
#[derive(Default)]
pub(crate) struct Packed {
    rows: Vec<f32>,
    transposed: Vec<f32>,
}

/// Padded sizes of a head.
#[derive(Clone, Copy)]
pub(crate) struct Padded {
    len: usize,
    dim: usize,
}

impl Padded {
    fn of(view: &HeadView) -> Self {
        Self {
            len: view.len.next_multiple_of(WIDTH),
            dim: view.dim.next_multiple_of(WIDTH),
        }
    }
}

impl Packed {
    /// Copies a head out of `values`, turned by `angles` (Dh numbers a position) if any.
    #[inline(always)]
    pub(crate) fn pack(&mut self, values: &[f32], view: &HeadView, angles: Option<&[f32]>) {
        let padded = Padded::of(view);
        self.rows.clear();
        self.rows.resize(padded.len * padded.dim, 0.0);
        for (t, row) in self.rows.chunks_mut(padded.dim).take(view.len).enumerate() {
            let row = &mut row[..view.dim];
            row.copy_from_slice(&values[view.at(t)..view.at(t) + view.dim]);
            if let Some(angles) = angles {
                rotate(row, &angles[t * view.dim..(t + 1) * view.dim], 1.0);
            }
        }
    }

    /// Fills the transpose.
    #[inline(always)]
    pub(crate) fn transpose(&mut self, view: &HeadView) {
        let padded = Padded::of(view);
        self.transposed.clear();
        self.transposed.resize(padded.len * padded.dim, 0.0);
        for (t, row) in self.rows.chunks(padded.dim).enumerate() {
            for (d, x) in row.iter().enumerate() {
                self.transposed[d * padded.len + t] = *x;
            }
        }
    }

    /// Zeros of the size of a head.
    #[inline(always)]
    pub(crate) fn clear(&mut self, view: &HeadView) {
        let padded = Padded::of(view);
        self.rows.clear();
        self.rows.resize(padded.len * padded.dim, 0.0);
    }

    /// Copies the head back, turned back by `angles` if any.
    #[inline(always)]
    pub(crate) fn unpack(&mut self, out: &mut [f32], view: &HeadView, angles: Option<&[f32]>) {
        let padded = Padded::of(view);
        for (t, row) in self.rows.chunks_mut(padded.dim).take(view.len).enumerate() {
            let row = &mut row[..view.dim];
            if let Some(angles) = angles {
                rotate(row, &angles[t * view.dim..(t + 1) * view.dim], -1.0);
            }
            out[view.at(t)..view.at(t) + view.dim].copy_from_slice(row);
        }
    }
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) q: Packed,
    pub(crate) k: Packed,
    pub(crate) v: Packed,
    pub(crate) out: Packed,
    pub(crate) dout: Packed,
    pub(crate) dq: Packed,
    pub(crate) dk: Packed,
    pub(crate) dv: Packed,
    scores: Vec<f32>,
    slopes: Vec<f32>,
}

impl Scratch {
    /// `out = softmax(scale · q kᵀ) v` of the packed head; wants `q`, `k` with transpose, `v`.
    #[inline(always)]
    pub(crate) fn forward(&mut self, view: &HeadView, scale: f32) {
        let padded = Padded::of(view);
        self.out.clear(view);
        self.scores.resize(ROWS * padded.len, 0.0);
        for first in (0..padded.len).step_by(ROWS) {
            let rows = first * padded.dim..(first + ROWS) * padded.dim;
            self.probabilities(first, padded, scale);
            let out = &mut self.out.rows[rows];
            times_rows(&self.scores, &self.v.rows, first + ROWS, padded, out);
        }
    }

    /// Gradients of the packed head; wants what [`forward`](Self::forward) wants, `v` with
    /// transpose, and `dout`. Fills `dq` and adds to `dk` and `dv`.
    #[inline(always)]
    pub(crate) fn backward(&mut self, view: &HeadView, scale: f32) {
        let padded = Padded::of(view);
        self.dq.clear(view);
        self.scores.resize(ROWS * padded.len, 0.0);
        self.slopes.resize(ROWS * padded.len, 0.0);
        for first in (0..padded.len).step_by(ROWS) {
            let rows = first * padded.dim..(first + ROWS) * padded.dim;
            let seen = first + ROWS;
            self.probabilities(first, padded, scale);
            let dout = &self.dout.rows[rows.clone()];
            times_columns(dout, &self.v.transposed, seen, padded, &mut self.slopes);
            score_gradients(&self.scores, &mut self.slopes, first, padded, scale);
            let dq = &mut self.dq.rows[rows.clone()];
            times_rows(&self.slopes, &self.k.rows, seen, padded, dq);
            add_outer(&self.scores, dout, seen, padded, &mut self.dv.rows);
            let q = &self.q.rows[rows];
            add_outer(&self.slopes, q, seen, padded, &mut self.dk.rows);
        }
    }

    /// Softmax of the scores of eight queries; zero for keys they may not see.
    #[inline(always)]
    fn probabilities(&mut self, first: usize, padded: Padded, scale: f32) {
        let q = &self.q.rows[first * padded.dim..(first + ROWS) * padded.dim];
        times_columns(
            q,
            &self.k.transposed,
            first + ROWS,
            padded,
            &mut self.scores,
        );
        for (r, row) in self.scores.chunks_mut(padded.len).enumerate() {
            let (seen, hidden) = row.split_at_mut(first + r + 1);
            let largest = max(seen);
            for s in seen.iter_mut() {
                *s = exp((*s - largest) * scale);
            }
            let inverse = 1.0 / sum(seen);
            for s in seen.iter_mut() {
                *s *= inverse;
            }
            let rest = (ROWS - 1 - r).min(hidden.len());
            hidden[..rest].fill(0.0);
        }
    }
}

/// `out (8, len) = a (8, dim) · b (dim, len)` for the first `columns` columns, rounded up.
#[inline(always)]
fn times_columns(a: &[f32], b: &[f32], columns: usize, padded: Padded, out: &mut [f32]) {
    for start in (0..columns).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for d in 0..padded.dim {
            let b = &b[d * padded.len + start..][..WIDTH];
            for r in 0..ROWS {
                let a = a[r * padded.dim + d];
                for i in 0..WIDTH {
                    sums[r][i] = a.mul_add(b[i], sums[r][i]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * padded.len + start..][..WIDTH].copy_from_slice(sums);
        }
    }
}

/// `out (8, dim) = p (8, len) · b (len, dim)` over the first `seen` rows of b.
#[inline(always)]
fn times_rows(p: &[f32], b: &[f32], seen: usize, padded: Padded, out: &mut [f32]) {
    for start in (0..padded.dim).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for j in 0..seen {
            let b = &b[j * padded.dim + start..][..WIDTH];
            for r in 0..ROWS {
                let p = p[r * padded.len + j];
                for i in 0..WIDTH {
                    sums[r][i] = p.mul_add(b[i], sums[r][i]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * padded.dim + start..][..WIDTH].copy_from_slice(sums);
        }
    }
}

/// `out (len, dim) += pᵀ (len, 8) · a (8, dim)` for the first `seen` rows.
#[inline(always)]
fn add_outer(p: &[f32], a: &[f32], seen: usize, padded: Padded, out: &mut [f32]) {
    for start in (0..padded.dim).step_by(WIDTH) {
        let mut rows = [[0.0f32; WIDTH]; ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            row.copy_from_slice(&a[r * padded.dim + start..][..WIDTH]);
        }
        for j in 0..seen {
            let out = &mut out[j * padded.dim + start..][..WIDTH];
            for r in 0..ROWS {
                let p = p[r * padded.len + j];
                for i in 0..WIDTH {
                    out[i] = p.mul_add(rows[r][i], out[i]);
                }
            }
        }
    }
}

/// From `dp` to the gradient of the scores: `p (dp - Σ p dp) scale`, zero for unseen keys.
#[inline(always)]
fn score_gradients(p: &[f32], dp: &mut [f32], first: usize, padded: Padded, scale: f32) {
    let rows = p.chunks(padded.len).zip(dp.chunks_mut(padded.len));
    for (r, (p, dp)) in rows.enumerate() {
        let (seen, hidden) = dp.split_at_mut(first + r + 1);
        let p = &p[..seen.len()];
        let mean = dot(p, seen);
        for (dp, p) in seen.iter_mut().zip(p) {
            *dp = p * (*dp - mean) * scale;
        }
        let rest = (ROWS - 1 - r).min(hidden.len());
        hidden[..rest].fill(0.0);
    }
}
