//! Causal softmax attention over whole sequences, forward and backward, for training.
//!
//! Sixteen queries fill the lanes of a vector: scores are kept key-major, `[key][query]`, so that
//! softmax and every product run down the keys without a shuffle, over contiguous memory. The
//! scores of sixteen queries are all that ever exists of the T × T matrix; the backward pass
//! computes them again.
//!
//! The products name their vectors (by `pulp`): left to itself the compiler vectorises nested
//! loops of this kind along the wrong axis, with gathers, and loses a factor of five.

use super::LANES;
use super::math::exp;
use super::rows::rotate;
use crate::layout::Heads;
use pulp::{Arch, Simd, WithSimd};

/// Keys, or columns, that share one read of the lanes.
const PANEL: usize = 8;

/// One number for each of sixteen queries.
type Lanes = [f32; LANES];

/// One head inside rows.
#[derive(Clone, Copy)]
struct View {
    /// Positions.
    len: usize,
    /// Dh.
    dim: usize,
    /// Numbers from one position to the next.
    stride: usize,
    /// First number of the head in a position.
    offset: usize,
}

impl View {
    /// Positions, rounded up to whole groups of queries.
    fn padded_len(&self) -> usize {
        self.len.next_multiple_of(LANES)
    }

    /// Dh, rounded up to whole vectors.
    fn padded_dim(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }
}

/// A `(T, Dh)` matrix, padded with zeros.
#[derive(Default)]
struct Packed {
    /// Position after position.
    rows: Vec<f32>,
    /// Eight positions at a time, `[panel][column][position]`.
    panels: Vec<[f32; PANEL]>,
}

impl Packed {
    /// Copies a head out of rows, turned by `angles` (Dh numbers a position) if any.
    #[inline(always)]
    fn pack(&mut self, values: &[f32], view: View, angles: Option<&[f32]>) {
        self.clear(view);
        let rows = self.rows.chunks_mut(view.padded_dim());
        for (t, (row, from)) in rows.zip(values.chunks(view.stride)).enumerate() {
            let row = &mut row[..view.dim];
            row.copy_from_slice(&from[view.offset..view.offset + view.dim]);
            if let Some(angles) = angles {
                rotate(row, &angles[t * view.dim..(t + 1) * view.dim], 1.0);
            }
        }
    }

    /// Zeros of the size of a head.
    #[inline(always)]
    fn clear(&mut self, view: View) {
        self.rows.clear();
        self.rows.resize(view.padded_len() * view.padded_dim(), 0.0);
    }

    /// Fills the panels.
    #[inline(always)]
    fn make_panels(&mut self, view: View) {
        let dim = view.padded_dim();
        self.panels.clear();
        for rows in self.rows.chunks_exact(PANEL * dim) {
            for d in 0..dim {
                self.panels.push(std::array::from_fn(|u| rows[u * dim + d]));
            }
        }
    }

    /// Copies the head back into rows, turned back by `angles` if any.
    #[inline(always)]
    fn unpack(&mut self, out: &mut [f32], view: View, angles: Option<&[f32]>) {
        let rows = self.rows.chunks_mut(view.padded_dim());
        for (t, (row, to)) in rows.zip(out.chunks_mut(view.stride)).enumerate() {
            let row = &mut row[..view.dim];
            if let Some(angles) = angles {
                rotate(row, &angles[t * view.dim..(t + 1) * view.dim], -1.0);
            }
            to[view.offset..view.offset + view.dim].copy_from_slice(row);
        }
    }
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    q: Packed,
    k: Packed,
    v: Packed,
    dout: Packed,
    /// Result of the forward pass, or gradient of the queries.
    out: Packed,
    dk: Packed,
    dv: Packed,
    /// Sixteen queries, or their gradients, column by column.
    lanes: Vec<Lanes>,
    probabilities: Vec<Lanes>,
    slopes: Vec<Lanes>,
}

impl Scratch {
    /// Attention of one sequence of joint rows; `out` gets `q_width` numbers a row.
    pub(crate) fn forward(
        &mut self,
        heads: Heads,
        rows: &[f32],
        angles: Option<&[f32]>,
        out: &mut [f32],
    ) {
        Arch::new().dispatch(Forward {
            scratch: self,
            heads,
            rows,
            angles,
            out,
        });
    }

