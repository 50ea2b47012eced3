#![allow(clippy::unwrap_used, reason = "tests")]
use std::path::Path;

use super::*;
use crate::mining::in_memory::MemoryScan;
use crate::mining::{Found, MiningOptions, most_frequent};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const KEY: [u8; 32] = [3; 32];

fn corpus(seed: u64, vocab_size: u32, documents: usize) -> TokenizedCorpus {
    let mut rng = StdRng::seed_from_u64(seed);
    let documents: Vec<Vec<u32>> = (0..documents)
        .map(|_| {
            let len = rng.random_range(0..200);
            let mut id = || {
                let (a, b) = (
                    rng.random_range(0..vocab_size),
                    rng.random_range(0..vocab_size),
                );
                a.min(b)
            };
            (0..len).map(|_| id()).collect()
        })
        .collect();
    TokenizedCorpus::from_documents(vocab_size, documents.iter().map(Vec::as_slice), 0)
}

fn external(
    corpus: &TokenizedCorpus,
    dir: &Path,
    key: [u8; 32],
    options: &MiningOptions,
    pairs: usize,
) -> Result<Found> {
    let limits = Limits {
        pairs,
        max_n: options.max_n,
    };
    most_frequent(&mut ExternalScan::new(corpus, dir, key, limits)?, options)
}

#[test]
fn spilled_scans_find_what_scans_in_memory_find() {
    for (round, (vocab_size, documents)) in [(2, 30), (9, 60), (300, 80), (70_000, 20)]
        .into_iter()
        .enumerate()
    {
        let corpus = corpus(round as u64, vocab_size, documents);
        for (min_count, max_fgrams, max_n) in [
            (1, 1, 5),
            (2, 77, 5),
            (3, 1_000_000, 8),
            (1, 400, 2),
            (1, 3000, 3),
        ] {
            let options = MiningOptions {
                max_n,
                min_count,
                max_fgrams,
            };
            let expected = most_frequent(&mut MemoryScan::new(&corpus), &options).unwrap();
            for pairs in [90, 1 << 20] {
                let dir = tempfile::tempdir().unwrap();
                let found = external(&corpus, dir.path(), KEY, &options, pairs).unwrap();
                assert_eq!(
                    found, expected,
                    "{vocab_size} ids, {options:?}, {pairs} pairs"
                );
            }
        }
    }
}

#[test]
fn chunks_may_end_anywhere() {
    // Longer than a chunk of labels, in documents that end at, before and behind its end.
    let ids: Vec<u32> = (0..3 * labels::CHUNK as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) >> 25)
        .collect();
    for first in [labels::CHUNK - 2, labels::CHUNK - 1, labels::CHUNK, 5] {
        let documents = [&ids[..first], &ids[first..first + 1], &ids[first + 1..]];
        let corpus = TokenizedCorpus::from_documents(128, documents, 0);
        let options = MiningOptions {
            max_n: 4,
            min_count: 2,
            max_fgrams: 50_000,
        };
        let expected = most_frequent(&mut MemoryScan::new(&corpus), &options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let found = external(&corpus, dir.path(), KEY, &options, 1 << 17).unwrap();
        assert!(found == expected, "first document of {first}");
    }
}

/// The files of a working directory.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(entry).collect();
    files.sort();
    files
}

#[test]
fn a_later_run_goes_on_behind_the_last_finished_scan() {
    let corpus = corpus(8, 12, 60);
    let options = MiningOptions {
        max_n: 5,
        min_count: 2,
        max_fgrams: 900,
    };
    let expected = most_frequent(&mut MemoryScan::new(&corpus), &options).unwrap();
    for stop_after in 0..=4u64 {
        let dir = tempfile::tempdir().unwrap();
        // A scanner that is stopped as by a kill: what it has saved is on disk, and no more.
        let limits = Limits {
            pairs: 50,
            max_n: 5,
        };
        let mut scan = ExternalScan::new(&corpus, dir.path(), KEY, limits).unwrap();
        struct Stopped<'a, 'b>(&'a mut ExternalScan<'b>, u64);
        impl Scanner for Stopped<'_, '_> {
            fn count(&mut self, needed: u64, limit: usize) -> Result<Counted> {
                if self.1 == 0 {
                    // Some labels were written when it came.
                    std::fs::write(self.0.dir.labels(self.0.n - 1), "half")?;
                    anyhow::bail!("stopped");
                }
                self.1 -= 1;
                self.0.count(needed, limit)
            }
            fn advance(&mut self, survivors: Vec<(u64, u64)>) -> Result<()> {
                self.0.advance(survivors)
            }
        }
        let stopped = most_frequent(&mut Stopped(&mut scan, stop_after), &options);
        assert_eq!(stopped.is_err(), stop_after < 4);
        drop(scan);
        let before = files(dir.path());
        let found = external(&corpus, dir.path(), KEY, &options, 1000).unwrap();
        assert_eq!(found, expected, "stopped after {stop_after}");
        let scans = |files: &[(String, Vec<u8>)]| -> Vec<_> {
            let scans = files.iter().filter(|(name, _)| name.starts_with("scan"));
            scans.cloned().collect()
        };
        let (before, after) = (scans(&before), scans(&files(dir.path())));
        assert_eq!(before.len() as u64, stop_after);
        assert_eq!(before, after[..before.len()], "finished scans are kept");
    }
}

#[test]
fn work_of_another_run_or_damaged_work_is_not_used() {
    let (mine, other) = (corpus(1, 9, 40), corpus(2, 9, 40));
    let options = MiningOptions {
        max_n: 5,
        min_count: 1,
        max_fgrams: 500,
    };
    let expected = most_frequent(&mut MemoryScan::new(&mine), &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    external(&other, dir.path(), [9; 32], &options, 1000).unwrap();
    assert_eq!(
        external(&mine, dir.path(), KEY, &options, 1000).unwrap(),
        expected
    );
    for name in ["scan-2.bin", "scan-4.bin"] {
        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let found = external(&mine, dir.path(), KEY, &options, 1000);
        assert_eq!(found.unwrap(), expected);
    }
}

#[test]
fn a_directory_is_used_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = WorkDir::open(dir.path(), KEY, 5).unwrap();
    let second = WorkDir::open(dir.path(), KEY, 5).map(|_| ());
    assert!(second.unwrap_err().to_string().contains("another process"));
}

#[test]
fn many_runs_are_joined() {
    let corpus = corpus(5, 40, 100);
    let options = MiningOptions {
        max_n: 3,
        min_count: 1,
        max_fgrams: 2000,
    };
    let expected = most_frequent(&mut MemoryScan::new(&corpus), &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Some thousand runs of ten pairs.
    let found = external(&corpus, dir.path(), KEY, &options, 10).unwrap();
    assert_eq!(found, expected);
}
