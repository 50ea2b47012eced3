//! Softmax attention of one query over some keys and values.

use super::math::{axpy, dot, exp, max, sum};

/// `out = softmax(scale · q·k) · v` over the keys that `rows` names, in that order. Key and value
/// i are `width` numbers from `rows[i] * stride + offset`.
#[inline(always)]
pub(crate) fn attend(
    q: &[f32],
    keys: impl Iterator<Item = usize> + Clone,
    view: &View<'_>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let at =
        |row: usize| row * view.stride + view.offset..row * view.stride + view.offset + q.len();
    scores.clear();
    for row in keys.clone() {
        scores.push(dot(q, &view.keys[at(row)]) * view.scale);
    }
    let largest = max(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let inverse = 1.0 / sum(scores);
    out.fill(0.0);
    for (score, row) in scores.iter().zip(keys) {
        axpy(score * inverse, &view.values[at(row)], out);
    }
}

/// One key-value head of the rows a query may see.
pub(crate) struct View<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    /// Numbers from one row to the next, and to this head inside a row.
    pub(crate) stride: usize,
    pub(crate) offset: usize,
    pub(crate) scale: f32,
}
