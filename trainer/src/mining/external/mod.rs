//! Counting pairs in bounded memory: sorted runs spill to disk and are merged.
//!
//! Each scan reads the ids of the scan before as a stream, replaces each pair that survived by its
//! own id, writes these for the next scan, and collects them. When the buffer is full, its pairs are
//! counted in buckets, and each thread writes those of a share of the buckets as a run. The runs are
//! merged by ranges of pairs, and the best kept. What a scan found is written down, so that a run that was
//! killed goes on with the next scan.

mod labels;
mod merge;
mod run_file;
mod work_dir;

use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use self::labels::{Labels, LabelsSum, LabelsWriter};
use self::run_file::{Run, RunWriter};
use self::work_dir::{ScanResult, WorkDir};
use super::buckets::Buckets;
use super::counted::{Counted, Scanner};
use super::pair_index::PairIndex;
use super::pairs::{NONE, id_limit};
use crate::corpus::TokenizedCorpus;

/// Labels that one thread looks up at a time.
const TASK: usize = 1 << 14;
/// Runs that are merged at once; more are joined first.
const MAX_RUNS: usize = 128;

/// What an external scan may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Pairs counted at a time; as many labels are held until then.
    pub(super) pairs: usize,
    /// K: no labels are written that nobody reads.
    pub(super) max_n: u8,
}

/// Scans a corpus in bounded memory.
pub(super) struct ExternalScan<'a> {
    corpus: &'a TokenizedCorpus,
    dir: WorkDir,
    limits: Limits,
    /// The length to be counted next.
    n: u8,
    /// Of the scan before the next one.
    survivors: Vec<(u64, u64)>,
    /// The labels that the next scan reads, if a file has them.
    labels: LabelsSum,
}

impl<'a> ExternalScan<'a> {
    /// Works in `dir`, going on with the work that `key` names.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(super) fn new(
        corpus: &'a TokenizedCorpus,
        dir: &Path,
        key: [u8; 32],
        limits: Limits,
    ) -> Result<Self> {
        Ok(Self {
            corpus,
            dir: WorkDir::open(dir, key, limits.max_n)?,
            limits,
            n: 2,
            survivors: Vec::new(),
            labels: LabelsSum::default(),
        })
    }

    /// Reads the corpus once and gives back its pairs as sorted runs.
    fn scan(&self) -> Result<(Vec<Run>, LabelsSum)> {
        let n = self.n;
        let mut source = match n {
            2 | 3 => Labels::of_tokens(self.corpus),
            // Those of length n - 2, written during the scan before.
            _ => Labels::of_file(&self.dir.labels(n - 2), self.labels)?,
        };
        let index = (n > 2).then(|| PairIndex::new(&self.survivors));
        let mut writer = match n {
            2 => None,
            n if n == self.limits.max_n => None,
            _ => Some(LabelsWriter::create(&self.dir.labels(n - 1))?),
        };
        let mut spill = Spill::new(&self.dir, self.limits.pairs);
        // At once one chunk is read, the one before it relabelled, and the one before that written.
        let (mut next, mut read, mut own) = (vec![NONE], Vec::new(), Vec::new());
        loop {
            let mut write = || -> Result<()> {
                if let Some(writer) = &mut writer {
                    writer.write(&own)?;
                }
                spill.add(&own)
            };
            let (more, (relabelled, written)) = rayon::join(
                || source.read(&mut next),
                || rayon::join(|| relabelled(&read, index.as_ref()), &mut write),
            );
            written?;
            own = relabelled;
            if !more? && own.is_empty() {
                break;
            }
            // The last label of a chunk is the first of the next.
            let last = next.last().copied().unwrap_or(NONE);
            read = std::mem::replace(&mut next, vec![last]);
        }
        let written = match writer {
            None => LabelsSum::default(),
            Some(mut writer) => {
                // The last position starts no pair.
                writer.write(&[NONE])?;
                writer.finish()?
            }
        };
        Ok((spill.finish()?, written))
    }
}