    /// Gradient of [`forward`](Self::forward): `drows` gets that of the joint rows.
    pub(crate) fn backward(
        &mut self,
        heads: Heads,
        rows: &[f32],
        angles: Option<&[f32]>,
        dout: &[f32],
        drows: &mut [f32],
    ) {
        Arch::new().dispatch(Backward {
            scratch: self,
            heads,
            rows,
            angles,
            dout,
            drows,
        });
    }

    #[inline(always)]
    fn head_forward<S: Simd>(&mut self, simd: S, view: View, scale: f32) {
        let dim = view.padded_dim();
        self.out.clear(view);
        for first in (0..view.padded_len()).step_by(LANES) {
            let group = first * dim..(first + LANES) * dim;
            let (panels, p) = (&self.k.panels, &mut self.probabilities);
            to_lanes(&self.q.rows[group.clone()], dim, &mut self.lanes);
            scores(simd, panels, &self.lanes, first + LANES, p);
            softmax(simd, p, first, scale);
            weighted_rows(simd, p, &self.v.rows, dim, &mut self.lanes);
            from_lanes(&self.lanes, dim, &mut self.out.rows[group]);
        }
    }

    #[inline(always)]
    fn head_backward<S: Simd>(&mut self, simd: S, view: View, scale: f32) {
        let dim = view.padded_dim();
        self.out.clear(view);
        for first in (0..view.padded_len()).step_by(LANES) {
            let group = first * dim..(first + LANES) * dim;
            let seen = first + LANES;
            let q = &self.q.rows[group.clone()];
            let dout = &self.dout.rows[group.clone()];
            let (p, slopes) = (&mut self.probabilities, &mut self.slopes);
            to_lanes(q, dim, &mut self.lanes);
            scores(simd, &self.k.panels, &self.lanes, seen, p);
            softmax(simd, p, first, scale);
            to_lanes(dout, dim, &mut self.lanes);
            scores(simd, &self.v.panels, &self.lanes, seen, slopes);
            score_gradients(simd, p, slopes, scale);
            add_outer(simd, p, dout, dim, &mut self.dv.rows);
            add_outer(simd, slopes, q, dim, &mut self.dk.rows);
            weighted_rows(simd, slopes, &self.k.rows, dim, &mut self.lanes);
            from_lanes(&self.lanes, dim, &mut self.out.rows[group]);
        }
    }
}

struct Forward<'a> {
    scratch: &'a mut Scratch,
    heads: Heads,
    rows: &'a [f32],
    angles: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (heads, rows, s) = (self.heads, self.rows, self.scratch);
        for kv in 0..heads.num_kv_heads {
            let (key, value) = (heads.key(kv), heads.value(kv));
            s.k.pack(rows, view(heads, rows, key), self.angles);
            s.v.pack(rows, view(heads, rows, value), None);
            s.k.make_panels(view(heads, rows, key));
            for head in (0..heads.num_heads).filter(|&h| heads.kv_head(h) == kv) {
                let query = view(heads, rows, heads.query(head));
                s.q.pack(rows, query, self.angles);
                s.head_forward(simd, query, heads.scale());
                s.out.unpack(self.out, out_view(heads, query, head), None);
            }
        }
    }
}

struct Backward<'a> {
    scratch: &'a mut Scratch,
    heads: Heads,
    rows: &'a [f32],
    angles: Option<&'a [f32]>,
    dout: &'a [f32],
    drows: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (heads, rows, s) = (self.heads, self.rows, self.scratch);
        for kv in 0..heads.num_kv_heads {
            let key = view(heads, rows, heads.key(kv));
            let value = view(heads, rows, heads.value(kv));
            s.k.pack(rows, key, self.angles);
            s.k.make_panels(key);
            s.v.pack(rows, value, None);
            s.v.make_panels(value);
            s.dk.clear(key);
            s.dv.clear(value);
            for head in (0..heads.num_heads).filter(|&h| heads.kv_head(h) == kv) {
                let query = view(heads, rows, heads.query(head));
                s.q.pack(rows, query, self.angles);
                s.dout.pack(self.dout, out_view(heads, query, head), None);
                s.head_backward(simd, query, heads.scale());
                s.out.unpack(self.drows, query, self.angles);
            }
            s.dk.unpack(self.drows, key, self.angles);
            s.dv.unpack(self.drows, value, None);
        }
    }
}

