//! Causal softmax attention over whole sequences, forward and backward, for training.
//!
//! Sixteen queries fill the lanes of a vector: scores are kept key-major, `[key][query]`, so that
//! softmax and every product run down the keys without a shuffle, over contiguous memory. The
//! scores of sixteen queries are all that ever exists of the T × T matrix; the backward pass
//! computes them again.

use super::LANES;
use super::math::exp;
use super::rows::rotate;

/// Keys, or columns, that share one read of the lanes.
const PANEL: usize = 8;

/// One number for each of sixteen queries.
type Lanes = [f32; LANES];

/// How a row of queries, keys and values side by side is cut into heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joint {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Joint {
    /// Numbers of a row.
    pub(crate) fn width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Numbers of a row of attention's result.
    pub(crate) fn out_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Key-value head of a query head.
    pub(crate) fn kv_head(&self, head: usize) -> usize {
        head / (self.num_heads / self.num_kv_heads)
    }

    pub(crate) fn query(&self, head: usize) -> usize {
        head * self.head_dim
    }

    pub(crate) fn key(&self, kv_head: usize) -> usize {
        (self.num_heads + kv_head) * self.head_dim
    }

    pub(crate) fn value(&self, kv_head: usize) -> usize {
        (self.num_heads + self.num_kv_heads + kv_head) * self.head_dim
    }
}

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
    /// Attention of one sequence of joint rows; `out` gets `out_width` numbers a row.
    #[inline(always)]
    pub(crate) fn forward(
        &mut self,
        joint: Joint,
        rows: &[f32],
        angles: Option<&[f32]>,
        out: &mut [f32],
    ) {
        for kv in 0..joint.num_kv_heads {
            self.k.pack(rows, view(joint, rows, joint.key(kv)), angles);
            self.v.pack(rows, view(joint, rows, joint.value(kv)), None);
            self.k.make_panels(view(joint, rows, 0));
            for head in (0..joint.num_heads).filter(|&h| joint.kv_head(h) == kv) {
                let query = view(joint, rows, joint.query(head));
                self.q.pack(rows, query, angles);
                self.head_forward(query, joint.scale());
                self.out.unpack(out, out_view(joint, query, head), None);
            }
        }
    }

    /// Gradient of [`forward`](Self::forward): `drows` gets that of the joint rows.
    #[inline(always)]
    pub(crate) fn backward(
        &mut self,
        joint: Joint,
        rows: &[f32],
        angles: Option<&[f32]>,
        dout: &[f32],
        drows: &mut [f32],
    ) {
        for kv in 0..joint.num_kv_heads {
            let key = view(joint, rows, joint.key(kv));
            let value = view(joint, rows, joint.value(kv));
            self.k.pack(rows, key, angles);
            self.k.make_panels(key);
            self.v.pack(rows, value, None);
            self.v.make_panels(value);
            self.dk.clear(key);
            self.dv.clear(value);
            for head in (0..joint.num_heads).filter(|&h| joint.kv_head(h) == kv) {
                let query = view(joint, rows, joint.query(head));
                self.q.pack(rows, query, angles);
                self.dout.pack(dout, out_view(joint, query, head), None);
                self.head_backward(query, joint.scale());
                self.out.unpack(drows, query, angles);
            }
            self.dk.unpack(drows, key, angles);
            self.dv.unpack(drows, value, None);
        }
    }

    #[inline(always)]
    fn head_forward(&mut self, view: View, scale: f32) {
        let dim = view.padded_dim();
        self.out.clear(view);
        for first in (0..view.padded_len()).step_by(LANES) {
            let group = first * dim..(first + LANES) * dim;
            to_lanes(&self.q.rows[group.clone()], dim, &mut self.lanes);
            scores(
                &self.k.panels,
                &self.lanes,
                first + LANES,
                &mut self.probabilities,
            );
            softmax(&mut self.probabilities, first, scale);
            let p = &self.probabilities;
            weighted_rows(p, &self.v.rows, dim, &mut self.lanes);
            from_lanes(&self.lanes, dim, &mut self.out.rows[group]);
        }
    }

    #[inline(always)]
    fn head_backward(&mut self, view: View, scale: f32) {
        let dim = view.padded_dim();
        self.out.clear(view);
        for first in (0..view.padded_len()).step_by(LANES) {
            let group = first * dim..(first + LANES) * dim;
            let seen = first + LANES;
            let (q, dout) = (&self.q.rows[group.clone()], &self.dout.rows[group.clone()]);
            to_lanes(q, dim, &mut self.lanes);
            scores(&self.k.panels, &self.lanes, seen, &mut self.probabilities);
            softmax(&mut self.probabilities, first, scale);
            to_lanes(dout, dim, &mut self.lanes);
            scores(&self.v.panels, &self.lanes, seen, &mut self.slopes);
            score_gradients(&self.probabilities, &mut self.slopes, scale);
            add_outer(&self.probabilities, dout, dim, &mut self.dv.rows);
            add_outer(&self.slopes, q, dim, &mut self.dk.rows);
            weighted_rows(&self.slopes, &self.k.rows, dim, &mut self.lanes);
            from_lanes(&self.lanes, dim, &mut self.out.rows[group]);
        }
    }
}

