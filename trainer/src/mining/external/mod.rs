//! Counting pairs in bounded memory: sorted runs spill to disk and are merged.
//!
//! Each scan reads the ids of the scan before as a stream, replaces each pair that survived by its
//! own id, writes these for the next scan, and collects their pairs. When the buffer for pairs is full,
//! each thread sorts a share of it, counts equal ones and writes the rest as a run. The runs are merged
//! by ranges of pairs, and the best kept. What a scan found is written down, so that a run that was
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
use super::count::{NONE, pack};
use super::counted::{Counted, Scanner};
use super::pair_index::PairIndex;
use crate::corpus::TokenizedCorpus;

/// Labels that one thread looks up at a time.
const TASK: usize = 1 << 14;
/// Runs that are merged at once; more are joined first.
const MAX_RUNS: usize = 128;

/// What an external scan may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Pairs sorted at a time.
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
    survivors: Vec<u64>,
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
        // The last label of a chunk is the first of the next.
        let (mut read, mut own) = (vec![NONE], vec![NONE]);
        while source.read(&mut read)? {
            match &index {
                None => {
                    own.extend_from_slice(&read[1..]);
                }
                Some(index) => relabel(&read, index, &mut own),
            }
            if let Some(writer) = &mut writer {
                writer.write(&own[1..])?;
            }
            spill.add(&own)?;
            keep_last(&mut read);
            keep_last(&mut own);
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

    fn advance(&mut self, survivors: Vec<u64>) -> Result<()> {
        self.survivors = survivors;
        self.n += 1;
        Ok(())
    }
}

fn keep_last(labels: &mut Vec<u32>) {
    let last = labels.last().copied().unwrap_or(NONE);
    labels.clear();
    labels.push(last);
}

/// Appends the id of the pair at each position of `labels` but the last.
fn relabel(labels: &[u32], index: &PairIndex, out: &mut Vec<u32>) {
    let start = out.len();
    out.resize(start + labels.len() - 1, NONE);
    let parts = out[start..].par_chunks_mut(TASK).enumerate();
    parts.for_each(|(part, out)| {
        let labels = &labels[part * TASK..];
        for (out, pair) in out.iter_mut().zip(labels.windows(2)) {
            *out = match (pair[0], pair[1]) {
                (NONE, _) | (_, NONE) => NONE,
                (left, right) => index.get(pack(left, right)).unwrap_or(NONE),
            };
        }
    });
}

/// Collects pairs and writes them as sorted runs.
struct Spill<'a> {
    dir: &'a WorkDir,
    pairs: Vec<u64>,
    capacity: usize,
    runs: Vec<Run>,
    /// Runs created so far.
    created: usize,
}

impl<'a> Spill<'a> {
    fn new(dir: &'a WorkDir, capacity: usize) -> Self {
        Self {
            dir,
            pairs: Vec::with_capacity(capacity),
            capacity,
            runs: Vec::new(),
            created: 0,
        }
    }

    fn add(&mut self, labels: &[u32]) -> Result<()> {
        let parts = labels.len().div_ceil(self.capacity);
        for part in 0..parts {
            let start = part * self.capacity;
            // A part ends with the first label of the next.
            let end = (start + self.capacity + 1).min(labels.len());
            let labels = &labels[start..end];
            if self.pairs.len() + labels.len() > self.capacity {
                self.flush()?;
            }
            let pairs = labels
                .windows(2)
                .filter(|pair| pair[0] != NONE && pair[1] != NONE);
            self.pairs.extend(pairs.map(|pair| pack(pair[0], pair[1])));
        }
        Ok(())
    }

    /// Each thread sorts a share of the pairs and writes it as a run.
    fn flush(&mut self) -> Result<()> {
        if self.pairs.is_empty() {
            return Ok(());
        }
        let share = self.pairs.len().div_ceil(rayon::current_num_threads());
        let (dir, first) = (self.dir, self.created);
        let runs = self
            .pairs
            .par_chunks_mut(share)
            .enumerate()
            .map(|(at, pairs)| {
                pairs.sort_unstable();
                let mut writer = RunWriter::create(&dir.run(first + at))?;
                for same in pairs.chunk_by(|a, b| a == b) {
                    writer.push((same[0], same.len() as u64))?;
                }
                writer.finish()
            })
            .collect::<Result<Vec<_>>>()?;
        self.created += runs.len();
        self.runs.extend(runs);
        self.pairs.clear();
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
