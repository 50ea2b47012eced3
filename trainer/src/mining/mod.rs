//! Finding the f-grams of a corpus: exact counts of every n-gram, one ranking, the best S.
//!
//! SCONE paper section 3.1 (arXiv 2502.01637): one scan a length. The scan for length n knows for
//! every position the surviving (n-1)-gram that starts there, by a u32 id; an n-gram is then the pair
//! of ids at i and i+1, one u64. A scan counts pairs in buckets (`buckets`): all of them in memory
//! (`in_memory`) or, where that is bounded, piece by piece into sorted runs on disk (`external`); both
//! give the same set, bit for bit.
//!
//! Only the best S n-grams of all lengths together are wanted, so once S are known, an n-gram that is
//! not more frequent than the S-th of them is out, and so is every longer one that contains it
//! (ties go to the shorter one). Later scans drop such positions, which changes no result and makes
//! them fast.

mod buckets;
mod counted;
mod counts;
mod external;
mod in_memory;
mod memory;
mod pair_index;
mod pairs;
mod recount;
mod tag;
mod tally;

use std::cmp::Reverse;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use scone_fgram::{FgramSet, MAX_N, NGram, SetHeader};
use serde::Serialize;

pub use counts::from_counts;
pub use recount::{Mismatch, Recount, recount};
pub use tag::{MatchCounts, count_matches};

use crate::corpus::TokenizedCorpus;
use crate::progress::{Progress, Unit};
use counted::Scanner;
use external::ExternalScan;
use in_memory::MemoryScan;

/// The most f-grams a set can have; a matcher keeps one bit of a row id for itself.
pub const MAX_FGRAMS: usize = (1 << 31) - 1;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiningOptions {
    /// K: the longest n-gram, 2 to [`MAX_N`].
    pub max_n: u8,
    /// n-grams of three and more ids that are rarer are dropped.
    pub min_count: u64,
    /// S: how many f-grams to keep, 1 to [`MAX_FGRAMS`].
    pub max_fgrams: usize,
}

impl MiningOptions {
    /// # Errors
    /// When a field is out of its limits.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            (2..=MAX_N).contains(&usize::from(self.max_n)),
            "max_n is {}, must be 2 to {MAX_N}",
            self.max_n
        );
        ensure!(self.min_count >= 1, "min_count is 0, must be at least 1");
        ensure!(
            (1..=MAX_FGRAMS).contains(&self.max_fgrams),
            "max_fgrams is {}, must be 1 to {MAX_FGRAMS}",
            self.max_fgrams
        );
        Ok(())
    }
}

/// What mining found.
#[derive(Debug)]
pub struct Mined {
    /// The f-grams with their counts; match counts are not set.
    pub set: FgramSet,
    /// What each scan found, from length 2 on.
    pub scans: Vec<ScanReport>,
}

/// What one scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ScanReport {
    /// Length of the n-grams counted.
    pub n: u8,
    /// Different n-grams whose parts of length n-1 survived the scan before.
    pub distinct: u64,
    /// Those among them that occur at least `needed` times.
    pub survivors: u64,
    /// The count that an n-gram needs to be among the best S so far.
    pub needed: u64,
}

/// Mining in bounded memory.
#[derive(Debug, Clone, Copy)]
pub struct Bounded<'a> {
    /// The most memory to use, bytes.
    pub memory_bytes: u64,
    /// Where sorted runs and finished scans go. Work of a killed run is gone on with; whoever has
    /// written the set down removes the directory.
    pub work_dir: &'a Path,
}

/// The f-grams of `corpus`: at most S of them, with their counts; match counts are not set.
///
/// # Errors
/// When an option is out of its limits, or the corpus is too large for 32-bit ids.
pub fn mine(
    corpus: &TokenizedCorpus,
    vocab_size: u32,
    tokenizer_hash: [u8; 32],
    options: &MiningOptions,
) -> Result<FgramSet> {
    let tokenizer = MinedWith {
        vocab_size,
        tokenizer_hash,
    };
    Ok(mine_within(corpus, &tokenizer, options, None)?.set)
}

/// The tokenizer that a corpus was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinedWith {
    /// Every id is below it.
    pub vocab_size: u32,
    /// SHA-256 of the tokenizer.json.
    pub tokenizer_hash: [u8; 32],
}

