//! The working directory: what is finished of a mining run, so that a later one need not do it again.
//!
//! `scan-N.bin` holds what the scan for length N found; it is written by rename when the scan is over.
//! `labels-N.bin` are the ids that the scan for length N + 2 reads, written during that for N + 1;
//! `scan-(N+1).bin` has their length and checksum. Nothing else outlives the process.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::labels::LabelsSum;
use crate::mining::counted::Counted;
use crate::sealed;

const MAGIC: &[u8; 8] = b"SCONESCN";
const HEADER_BYTES: usize = 8 + 32 + 4 * 8 + 8;

/// A directory that belongs to one mining run at a time.
pub(super) struct WorkDir {
    path: PathBuf,
    key: [u8; 32],
    /// Locked while it is open.
    _lock: File,
}

/// A finished scan.
pub(super) struct ScanResult {
    pub(super) counted: Counted,
    /// The labels that were written during it; empty when none were.
    pub(super) labels: LabelsSum,
}

impl WorkDir {
    /// Takes the directory, and empties it of what another run, named by another `key`, left.
    ///
    /// # Errors
    /// When it cannot be made, or another process uses it.
    pub(super) fn open(path: &Path, key: [u8; 32], max_n: u8) -> Result<Self> {
        let at = || format!("cannot work in {}", path.display());
        let lock = || -> io::Result<File> {
            fs::create_dir_all(path)?;
            let mut options = File::options();
            options
                .write(true)
                .create(true)
                .truncate(false)
                .open(path.join("lock"))
        };
        let lock = lock().with_context(at)?;
        ensure!(
            lock.try_lock().is_ok(),
            "another process works in {}",
            path.display()
        );
        let dir = Self {
            path: path.to_owned(),
            key,
            _lock: lock,
        };
        let mut last = (2..=max_n)
            .take_while(|&n| dir.load(n).is_some())
            .last()
            .unwrap_or(1);
        if (3..max_n).contains(&last) && !dir.labels(last - 1).exists() {
            // The scan for length 3 needs none and writes the first.
            last = 2;
        }
        dir.keep_only(last).with_context(at)?;
        Ok(dir)
    }

    /// Removes everything but the scans up to length `last` and the labels that the next one reads.
    fn keep_only(&self, last: u8) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kept = *name == *"lock"
                || (2..=last).any(|n| path == self.scan(n))
                || last >= 3 && path == self.labels(last - 1);
            if !kept {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn scan(&self, n: u8) -> PathBuf {
        self.path.join(format!("scan-{n}.bin"))
    }

    /// The file of the labels of length `n`.
    pub(super) fn labels(&self, n: u8) -> PathBuf {
        self.path.join(format!("labels-{n}.bin"))
    }

    /// The file of a sorted run.
    pub(super) fn run(&self, number: usize) -> PathBuf {
        self.path.join(format!("run-{number}"))
    }

    /// Keeps what the scan for length `n` found.
    pub(super) fn save(&self, n: u8, result: &ScanResult) -> Result<()> {
        let Counted {
            pairs,
            distinct,
            frequent,
        } = &result.counted;
        sealed::write(&self.scan(n), |out| {
            out.write_all(MAGIC)?;
            out.write_all(&self.key)?;
            for number in [
                *distinct,
                *frequent,
                pairs.len() as u64,
                result.labels.labels,
            ] {
                out.write_all(&number.to_le_bytes())?;
            }
            out.write_all(&u64::from(result.labels.crc).to_le_bytes())?;
            for (pair, count) in pairs {
                out.write_all(&pair.to_le_bytes())?;
                out.write_all(&count.to_le_bytes())?;
            }
            Ok(())
        })?;
        let _ = fs::remove_file(self.labels(n.saturating_sub(2)));
        Ok(())
    }

    /// What an earlier run with the same key found for length `n`; damage counts as nothing.
    pub(super) fn load(&self, n: u8) -> Option<ScanResult> {
        let path = self.scan(n);
        if !path.exists() {
            return None;
        }
        let bytes = sealed::read(&path).ok()?;
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        if !header.starts_with(MAGIC) || header[8..40] != self.key {
            return None;
        }
        let numbers = header[40..].as_chunks().0;
        let number = |at: usize| numbers.get(at).map(|bytes| u64::from_le_bytes(*bytes));
        let words: Vec<u64> = body
            .as_chunks()
            .0
            .iter()
            .map(|b| u64::from_le_bytes(*b))
            .collect();
        let pairs: Vec<(u64, u64)> = words.as_chunks().0.iter().map(|[p, c]| (*p, *c)).collect();
        let result = ScanResult {
            counted: Counted {
                distinct: number(0)?,
                frequent: number(1)?,
                pairs,
            },
            labels: LabelsSum {
                labels: number(3)?,
                crc: u32::try_from(number(4)?).ok()?,
            },
        };
        (number(2)? == result.counted.pairs.len() as u64).then_some(result)
    }
}
