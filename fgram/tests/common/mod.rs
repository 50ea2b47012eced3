//! Sets, rows and tables made in code.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::{BuildOptions, Manifest, build_table};
use scone_fgram::{Error, FgramSet, NGram, SetHeader, StoreKind};

/// Ids of one document, uniform below `vocab`.
pub(crate) fn random_ids(seed: u64, vocab: u32, len: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(0..vocab)).collect()
}

pub(crate) fn header(vocab_size: u32, max_n: u8) -> SetHeader {
    SetHeader {
        vocab_size,
        max_n,
        tokenizer_hash: [7; 32],
        min_count: 1,
    }
}

/// The top `limit` n-grams of `documents`, as `docs/method.md` ranks them, with their match counts.
pub(crate) fn mine(documents: &[Vec<u32>], vocab: u32, max_n: u8, limit: usize) -> FgramSet {
    let mut counts: HashMap<NGram, u64> = HashMap::new();
    for ids in documents {
        for n in 2..=usize::from(max_n) {
            for window in ids.windows(n) {
                *counts
                    .entry(NGram::from_slice(window).unwrap())
                    .or_default() += 1;
            }
        }
    }
    let mut ranked: Vec<(NGram, u64)> = counts.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(limit);
    let mut set = FgramSet::new(header(vocab, max_n), ranked).unwrap();
    let mut match_counts = vec![0; set.len()];
    let mut matches = Vec::new();
    for ids in documents {
        matches.clear();
        set.matcher().tag(ids, 0, &mut matches);
        matches
            .iter()
            .flatten()
            .for_each(|m| match_counts[m.row as usize] += 1);
    }
    set.set_match_counts(match_counts).unwrap();
    set
}

/// A set of a few hundred f-grams of up to 5 ids.
pub(crate) fn small_set() -> FgramSet {
    mine(&[random_ids(1, 6, 3000)], 6, 5, 400)
}

/// The row that every table made here has for an f-gram: a function of its ids alone.
pub(crate) fn row_of(ids: &[u32], dim: usize) -> Vec<f32> {
    let seed = ids.iter().fold(17u64, |hash, &id| {
        hash.wrapping_mul(31).wrapping_add(id.into())
    });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..dim).map(|_| rng.random_range(-2.0f32..2.0)).collect()
}

pub(crate) fn model_hash() -> String {
    "ab".repeat(32)
}

pub(crate) fn options(dim: usize) -> BuildOptions {
    BuildOptions {
        dim,
        model_hash: model_hash(),
        batch_rows: 64,
        ..BuildOptions::default()
    }
}

/// Options of a table in another store than sled.
pub(crate) fn in_store(store: StoreKind, dim: usize) -> BuildOptions {
    BuildOptions {
        store,
        ..options(dim)
    }
}

/// Builds without interruption.
pub(crate) fn build(dir: &Path, set: &FgramSet, options: &BuildOptions) -> Result<Manifest, Error> {
    build_with(dir, set, options, row_of)
}

/// Builds with other rows than [`row_of`].
pub(crate) fn build_with(
    dir: &Path,
    set: &FgramSet,
    options: &BuildOptions,
    row: impl Fn(&[u32], usize) -> Vec<f32>,
) -> Result<Manifest, Error> {
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend(row(ids, options.dim)));
        Ok(())
    };
    build_table(dir, set, options, rows, |_, _| {})
}

/// What the tests named `child` of some files do in a process of their own, when this is set.
pub(crate) const CHILD: &str = "SCONE_TEST_CHILD";

/// This test binary again, about to run its test `child` with `task`, behind shell commands that
/// set it up.
pub(crate) fn child(before: &str, task: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            &format!("{before} exec \"$0\" --exact child --nocapture"),
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, task);
    command
}