/// As [`mine`]: the same set, in bounded memory where `bounded` says so.
///
/// # Errors
/// Those of [`mine`]; when the memory is less than the set itself needs, or the working directory
/// cannot be used.
pub fn mine_within(
    corpus: &TokenizedCorpus,
    tokenizer: &MinedWith,
    options: &MiningOptions,
    bounded: Option<&Bounded<'_>>,
) -> Result<Mined> {
    options.validate()?;
    let header = SetHeader {
        vocab_size: tokenizer.vocab_size,
        max_n: options.max_n,
        tokenizer_hash: tokenizer.tokenizer_hash,
        min_count: options.min_count,
    };
    let plan = bounded.map(|bounded| memory::plan(corpus, options, bounded));
    let (fgrams, scans) = match plan.transpose()?.flatten() {
        None => most_frequent(&mut MemoryScan::new(corpus), options)?,
        Some((dir, limits)) => {
            let key = memory::key(corpus, &header, options);
            most_frequent(&mut ExternalScan::new(corpus, dir, key, limits)?, options)?
        }
    };
    let set = FgramSet::new(header, fgrams).context("the n-grams found are not an f-gram set")?;
    Ok(Mined { set, scans })
}

/// n-grams with their counts in rank order, and what each scan found.
type Found = (Vec<(NGram, u64)>, Vec<ScanReport>);

/// The best S n-grams in rank order, and what each scan found.
fn most_frequent(scanner: &mut dyn Scanner, options: &MiningOptions) -> Result<Found> {
    let progress = Progress::new("mine", u64::from(options.max_n) - 1, Unit::Items);
    let mut scans = Vec::new();
    let mut found: Vec<(NGram, u64)> = Vec::new();
    // What an id stands for; `None` while ids are token ids.
    let mut survivors: Option<Vec<NGram>> = None;
    // 2-grams are kept however rare they are.
    let mut needed = 1;
    for n in 2..=options.max_n {
        let counted = scanner.count(needed, options.max_fgrams)?;
        let report = ScanReport {
            n,
            distinct: counted.distinct,
            survivors: counted.frequent,
            needed,
        };
        tracing::info!(
            n,
            at_least = needed,
            distinct = report.distinct,
            survivors = report.survivors,
            "counted n-grams"
        );
        scans.push(report);
        for &(pair, count) in &counted.pairs {
            found.push((join(pair, survivors.as_deref())?, count));
        }
        keep_best(&mut found, options.max_fgrams);
        // A longer n-gram has to be above the S-th best so far.
        let cut = match found.len() < options.max_fgrams {
            true => 0,
            false => found.iter().map(|&(_, count)| count).min().unwrap_or(0),
        };
        needed = options.min_count.max(cut + 1);
        if n < options.max_n {
            let mut pairs = counted.pairs;
            pairs.retain(|&(_, count)| count >= needed);
            let grams = pairs
                .iter()
                .map(|&(pair, _)| join(pair, survivors.as_deref()));
            survivors = Some(grams.collect::<Result<_>>()?);
            scanner.advance(pairs)?;
        }
        progress.add(1);
    }
    found.sort_unstable_by_key(|&(gram, count)| (Reverse(count), gram));
    Ok((found, scans))
}

/// The n-gram of a pair of survivors, which share all but their first and last ids.
fn join(pair: u64, survivors: Option<&[NGram]>) -> Result<NGram> {
    let (left, right) = pairs::split(pair);
    let joined = match survivors {
        None => NGram::from_slice(&[left, right]),
        Some(grams) => {
            let grams = (grams.get(left as usize), grams.get(right as usize));
            let (Some(left), Some(right)) = grams else {
                bail!("a pair of n-grams that did not survive");
            };
            let mut ids = [0; MAX_N];
            let len = left.as_slice().len();
            ids[..len].copy_from_slice(left.as_slice());
            match (ids.get_mut(len), right.as_slice().last()) {
                (Some(id), Some(&last)) => *id = last,
                _ => bail!("an n-gram is longer than {MAX_N}"),
            }
            NGram::from_slice(&ids[..=len])
        }
    };
    joined.context("an n-gram is longer than max_n")
}

/// Leaves the best `limit` of all lengths.
fn keep_best(found: &mut Vec<(NGram, u64)>, limit: usize) {
    if found.len() > limit {
        found.select_nth_unstable_by_key(limit, |&(gram, count)| (Reverse(count), gram));
        found.truncate(limit);
    }
}

#[cfg(test)]
mod tests;
