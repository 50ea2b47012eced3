//! Softmax attention along the paths of a [`PrefixTree`], forward and backward, for training.

use super::attention::{View, attend};
use super::math::{axpy, dot, exp, max, sum};
use crate::layout::Heads;
use crate::prefix_tree::PrefixTree;
use std::ops::Range;

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    scores: Vec<f32>,
    slopes: Vec<f32>,
}

impl Scratch {
    /// Attention of the nodes of some whole trees; `rows` holds the joint rows of these nodes.
    #[inline(always)]
    pub(crate) fn forward(
        &mut self,
        heads: Heads,
        tree: &PrefixTree,
        nodes: &Range<usize>,
        rows: &[f32],
        out: &mut [f32],
    ) {
        let dim = heads.head_dim;
        let with_rows = nodes.clone().zip(rows.chunks(heads.width()));
        for ((node, row), out) in with_rows.zip(out.chunks_mut(heads.q_width())) {
            let path = tree.path(node).iter().map(|&n| n as usize - nodes.start);
            for (head, out) in out.chunks_mut(dim).enumerate() {
                let view = View {
                    keys: &rows[heads.key(heads.kv_head(head))..],
                    values: &rows[heads.value(heads.kv_head(head))..],
                    stride: heads.width(),
                    offset: 0,
                    scale: heads.scale(),
                };
                let at = heads.query(head);
                attend(
                    &row[at..at + dim],
                    path.clone(),
                    &view,
                    &mut self.scores,
                    out,
                );
            }
        }
    }

    /// Gradient of [`forward`](Self::forward): adds to `drows`.
    #[inline(always)]
    pub(crate) fn backward(
        &mut self,
        heads: Heads,
        tree: &PrefixTree,
        nodes: &Range<usize>,
        (rows, dout): (&[f32], &[f32]),
        drows: &mut [f32],
    ) {
        let (width, dim, scale) = (heads.width(), heads.head_dim, heads.scale());
        let (p, dp) = (&mut self.scores, &mut self.slopes);
        for (i, dout) in dout.chunks(heads.q_width()).enumerate() {
            let path = tree.path(nodes.start + i);
            for (head, dout) in dout.chunks(dim).enumerate() {
                let at = |node: u32, offset: usize| {
                    let start = (node as usize - nodes.start) * width + offset;
                    start..start + dim
                };
                let kv = heads.kv_head(head);
                let (key, value) = (heads.key(kv), heads.value(kv));
                let query = i * width + heads.query(head)..i * width + heads.query(head) + dim;
                let q = &rows[query.clone()];
                p.clear();
                p.extend(path.iter().map(|&n| dot(q, &rows[at(n, key)]) * scale));
                let largest = max(p);
                p.iter_mut().for_each(|s| *s = exp(*s - largest));
                let inverse = 1.0 / sum(p);
                p.iter_mut().for_each(|s| *s *= inverse);
                dp.clear();
                dp.extend(path.iter().map(|&n| dot(dout, &rows[at(n, value)])));
                let mean = dot(p, dp);
                for ((&n, p), dp) in path.iter().zip(&*p).zip(&*dp) {
                    let ds = p * (dp - mean) * scale;
                    axpy(ds, &rows[at(n, key)], &mut drows[query.clone()]);
                    axpy(ds, q, &mut drows[at(n, key)]);
                    axpy(*p, dout, &mut drows[at(n, value)]);
                }
            }
        }
    }
}