fn view(heads: Heads, rows: &[f32], offset: usize) -> View {
    View {
        len: rows.len() / heads.width(),
        dim: heads.head_dim,
        stride: heads.width(),
        offset,
    }
}

/// The head in attention's result.
fn out_view(heads: Heads, query: View, head: usize) -> View {
    View {
        stride: heads.q_width(),
        offset: head * heads.head_dim,
        ..query
    }
}

/// Sixteen rows to `[column][row]`.
#[inline(always)]
fn to_lanes(rows: &[f32], dim: usize, lanes: &mut Vec<Lanes>) {
    lanes.clear();
    for d in 0..dim {
        lanes.push(std::array::from_fn(|r| rows[r * dim + d]));
    }
}

/// `[column][row]` to sixteen rows.
#[inline(always)]
fn from_lanes(lanes: &[Lanes], dim: usize, rows: &mut [f32]) {
    for (r, row) in rows.chunks_exact_mut(dim).enumerate() {
        for (x, lanes) in row.iter_mut().zip(lanes) {
            *x = lanes[r];
        }
    }
}

/// Vectors of one group of lanes: one of AVX-512, two of AVX2.
#[inline(always)]
fn vectors<S: Simd>(lanes: &[Lanes]) -> (&[S::f32s], usize) {
    (
        S::as_simd_f32s(lanes.as_flattened()).0,
        LANES / S::F32_LANES,
    )
}

#[inline(always)]
fn vectors_mut<S: Simd>(lanes: &mut [Lanes]) -> (&mut [S::f32s], usize) {
    let lanes = lanes.as_flattened_mut();
    (S::as_mut_simd_f32s(lanes).0, LANES / S::F32_LANES)
}

/// Sums of `cell[u] · vector` over pairs of a cell of eight numbers and a vector.
#[inline(always)]
fn outer_sums<'a, S: Simd>(
    simd: S,
    pairs: impl Iterator<Item = (&'a [f32; PANEL], &'a S::f32s)>,
) -> [S::f32s; PANEL]
where
    S::f32s: 'a,
{
    let mut sums = [simd.splat_f32s(0.0); PANEL];
    for (cell, vector) in pairs {
        for u in 0..PANEL {
            sums[u] = simd.mul_add_f32s(simd.splat_f32s(cell[u]), *vector, sums[u]);
        }
    }
    sums
}

/// `out[key][query] = key · query` for the first `seen` keys, a multiple of sixteen.
#[inline(always)]
fn scores<S: Simd>(
    simd: S,
    panels: &[[f32; PANEL]],
    queries: &[Lanes],
    seen: usize,
    out: &mut Vec<Lanes>,
) {
    out.resize(seen, [0.0; LANES]);
    let (query, parts) = vectors::<S>(queries);
    let (out, _) = vectors_mut::<S>(out);
    let panels = panels.chunks_exact(queries.len());
    for (out, panel) in out.chunks_exact_mut(PANEL * parts).zip(panels) {
        for part in 0..parts {
            let query = query[part..].iter().step_by(parts);
            let sums = outer_sums(simd, panel.iter().zip(query));
            for (u, sum) in sums.into_iter().enumerate() {
                out[u * parts + part] = sum;
            }
        }
    }
}

/// Softmax down the keys; query `first + i` sees keys up to `first + i`.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [Lanes], first: usize, scale: f32) {
    mask(&mut scores[first..], f32::NEG_INFINITY);
    let (all, parts) = vectors_mut::<S>(scores);
    for part in 0..parts {
        let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
        for x in all[part..].iter().step_by(parts) {
            largest = simd.max_f32s(largest, *x);
        }
        let scale = simd.splat_f32s(scale);
        for x in all[part..].iter_mut().step_by(parts) {
            *x = simd.mul_f32s(simd.sub_f32s(*x, largest), scale);
        }
    }
    for x in scores.as_flattened_mut() {
        *x = exp(*x);
    }
    // exp never quite reaches zero.
    mask(&mut scores[first..], 0.0);
    let (all, parts) = vectors_mut::<S>(scores);
    for part in 0..parts {
        let mut total = simd.splat_f32s(0.0);
        for x in all[part..].iter().step_by(parts) {
            total = simd.add_f32s(total, *x);
        }
        let inverse = simd.div_f32s(simd.splat_f32s(1.0), total);
        for x in all[part..].iter_mut().step_by(parts) {
            *x = simd.mul_f32s(*x, inverse);
        }
    }
}

