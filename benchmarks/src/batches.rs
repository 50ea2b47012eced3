//! What is asked for: batches of f-grams that have rows, and where the rows should be.

use std::collections::HashSet;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::Span;
use scone_fgram::{FgramSet, TokenId};

/// How rows are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Skew {
    /// All rows alike.
    Uniform,
    /// Row r, in served order, with a frequency of about 1/(r + 1).
    Zipf,
}

impl Skew {
    /// Its name in cases.
    pub fn name(self) -> &'static str {
        match self {
            Skew::Uniform => "uniform",
            Skew::Zipf => "zipf",
        }
    }

    fn draw(self, rng: &mut ChaCha8Rng, rows: usize) -> u32 {
        let x: f64 = rng.random();
        let row = match self {
            Skew::Uniform => x * rows as f64,
            Skew::Zipf => (rows as f64 + 1.0).powf(x) - 1.0,
        };
        (row as u32).min(rows as u32 - 1)
    }
}

/// Distinct rows asked for together, as each kind of store wants to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Row ids: positions in served order.
    pub rows: Vec<u32>,
    /// For a table: the ids of the f-grams, end to end.
    pub ids: Vec<TokenId>,
    /// For a table: each f-gram is a span that asks for its last position.
    pub spans: Vec<Span>,
    /// For key-value stores: the ids as big-endian bytes, end to end.
    key_bytes: Vec<u8>,
}

impl Batch {
    fn push(&mut self, row: u32, ids: &[TokenId]) {
        self.rows.push(row);
        self.ids.extend_from_slice(ids);
        self.spans.push(Span {
            context: ids.len() as u32 - 1,
            answers: 1,
        });
        self.key_bytes.extend(key(ids));
    }

    /// The f-grams.
    pub fn fgrams(&self) -> impl Iterator<Item = &[TokenId]> {
        let mut rest = &self.ids[..];
        self.spans.iter().map(move |span| {
            let (ids, after) = rest.split_at(span.context as usize + 1);
            rest = after;
            ids
        })
    }

    /// Their keys in a key-value store.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.key_bytes[..];
        self.spans.iter().map(move |span| {
            let (key, after) = rest.split_at(4 * (span.context as usize + 1));
            rest = after;
            key
        })
    }
}

/// The key of an f-gram in a key-value store; the order of bytes is that of ids.
pub fn key(ids: &[TokenId]) -> impl Iterator<Item = u8> {
    ids.iter().flat_map(|id| id.to_be_bytes())
}

/// The f-grams of a set in served order: position = row id of a table built from it.
#[derive(Debug)]
pub struct Served<'a> {
    set: &'a FgramSet,
    order: Vec<u32>,
}

impl<'a> Served<'a> {
    /// Of a set.
    pub fn of(set: &'a FgramSet) -> Self {
        let order = set.served_order();
        Self { set, order }
    }

    /// The set.
    pub fn set(&self) -> &'a FgramSet {
        self.set
    }

    /// Number of f-grams.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The f-gram of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn ids(&self, row: u32) -> &'a [TokenId] {
        self.set.get(self.order[row as usize] as usize).ids
    }

    /// A batch of these rows.
    pub fn batch(&self, rows: impl IntoIterator<Item = u32>) -> Batch {
        let mut batch = Batch::default();
        rows.into_iter()
            .for_each(|row| batch.push(row, self.ids(row)));
        batch
    }

    /// Batches of `size` distinct rows with `total` rows or a few more together. A service sends a
    /// row once though several positions of a batch match it, so a store is asked for distinct rows.
    pub fn draw(&self, skew: Skew, size: usize, total: usize, seed: u64) -> Vec<Batch> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let size = size.min(self.len());
        let mut seen = HashSet::with_capacity(size);
        (0..total.div_ceil(size))
            .map(|_| {
                seen.clear();
                let rows = std::iter::repeat_with(|| skew.draw(&mut rng, self.len()));
                self.batch(rows.filter(|&row| seen.insert(row)).take(size))
            })
            .collect()
    }

    /// All rows once, from the last one to the first, in batches of `size`: leaves the rows that are
    /// served most as the ones used last.
    pub fn sweep(&self, size: usize) -> impl Iterator<Item = Batch> {
        let last_first: Vec<u32> = (0..self.len() as u32).rev().collect();
        let starts = (0..last_first.len()).step_by(size);
        starts.map(move |start| {
            let end = (start + size).min(last_first.len());
            self.batch(last_first[start..end].iter().copied())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fgrams;

    #[test]
    fn batches_hold_distinct_rows_and_their_keys() {
        let set = fgrams::synthetic(300).expect("a set");
        let served = Served::of(&set);
        for skew in [Skew::Uniform, Skew::Zipf] {
            let batches = served.draw(skew, 32, 320, 7);
            assert_eq!(batches.len(), 10);
            assert_eq!(batches, served.draw(skew, 32, 320, 7));
            for batch in &batches {
                let distinct: HashSet<u32> = batch.rows.iter().copied().collect();
                assert_eq!(distinct.len(), 32);
                for ((&row, ids), bytes) in batch.rows.iter().zip(batch.fgrams()).zip(batch.keys())
                {
                    assert_eq!(ids, served.ids(row));
                    assert!(key(ids).eq(bytes.iter().copied()));
                }
            }
        }
    }

    #[test]
    fn zipf_prefers_the_first_rows() {
        let set = fgrams::synthetic(1000).expect("a set");
        let batches = Served::of(&set).draw(Skew::Zipf, 1, 1000, 1);
        let first = batches.iter().filter(|batch| batch.rows[0] < 100).count();
        // log(101) / log(1001) of all.
        assert!((600..740).contains(&first), "{first} of 1000");
    }

    #[test]
    fn a_sweep_ends_with_the_first_row() {
        let set = fgrams::synthetic(10).expect("a set");
        let served = Served::of(&set);
        let rows: Vec<u32> = served.sweep(4).flat_map(|batch| batch.rows).collect();
        assert_eq!(rows, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    }
}
