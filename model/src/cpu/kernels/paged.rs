//! Softmax attention of some queries over the blocks of one sequence, for serving.
//!
//! A query's result depends on its own position and the keys and values before it only: not on the
//! queries computed with it. Blocks come in order, in chunks of [`CHUNK_BLOCKS`] with a softmax
//! each, and chunks are put together in order.

use super::LANES;
use super::math::{exp, max, sum};

/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = 16;
/// Queries that share one read of keys and values.
const TOGETHER: usize = 4;

/// Where a kernel finds one head's keys and values, block by block: `LANES` positions each.
pub(crate) trait Blocks {
    /// The keys of block i, if there is one, will be read soon.
    fn ask_for_keys(&self, i: usize);

    /// As [`ask_for_keys`](Self::ask_for_keys), of values.
    fn ask_for_values(&self, i: usize);

    /// Keys of block i of the sequence, `[Dh][position]`.
    fn keys<'a>(&'a self, i: usize, scratch: &'a mut [f32]) -> &'a [f32];

    /// Values of block i of the sequence, `[position][Dh]`.
    fn values<'a>(&'a self, i: usize, scratch: &'a mut [f32]) -> &'a [f32];
}

/// Memory of one task.
#[derive(Default)]
pub(crate) struct Scratch {
    block: Vec<f32>,
    /// `[query][block of the chunk][position]`, then the softmax of the chunk.
    scores: Vec<[f32; LANES]>,
    /// `[query][Dh]`: of the chunk.
    mixed: Vec<f32>,
    /// Largest score and sum of each query, of the chunk.
    sums: Vec<(f32, f32)>,
    /// Largest score and sum of each query, of all chunks so far.
    running: Vec<(f32, f32)>,
}