fn view(joint: Joint, rows: &[f32], offset: usize) -> View {
    View {
        len: rows.len() / joint.width(),
        dim: joint.head_dim,
        stride: joint.width(),
        offset,
    }
}

/// The head in attention's result.
fn out_view(joint: Joint, query: View, head: usize) -> View {
    View {
        stride: joint.out_width(),
        offset: head * joint.head_dim,
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

/// `out[key][query] = key · query` for the first `seen` keys, a multiple of sixteen.
#[inline(always)]
fn scores(panels: &[[f32; PANEL]], queries: &[Lanes], seen: usize, out: &mut Vec<Lanes>) {
    out.resize(seen, [0.0; LANES]);
    let (groups, _) = out.as_chunks_mut::<PANEL>();
    for (group, panel) in groups.iter_mut().zip(panels.chunks_exact(queries.len())) {
        let mut sums = [[0.0f32; LANES]; PANEL];
        for (keys, query) in panel.iter().zip(queries) {
            for u in 0..PANEL {
                for i in 0..LANES {
                    sums[u][i] = keys[u].mul_add(query[i], sums[u][i]);
                }
            }
        }
        *group = sums;
    }
}

/// Softmax down the keys; query `first + i` sees keys up to `first + i`.
#[inline(always)]
fn softmax(scores: &mut [Lanes], first: usize, scale: f32) {
    // The last sixteen keys are the queries' own positions.
    for (j, scores) in scores[first..].iter_mut().enumerate() {
        for (i, s) in scores.iter_mut().enumerate() {
            *s = if j > i { f32::NEG_INFINITY } else { *s };
        }
    }
    let mut largest = [f32::NEG_INFINITY; LANES];
    for scores in scores.iter() {
        for i in 0..LANES {
            largest[i] = if scores[i] > largest[i] {
                scores[i]
            } else {
                largest[i]
            };
        }
    }
    let mut total = [0.0f32; LANES];
    for scores in scores.iter_mut() {
        for i in 0..LANES {
            scores[i] = exp((scores[i] - largest[i]) * scale);
        }
        for i in 0..LANES {
            total[i] += scores[i];
        }
    }
    let inverse = total.map(|t| 1.0 / t);
    for scores in scores.iter_mut() {
        for i in 0..LANES {
            scores[i] *= inverse[i];
        }
    }
    // exp never quite reaches zero.
    for (j, scores) in scores[first..].iter_mut().enumerate() {
        for (i, s) in scores.iter_mut().enumerate() {
            *s = if j > i { 0.0 } else { *s };
        }
    }
}

/// From `dp` to the gradient of the scores, `p (dp - Σ p dp) scale`.
#[inline(always)]
fn score_gradients(p: &[Lanes], dp: &mut [Lanes], scale: f32) {
    let mut mean = [0.0f32; LANES];
    for (p, dp) in p.iter().zip(&*dp) {
        for i in 0..LANES {
            mean[i] = p[i].mul_add(dp[i], mean[i]);
        }
    }
    for (p, dp) in p.iter().zip(dp) {
        for i in 0..LANES {
            dp[i] = p[i] * (dp[i] - mean[i]) * scale;
        }
    }
}

/// `out[column][query] = Σ over keys of p[key][query] · rows[key][column]`.
#[inline(always)]
fn weighted_rows(p: &[Lanes], rows: &[f32], dim: usize, out: &mut Vec<Lanes>) {
    out.resize(dim, [0.0; LANES]);
    let (cells, _) = rows.as_chunks::<PANEL>();
    let (groups, _) = out.as_chunks_mut::<PANEL>();
    for (c, group) in groups.iter_mut().enumerate() {
        let mut sums = [[0.0f32; LANES]; PANEL];
        for (p, cell) in p.iter().zip(cells[c..].iter().step_by(dim / PANEL)) {
            for u in 0..PANEL {
                for i in 0..LANES {
                    sums[u][i] = cell[u].mul_add(p[i], sums[u][i]);
                }
            }
        }
        *group = sums;
    }
}

/// `out[key][column] += Σ over the sixteen queries of p[key][query] · rows[query][column]`.
#[inline(always)]
fn add_outer(p: &[Lanes], rows: &[f32], dim: usize, out: &mut [f32]) {
    let (groups, _) = p.as_chunks::<PANEL>();
    let (rows, _) = rows.as_chunks::<LANES>();
    let columns = dim / LANES;
    for (p, out) in groups.iter().zip(out.chunks_exact_mut(PANEL * dim)) {
        let (out, _) = out.as_chunks_mut::<LANES>();
        for c in 0..columns {
            let mut sums = [[0.0f32; LANES]; PANEL];
            for (q, row) in rows[c..].iter().step_by(columns).take(LANES).enumerate() {
                for u in 0..PANEL {
                    for i in 0..LANES {
                        sums[u][i] = p[u][q].mul_add(row[i], sums[u][i]);
                    }
                }
            }
            for (u, sums) in sums.iter().enumerate() {
                for (out, sum) in out[u * columns + c].iter_mut().zip(sums) {
                    *out += sum;
                }
            }
        }
    }
}
