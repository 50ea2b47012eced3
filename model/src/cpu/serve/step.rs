//! The next positions of several sequences, on top of their KV caches.

use super::pass::{Attend, Layers, blocks};
use crate::cpu::block::Sizes;
use crate::cpu::cache::Cache;
use crate::cpu::kernels::attention::{View, attend};
use crate::cpu::kernels::rows::{rotary_angles, rotary_frequencies, rotate};
use crate::cpu::kernels::simd;
use crate::error::Result;
use crate::layout::Heads;
use rayon::prelude::*;

/// Rows that one task attends for, at least.
const ROWS_A_TASK: usize = 8;

/// A sequence's part of a step: its cache and how many rows are its.
pub(crate) struct Part<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) len: usize,
}

/// `x (N, D)`, the rows of all parts end to end, through the blocks, in place. The caches get the
/// new positions; after an error they are as before.
pub(crate) fn step(
    layers: Layers<'_>,
    sizes: &Sizes,
    rope_theta: Option<f64>,
    x: &mut [f32],
    mut parts: Vec<Part<'_>>,
) -> Result<()> {
    for part in &mut parts {
        part.cache.begin(part.len);
    }
    let mut sequences = Sequences::new(&mut parts, rope_theta, sizes.heads);
    blocks(layers, sizes, x, &mut sequences)?;
    for part in parts {
        part.cache.commit(part.len);
    }
    Ok(())
}

/// The sequences of one call.
struct Sequences<'a, 'b> {
    parts: &'a mut [Part<'b>],
    /// Part and position of each row.
    rows: Vec<(usize, usize)>,
    /// Rotary angles of each row, none without rotary positions.
    angles: Vec<f32>,
    heads: Heads,
}

impl<'a, 'b> Sequences<'a, 'b> {
    fn new(parts: &'a mut [Part<'b>], rope_theta: Option<f64>, heads: Heads) -> Self {
        let rows: Vec<_> = parts
            .iter()
            .enumerate()
            .flat_map(|(i, part)| {
                let start = part.cache.len();
                (start..start + part.len).map(move |position| (i, position))
            })
            .collect();
        let mut angles = Vec::new();
        if let Some(theta) = rope_theta {
            let frequencies = rotary_frequencies(theta, heads.head_dim);
            angles.resize(rows.len() * heads.head_dim, 0.0);
            for (out, (_, position)) in angles.chunks_mut(heads.head_dim).zip(&rows) {
                rotary_angles(&frequencies, *position, out);
            }
        }
        Self {
            parts,
            rows,
            angles,
            heads,
        }
    }

    /// Turns queries and keys by their positions.
    fn turn(&self, joint: &mut [f32]) {
        let (heads, dim) = (self.heads, self.heads.head_dim);
        let turned = heads.q_width() + heads.kv_width();
        let angles = self.angles.chunks(dim);
        for (row, angles) in joint.chunks_mut(heads.width()).zip(angles) {
            for head in row[..turned].chunks_mut(dim) {
                rotate(head, angles, 1.0);
            }
        }
    }

    /// Puts keys and values into the caches.
    fn keep(&mut self, layer: usize, joint: &[f32]) {
        let (key, value) = (self.heads.key(0), self.heads.value(0));
        for (row, &(part, _)) in joint.chunks(self.heads.width()).zip(&self.rows) {
            let cache = self.parts[part].cache.layer_mut(layer);
            cache.keys.extend_from_slice(&row[key..value]);
            cache.values.extend_from_slice(&row[value..]);
        }
    }

    /// Attention of all heads of one row.
    fn attend_row(
        &self,
        layer: usize,
        index: usize,
        row: &[f32],
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (heads, (part, position)) = (self.heads, self.rows[index]);
        let cache = self.parts[part].cache.layer(layer);
        for (head, out) in out.chunks_mut(heads.head_dim).enumerate() {
            let view = View {
                keys: &cache.keys,
                values: &cache.values,
                stride: heads.kv_width(),
                offset: heads.kv_head(head) * heads.head_dim,
                scale: heads.scale(),
            };
            let query = &row[heads.query(head)..][..heads.head_dim];
            simd(
                #[inline(always)]
                || attend(query, 0..=position, &view, scores, out),
            );
        }
    }
}

impl Attend for Sequences<'_, '_> {
    fn attend(&mut self, layer: usize, joint: &mut [f32], mixed: &mut [f32]) {
        if !self.angles.is_empty() {
            self.turn(joint);
        }
        self.keep(layer, joint);
        let this = &*self;
        joint
            .par_chunks(self.heads.width())
            .zip(mixed.par_chunks_mut(self.heads.q_width()))
            .enumerate()
            .with_min_len(ROWS_A_TASK)
            .for_each_init(Vec::new, |scores, (index, (row, out))| {
                this.attend_row(layer, index, row, scores, out);
            });
    }
}