/// `out[query] = softmax(query · keys) · values` over positions up to the query's own. `queries`
/// are `[query][Dh]`, already scaled; `positions` theirs, in ascending order.
#[inline(always)]
pub(crate) fn attend(
    queries: &[f32],
    positions: &[usize],
    blocks: &impl Blocks,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let dim = queries.len() / positions.len().max(1);
    let last = positions.last().map_or(0, |p| p / LANES + 1);
    scratch.block.resize(dim * LANES, 0.0);
    scratch.mixed.resize(queries.len(), 0.0);
    scratch
        .scores
        .resize(positions.len() * CHUNK_BLOCKS, [0.0; LANES]);
    scratch.running.clear();
    scratch
        .running
        .resize(positions.len(), (f32::NEG_INFINITY, 0.0));
    for first in (0..last).step_by(CHUNK_BLOCKS) {
        let chunk = first..last.min(first + CHUNK_BLOCKS);
        // Later queries see all that earlier ones see.
        let from = positions.partition_point(|p| p / LANES < first);
        for i in chunk.clone() {
            let from = positions.partition_point(|p| p / LANES < i);
            // Blocks lie apart: the processor does not see the next one coming.
            blocks.ask_for_keys(i + 1);
            let keys = blocks.keys(i, &mut scratch.block);
            let scores = &mut scratch.scores[from * CHUNK_BLOCKS..];
            score(&queries[from * dim..], keys, dim, i - first, scores);
        }
        scratch.mixed[from * dim..].fill(0.0);
        // No iterator's closure: it would be compiled for the baseline.
        scratch.sums.clear();
        for (q, position) in positions.iter().enumerate().skip(from) {
            let seen = (position / LANES + 1).min(chunk.end) - first;
            let scores = &mut scratch.scores[q * CHUNK_BLOCKS..][..seen];
            let of_chunk = softmax(scores, position + 1 - first * LANES);
            scratch.sums.push(of_chunk);
        }
        for i in chunk {
            let from = positions.partition_point(|p| p / LANES < i);
            blocks.ask_for_values(i + 1);
            let values = blocks.values(i, &mut scratch.block);
            let scores = &scratch.scores[from * CHUNK_BLOCKS..];
            mix(
                scores,
                i - first,
                values,
                dim,
                &mut scratch.mixed[from * dim..],
            );
        }
        for q in from..positions.len() {
            let mixed = &scratch.mixed[q * dim..(q + 1) * dim];
            join(
                &mut scratch.running[q],
                scratch.sums[q - from],
                mixed,
                &mut out[q * dim..(q + 1) * dim],
            );
        }
    }
    for (out, (_, total)) in out.chunks_exact_mut(dim).zip(&scratch.running) {
        let inverse = 1.0 / total;
        out.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// Scores of all queries with one block.
#[inline(always)]
fn score(queries: &[f32], keys: &[f32], dim: usize, block: usize, out: &mut [[f32; LANES]]) {
    let mut queries = queries.chunks_exact(dim * TOGETHER);
    let mut outs = out.chunks_exact_mut(CHUNK_BLOCKS * TOGETHER);
    for (queries, out) in queries.by_ref().zip(outs.by_ref()) {
        put(dots::<TOGETHER>(queries, keys, dim), block, out);
    }
    let (queries, out) = (queries.remainder(), outs.into_remainder());
    // Together too: alone each would wait for its own sums.
    match queries.len() / dim {
        0 => {}
        1 => put(dots::<1>(queries, keys, dim), block, out),
        2 => put(dots::<2>(queries, keys, dim), block, out),
        _ => put(dots::<3>(queries, keys, dim), block, out),
    }
}

/// Notes the scores of some queries with one block.
#[inline(always)]
fn put<const R: usize>(scores: [[f32; LANES]; R], block: usize, out: &mut [[f32; LANES]]) {
    for (out, scores) in out.chunks_exact_mut(CHUNK_BLOCKS).zip(scores) {
        out[block] = scores;
    }
}

/// Products of R queries with the keys of a block, summed along Dh in order.
#[inline(always)]
fn dots<const R: usize>(queries: &[f32], keys: &[f32], dim: usize) -> [[f32; LANES]; R] {
    let mut sums = [[0.0f32; LANES]; R];
    let (keys, _) = keys.as_chunks::<LANES>();
    for (d, keys) in keys.iter().enumerate().take(dim) {
        for r in 0..R {
            let x = queries[r * dim + d];
            for lane in 0..LANES {
                sums[r][lane] = x.mul_add(keys[lane], sums[r][lane]);
            }
        }
    }
    sums
}

/// Turns scores into exponentials; only the first `seen` positions count. The largest score and
/// the sum of the exponentials.
#[inline(always)]
fn softmax(scores: &mut [[f32; LANES]], seen: usize) -> (f32, f32) {
    let flat = scores.as_flattened_mut();
    let seen = seen.min(flat.len());
    flat[seen..].fill(f32::NEG_INFINITY);
    let largest = max(flat);
    for x in flat.iter_mut() {
        *x = exp(*x - largest);
    }
    // exp never quite reaches zero.
    flat[seen..].fill(0.0);
    (largest, sum(flat))
}

/// Adds one block's values to what all queries mix.
#[inline(always)]
fn mix(scores: &[[f32; LANES]], block: usize, values: &[f32], dim: usize, out: &mut [f32]) {
    let mut outs = out.chunks_exact_mut(dim * TOGETHER);
    let mut scores = scores.chunks_exact(CHUNK_BLOCKS * TOGETHER);
    for (out, scores) in outs.by_ref().zip(scores.by_ref()) {
        add_values::<TOGETHER>(weights(scores, block), values, dim, out);
    }
    let (scores, out) = (scores.remainder(), outs.into_remainder());
    match out.len() / dim {
        0 => {}
        1 => add_values::<1>(weights(scores, block), values, dim, out),
        2 => add_values::<2>(weights(scores, block), values, dim, out),
        _ => add_values::<3>(weights(scores, block), values, dim, out),
    }
}

/// The weights that some queries give the positions of one block.
#[inline(always)]
fn weights<const R: usize>(scores: &[[f32; LANES]], block: usize) -> [[f32; LANES]; R] {
    let mut weights = [[0.0; LANES]; R];
    for (r, weights) in weights.iter_mut().enumerate() {
        *weights = scores[r * CHUNK_BLOCKS + block];
    }
    weights
}

/// `out[r] += Σ over positions of weights[r] · values`, position by position.
#[inline(always)]
fn add_values<const R: usize>(
    weights: [[f32; LANES]; R],
    values: &[f32],
    dim: usize,
    out: &mut [f32],
) {
    let whole = dim / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&out[r * dim + start..][..LANES]);
        }
        for position in 0..LANES {
            let values = &values[position * dim + start..][..LANES];
            for r in 0..R {
                let w = weights[r][position];
                for lane in 0..LANES {
                    sums[r][lane] = w.mul_add(values[lane], sums[r][lane]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * dim + start..][..LANES].copy_from_slice(sums);
        }
    }
    for d in whole..dim {
        for r in 0..R {
            for position in 0..LANES {
                let x = &mut out[r * dim + d];
                *x = weights[r][position].mul_add(values[position * dim + d], *x);
            }
        }
    }
}

/// Puts a chunk to those before it: all exponentials relative to the largest score of both.
#[inline(always)]
fn join(running: &mut (f32, f32), chunk: (f32, f32), mixed: &[f32], out: &mut [f32]) {
    let (largest, total) = *running;
    if total == 0.0 {
        *running = chunk;
        out.copy_from_slice(mixed);
        return;
    }
    let both = if chunk.0 > largest { chunk.0 } else { largest };
    let (before, new) = (exp(largest - both), exp(chunk.0 - both));
    for (out, mixed) in out.iter_mut().zip(mixed) {
        *out = out.mul_add(before, mixed * new);
    }
    *running = (both, total.mul_add(before, chunk.1 * new));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::simd;

    /// Blocks of plain numbers.
    struct Plain {
        keys: Vec<f32>,
        values: Vec<f32>,
        dim: usize,
    }

    impl Blocks for Plain {
        fn ask_for_keys(&self, _: usize) {}

        fn ask_for_values(&self, _: usize) {}

        fn keys<'a>(&'a self, i: usize, _: &'a mut [f32]) -> &'a [f32] {
            &self.keys[i * LANES * self.dim..(i + 1) * LANES * self.dim]
        }

        fn values<'a>(&'a self, i: usize, _: &'a mut [f32]) -> &'a [f32] {
            &self.values[i * LANES * self.dim..(i + 1) * LANES * self.dim]
        }
    }

    fn numbers(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 2.0).collect()
    }

    fn run(queries: &[f32], positions: &[usize], blocks: &Plain) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len()];
        let mut scratch = Scratch::default();
        simd(
            #[inline(always)]
            || attend(queries, positions, blocks, &mut scratch, &mut out),
        );
        out
    }

    fn reference(query: &[f32], position: usize, blocks: &Plain) -> Vec<f64> {
        let dim = blocks.dim;
        let key = |p: usize, d: usize| blocks.keys[p / LANES * LANES * dim + d * LANES + p % LANES];
        let scores: Vec<f64> = (0..=position)
            .map(|p| {
                (0..dim)
                    .map(|d| f64::from(query[d]) * f64::from(key(p, d)))
                    .sum()
            })
            .collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..dim)
            .map(|d| {
                let value = |p: usize| f64::from(blocks.values[p * dim + d]);
                let mixed: f64 = weights.iter().enumerate().map(|(p, w)| w * value(p)).sum();
                mixed / total
            })
            .collect()
    }

    /// Several chunks, heads that fill vectors and heads that do not, queries alone and together.
    #[test]
    fn a_query_does_not_depend_on_its_company_and_is_right() {
        for dim in [10, 16, 64] {
            let blocks = Plain {
                keys: numbers(40 * LANES * dim, 0.37),
                values: numbers(40 * LANES * dim, 0.21),
                dim,
            };
            let positions = [0, 3, 15, 16, 17, 255, 256, 300, 301, 302, 303, 639];
            let queries = numbers(positions.len() * dim, 0.11);
            let together = run(&queries, &positions, &blocks);
            let alone = queries.chunks(dim).zip(together.chunks(dim));
            for ((query, together), &position) in alone.zip(&positions) {
                assert_eq!(run(query, &[position], &blocks), together);
                for (a, b) in together.iter().zip(reference(query, position, &blocks)) {
                    assert!((f64::from(*a) - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }
}