impl Scanner for ExternalScan<'_> {
    fn count(&mut self, needed: u64, limit: usize) -> Result<Counted> {
        let result = match self.dir.load(self.n) {
            Some(result) => {
                tracing::info!(n = self.n, "took the scan of an earlier run");
                result
            }
            None => {
                let (runs, labels) = self.scan()?;
                let counted = merge::best(&runs, needed, limit)?;
                let result = ScanResult { counted, labels };
                self.dir.save(self.n, &result)?;
                result
            }
        };
        self.labels = result.labels;
        Ok(result.counted)
    }

    fn advance(&mut self, survivors: Vec<(u64, u64)>) -> Result<()> {
        self.survivors = survivors;
        self.n += 1;
        Ok(())
    }
}

/// The ids of the pairs at each position of `labels` but the last; without an index the labels behind
/// the first.
fn relabelled(labels: &[u32], index: Option<&PairIndex>) -> Vec<u32> {
    let Some(index) = index else {
        return labels.get(1..).unwrap_or_default().to_vec();
    };
    let firsts: Vec<usize> = (0..labels.len().saturating_sub(1)).step_by(TASK).collect();
    let parts = firsts.into_par_iter().with_max_len(1).map(|first| {
        // A part ends with the first label of the next.
        let mut part = labels[first..labels.len().min(first + TASK + 1)].to_vec();
        index.relabel(&mut part);
        part
    });
    parts.collect::<Vec<_>>().concat()
}

/// Collects labels and writes their pairs as sorted runs.
struct Spill<'a> {
    dir: &'a WorkDir,
    /// Those whose pairs are not yet in a run.
    labels: Vec<u32>,
    /// Labels held at a time.
    capacity: usize,
    /// For their pairs.
    room: Vec<u32>,
    runs: Vec<Run>,
    /// Runs created so far.
    created: usize,
}

impl<'a> Spill<'a> {
    fn new(dir: &'a WorkDir, capacity: usize) -> Self {
        // A pair at least.
        let capacity = capacity.max(2);
        Self {
            dir,
            labels: Vec::with_capacity(capacity),
            capacity,
            room: Vec::new(),
            runs: Vec::new(),
            created: 0,
        }
    }

    fn add(&mut self, mut labels: &[u32]) -> Result<()> {
        while !labels.is_empty() {
            if self.labels.len() == self.capacity {
                self.flush()?;
            }
            let space = self.capacity - self.labels.len();
            let (own, behind) = labels.split_at(space.min(labels.len()));
            self.labels.extend_from_slice(own);
            labels = behind;
        }
        Ok(())
    }

    /// Counts the pairs of the labels; each thread writes a share as a run.
    fn flush(&mut self) -> Result<()> {
        let Some(&last) = self.labels.last() else {
            return Ok(());
        };
        let threads = rayon::current_num_threads();
        let share = self.labels.len().div_ceil(threads);
        let parts: Vec<&[u32]> = (0..self.labels.len())
            .step_by(share)
            .map(|first| &self.labels[first..self.labels.len().min(first + share + 1)])
            .collect();
        let buckets = Buckets::fill(&parts, id_limit(&parts), &mut self.room);
        let (dir, first) = (self.dir, self.created);
        let shares = buckets.shares(threads).into_par_iter().with_max_len(1);
        let runs = shares.enumerate().map(|(at, range)| {
            let mut writer = RunWriter::create(&dir.run(first + at))?;
            buckets.count(range, 1, |pair, count| writer.push((pair, count)))?;
            writer.finish()
        });
        let runs = runs.collect::<Result<Vec<_>>>()?;
        self.created += runs.len();
        self.runs.extend(runs);
        // The last label is the first of the next pair.
        self.labels.clear();
        self.labels.push(last);
        if self.runs.len() > MAX_RUNS {
            let joined = merge::join(&self.runs, &self.dir.run(self.created))?;
            self.created += 1;
            self.runs = vec![joined];
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Run>> {
        self.flush()?;
        Ok(self.runs)
    }
}

#[cfg(test)]
mod tests;