/// Writes over what a query may not see of the last sixteen keys, its own group's positions.
#[inline(always)]
fn mask(scores: &mut [Lanes], value: f32) {
    for (j, scores) in scores.iter_mut().enumerate() {
        scores[..j].fill(value);
    }
}

/// From `dp` to the gradient of the scores, `p (dp - Σ p dp) scale`.
#[inline(always)]
fn score_gradients<S: Simd>(simd: S, p: &[Lanes], dp: &mut [Lanes], scale: f32) {
    let (p, parts) = vectors::<S>(p);
    let (dp, _) = vectors_mut::<S>(dp);
    let scale = simd.splat_f32s(scale);
    for part in 0..parts {
        let mut mean = simd.splat_f32s(0.0);
        let both = p[part..].iter().zip(&dp[part..]).step_by(parts);
        for (p, dp) in both {
            mean = simd.mul_add_f32s(*p, *dp, mean);
        }
        let both = p[part..].iter().zip(&mut dp[part..]).step_by(parts);
        for (p, dp) in both {
            *dp = simd.mul_f32s(simd.mul_f32s(*p, simd.sub_f32s(*dp, mean)), scale);
        }
    }
}

/// `out[column][query] = Σ over keys of p[key][query] · rows[key][column]`.
#[inline(always)]
fn weighted_rows<S: Simd>(simd: S, p: &[Lanes], rows: &[f32], dim: usize, out: &mut Vec<Lanes>) {
    out.resize(dim, [0.0; LANES]);
    let (cells, _) = rows.as_chunks::<PANEL>();
    let (p, parts) = vectors::<S>(p);
    let (out, _) = vectors_mut::<S>(out);
    for (c, out) in out.chunks_exact_mut(PANEL * parts).enumerate() {
        for part in 0..parts {
            let cells = cells[c..].iter().step_by(dim / PANEL);
            let sums = outer_sums(simd, cells.zip(p[part..].iter().step_by(parts)));
            for (u, sum) in sums.into_iter().enumerate() {
                out[u * parts + part] = sum;
            }
        }
    }
}

/// `out[key][column] += Σ over the sixteen queries of p[key][query] · rows[query][column]`.
#[inline(always)]
fn add_outer<S: Simd>(simd: S, p: &[Lanes], rows: &[f32], dim: usize, out: &mut [f32]) {
    let columns = dim / S::F32_LANES;
    let rows = S::as_simd_f32s(rows).0;
    let (groups, _) = p.as_chunks::<PANEL>();
    for (p, out) in groups.iter().zip(out.chunks_exact_mut(PANEL * dim)) {
        // [query][key]
        let cells: [[f32; PANEL]; LANES] =
            std::array::from_fn(|q| std::array::from_fn(|u| p[u][q]));
        let out = S::as_mut_simd_f32s(out).0;
        for c in 0..columns {
            let rows = rows[c..].iter().step_by(columns);
            let sums = outer_sums(simd, cells.iter().zip(rows));
            for (u, sum) in sums.into_iter().enumerate() {
                let out = &mut out[u * columns + c];
                *out = simd.add_f32s(*out, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences' worth of odd sizes, by this machine's vectors and without any.
    #[test]
    fn vectors_and_scalars_agree() {
        let heads = Heads {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 10,
        };
        let len = 37;
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let (rows, dout) = (numbers(len * heads.width()), numbers(len * heads.q_width()));
        let angles = numbers(len * heads.head_dim);
        let mut out = [vec![0.0f32; dout.len()], vec![0.0f32; dout.len()]];
        let mut drows = [vec![0.0f32; rows.len()], vec![0.0f32; rows.len()]];
        let mut scratch = Scratch::default();
        let angles = Some(angles.as_slice());
        scratch.forward(heads, &rows, angles, &mut out[0]);
        scratch.backward(heads, &rows, angles, &dout, &mut drows[0]);
        let forward = Forward {
            scratch: &mut scratch,
            heads,
            rows: &rows,
            angles,
            out: &mut out[1],
        };
        forward.with_simd(pulp::Scalar);
        let backward = Backward {
            scratch: &mut scratch,
            heads,
            rows: &rows,
            angles,
            dout: &dout,
            drows: &mut drows[1],
        };
        backward.with_simd(pulp::Scalar);
        for [a, b] in [out, drows] {
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}
