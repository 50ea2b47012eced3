//! Merging sorted runs: the counts of all pairs, and the best of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rayon::prelude::*;

use super::run_file::{Counted, Entries, Run, RunWriter};
use crate::mining::counted::Counted as Found;

/// Ranges of pairs for each thread, so that uneven ones even out.
const RANGES_PER_THREAD: usize = 4;

/// Hands every pair from `first` on and below `end` to `take`, in order, with its count in all runs.
fn merge(
    runs: &[Run],
    first: u64,
    end: Option<u64>,
    mut take: impl FnMut(Counted) -> Result<()>,
) -> Result<()> {
    let inside = |pair: u64| end.is_none_or(|end| pair < end);
    let mut readers: Vec<Entries<'_>> = Vec::with_capacity(runs.len());
    let mut heap = BinaryHeap::with_capacity(runs.len());
    for run in runs {
        let entries = run.entries_from(first)?;
        if let Some((pair, _)) = entries.head().filter(|&(pair, _)| inside(pair)) {
            heap.push(Reverse((pair, readers.len())));
            readers.push(entries);
        }
    }
    let mut sum: Option<Counted> = None;
    while let Some(mut top) = heap.peek_mut() {
        let Reverse((pair, reader)) = *top;
        let entries = &mut readers[reader];
        let count = entries.head().map_or(0, |(_, count)| count);
        entries.advance()?;
        match entries.head().filter(|&(pair, _)| inside(pair)) {
            // The heap puts itself in order when `top` goes.
            Some((next, _)) => *top = Reverse((next, reader)),
            None => drop(PeekMut::pop(top)),
        }
        match &mut sum {
            Some((last, total)) if *last == pair => *total += count,
            _ => {
                if let Some(whole) = sum.replace((pair, count)) {
                    take(whole)?;
                }
            }
        }
    }
    sum.map_or(Ok(()), take)
}

/// Makes one run of several.
pub(super) fn join(runs: &[Run], path: &Path) -> Result<Run> {
    let mut writer = RunWriter::create(path)?;
    merge(runs, 0, None, |entry| writer.push(entry))?;
    writer.finish()
}

/// The best `limit` pairs of all runs that occur at least `needed` times, sorted by pair.
pub(super) fn best(runs: &[Run], needed: u64, limit: usize) -> Result<Found> {
    let found = Mutex::new(Best::new(limit));
    let borders = borders(runs);
    let range = |at: usize| -> Result<()> {
        let end = borders.get(at + 1).copied();
        let mut own = Best::new(limit);
        merge(runs, borders[at], end, |(pair, count)| {
            own.distinct += 1;
            if count >= needed {
                own.frequent += 1;
                own.push((pair, count));
            }
            Ok(())
        })?;
        let mut all = found.lock().unwrap_or_else(PoisonError::into_inner);
        all.add(own);
        Ok(())
    };
    let ranges = (0..borders.len()).into_par_iter().with_max_len(1);
    ranges.map(range).collect::<Result<()>>()?;
    Ok(found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .finish())
}

/// Where ranges of about as many blocks each begin; the first at 0.
fn borders(runs: &[Run]) -> Vec<u64> {
    let mut marks: Vec<u64> = runs.iter().flat_map(Run::marks).collect();
    marks.sort_unstable();
    let ranges = rayon::current_num_threads() * RANGES_PER_THREAD;
    let step = marks.len().div_ceil(ranges).max(1);
    let mut borders = vec![0];
    borders.extend(marks.into_iter().step_by(step).skip(1));
    borders.dedup();
    borders
}

/// Pairs that may be among the best `limit`: a few more than that.
struct Best {
    pairs: Vec<Counted>,
    limit: usize,
    /// Pairs with a lower count are not among the best.
    cut: u64,
    distinct: u64,
    frequent: u64,
}

impl Best {
    fn new(limit: usize) -> Self {
        Self {
            pairs: Vec::new(),
            limit,
            cut: 0,
            distinct: 0,
            frequent: 0,
        }
    }

    fn push(&mut self, entry: Counted) {
        // One with the same count may come before those that are here already.
        if entry.1 < self.cut {
            return;
        }
        self.pairs.push(entry);
        if self.pairs.len() >= self.limit + self.limit / 4 + (1 << 14) {
            self.trim();
        }
    }

    fn trim(&mut self) {
        if self.pairs.len() > self.limit {
            let rank = |&(pair, count): &Counted| (Reverse(count), pair);
            let (_, last, _) = self.pairs.select_nth_unstable_by_key(self.limit - 1, rank);
            self.cut = last.1;
            self.pairs.truncate(self.limit);
        }
    }

    fn add(&mut self, other: Self) {
        self.distinct += other.distinct;
        self.frequent += other.frequent;
        for entry in other.pairs {
            self.push(entry);
        }
    }

    fn finish(mut self) -> Found {
        self.trim();
        self.pairs.sort_unstable();
        Found {
            pairs: self.pairs,
            distinct: self.distinct,
            frequent: self.frequent,
        }
    }
}
