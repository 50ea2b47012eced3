//! Replacing rows in place: what it changes, what it refuses, and kills in the middle of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{CHILD, build, build_with, in_store, mine, options, random_ids, row_of, small_set};
use scone_fgram::table::{BuildOptions, LookupResult, Span, upsert};
use scone_fgram::{Error, ErrorKind, FgramSet, Manifest, RowDtype, StoreKind, Table, TableOptions};

const DIM: usize = 64;

/// The rows of another model.
fn new_row_of(ids: &[u32], dim: usize) -> Vec<f32> {
    row_of(ids, dim).into_iter().map(|x| 1.0 - x).collect()
}

fn new_options(store: StoreKind) -> BuildOptions {
    BuildOptions {
        model_hash: "cd".repeat(32),
        base_hash: Some("ef".repeat(32)),
        ..in_store(store, DIM)
    }
}

/// A sled table, and a folder for the one its new rows come from.
struct Fixture {
    home: tempfile::TempDir,
    set: FgramSet,
    old: Manifest,
}

impl Fixture {
    fn new() -> Self {
        let (home, set) = (tempfile::tempdir().unwrap(), small_set());
        let old = build(&home.path().join("table"), &set, &options(DIM)).unwrap();
        Self { home, set, old }
    }

    fn table(&self) -> PathBuf {
        self.home.path().join("table")
    }

    fn from(&self) -> PathBuf {
        self.home.path().join("from")
    }

    /// Makes the table that rows come from: the same f-grams, another model.
    fn build_from(&self, store: StoreKind) -> Manifest {
        build_with(&self.from(), &self.set, &new_options(store), new_row_of).unwrap()
    }

    fn upsert(&self) -> Result<scone_fgram::table::UpsertReport, Error> {
        upsert(&self.table(), &self.from(), |_, _| {})
    }

    /// How many rows are new; all others have to be old.
    fn new_rows(&self) -> usize {
        let table = Table::open(&self.table(), &TableOptions::default()).unwrap();
        let is_new = |ids: &[u32]| {
            let row = look_up(&table, ids);
            assert!(
                [row_of(ids, DIM), new_row_of(ids, DIM)]
                    .map(encoded)
                    .contains(&row)
            );
            row == encoded(new_row_of(ids, DIM))
        };
        self.set.iter().filter(|fgram| is_new(fgram.ids)).count()
    }

    fn verify(&self) -> Result<u64, Error> {
        let table = Table::open(&self.table(), &TableOptions::default())?;
        table.verify(|_, _| {}).map(|report| report.rows)
    }
}

fn encoded(row: Vec<f32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    RowDtype::F16.encode(&row, &mut bytes).unwrap();
    bytes
}

fn look_up(table: &Table, ids: &[u32]) -> Vec<u8> {
    let mut out = LookupResult::default();
    let span = Span {
        context: ids.len() as u32 - 1,
        answers: 1,
    };
    table.lookup(ids, &[span], &mut out).unwrap();
    assert_eq!(usize::from(out.match_lengths[0]), ids.len());
    out.rows
}

#[test]
fn a_table_of_another_model_gives_all_its_rows_and_its_name() {
    for store in StoreKind::ALL {
        let fixture = Fixture::new();
        let new = fixture.build_from(store);
        let mut seen = Vec::new();
        let report = upsert(&fixture.table(), &fixture.from(), |done, total| {
            seen.push((done, total))
        });
        let report = report.unwrap();
        assert_eq!((report.replaced, report.unchanged), (400, 0));
        assert!(seen.is_sorted() && seen[0] == (0, 400) && seen.ends_with(&[(400, 400)]));
        let now = Manifest::read(&fixture.table()).unwrap();
        assert_eq!(now, report.manifest);
        assert_eq!(
            (&now.table_id, &now.model_hash, &now.base_hash),
            (&new.table_id, &new.model_hash, &new.base_hash)
        );
        assert_eq!(now.checksum_seed, fixture.old.table_id);
        assert_ne!(now.rows_sha256, fixture.old.rows_sha256);
        assert_eq!(fixture.new_rows(), 400);
        assert_eq!(fixture.verify().unwrap(), 400);
        assert!(!fixture.table().join("upsert.json").exists());
        // Once more, there is nothing to replace.
        let again = fixture.upsert().unwrap();
        assert_eq!((again.replaced, again.unchanged), (0, 400));
        assert_eq!(again.manifest, now);
        // And back again, from a copy of what it was.
        fs::remove_dir_all(fixture.from()).unwrap();
        build(&fixture.from(), &fixture.set, &in_store(store, DIM)).unwrap();
        assert_eq!(fixture.upsert().unwrap().manifest, fixture.old);
        assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (0, 400));
    }
}

#[test]
fn a_part_of_the_rows_may_be_replaced_by_those_of_the_same_model() {
    let fixture = Fixture::new();
    let part = mine(&[random_ids(1, 6, 3000)], 6, 5, 40);
    build_with(&fixture.from(), &part, &options(DIM), new_row_of).unwrap();
    let report = fixture.upsert().unwrap();
    assert_eq!((report.replaced, report.unchanged), (40, 0));
    assert_eq!(report.manifest.table_id, fixture.old.table_id);
    assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (40, 400));
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let good = options(DIM);
    let other_set = mine(&[random_ids(2, 6, 3000)], 6, 5, 400);
    let part = mine(&[random_ids(1, 6, 3000)], 6, 5, 40);
    let wide_set = mine(&[random_ids(1, 6, 3000)], 7, 5, 400);
    let fixture = Fixture::new();
    let int8 = BuildOptions {
        dtype: RowDtype::Int8,
        ..good.clone()
    };
    let one_shard = BuildOptions {
        shard: (1, 2),
        ..good.clone()
    };
    let cases = [
        ("another dim", fixture.set.clone(), options(DIM + 1)),
        ("another dtype", fixture.set.clone(), int8),
        ("another shard", fixture.set.clone(), one_shard),
        ("another vocab_size", wide_set, good.clone()),
        ("is not in the table to be changed", other_set, good),
        (
            "only 40 of the 400 rows",
            part,
            new_options(StoreKind::Sled),
        ),
    ];
    for (problem, set, options) in cases {
        let from = fixture.home.path().join(problem);
        build(&from, &set, &options).unwrap();
        let error = upsert(&fixture.table(), &from, |_, _| {}).unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::Mismatch | ErrorKind::InvalidInput
        ));
        assert!(error.to_string().contains(problem), "{error}");
    }
    assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (0, 400));
    assert!(!fixture.table().join("upsert.json").exists());
}

#[test]
fn a_mapped_table_and_one_in_use_are_not_changed() {
    let fixture = Fixture::new();
    fixture.build_from(StoreKind::Mapped);
    let error = upsert(&fixture.from(), &fixture.table(), |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("is mapped"), "{error}");
    let served = Table::open(&fixture.table(), &TableOptions::default()).unwrap();
    let other = common::child("", &fixture.task("upsert", 0))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("TableInUse"), "{said}");
    drop(served);
    assert_eq!(fixture.verify().unwrap(), 400);
}

impl Fixture {
    fn task(&self, task: &str, at: u64) -> String {
        format!("{task} {at} {}", self.home.path().display())
    }
}

/// What the child does. Not a test of its own.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let [task, at, home] = task.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let at: u64 = at.parse().unwrap();
    let home = Path::new(home);
    let progress = |done, _| match task {
        // As a kill would: nothing is flushed or dropped.
        "abort" if done == at => std::process::abort(),
        "upsert" => println!("row {done}"),
        _ => {}
    };
    upsert(&home.join("table"), &home.join("from"), progress).unwrap();
}

/// The state after a stop: rows of both kinds, the old name, and told apart from a sound table.
fn check_stopped(fixture: &Fixture) {
    let manifest = Manifest::read(&fixture.table()).unwrap();
    assert_eq!(manifest, fixture.old);
    fixture.new_rows();
    let error = fixture.verify().unwrap_err();
    assert!(matches!(error, Error::UnfinishedUpsert { .. }), "{error}");
    assert!(error.to_string().contains("start it again"), "{error}");
}

#[test]
fn an_upsert_stopped_at_any_row_is_finished_by_the_next() {
    for at in [0, 1, 200, 400] {
        let fixture = Fixture::new();
        let new = fixture.build_from(StoreKind::Mapped);
        let stopped = common::child("ulimit -c 0;", &fixture.task("abort", at));
        assert!(!{ stopped }.output().unwrap().status.success());
        check_stopped(&fixture);
        let report = fixture.upsert().unwrap();
        assert_eq!(report.replaced + report.unchanged, 400);
        assert_eq!(report.manifest.table_id, new.table_id);
        assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (400, 400));
    }
}

#[test]
fn an_upsert_killed_with_sigkill_is_finished_by_the_next() {
    for at in [3, 150, 390] {
        let fixture = Fixture::new();
        fixture.build_from(StoreKind::Mapped);
        let mut child = common::child("", &fixture.task("upsert", 0))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It may go on a little, or even end, before the signal arrives.
        let reached = lines
            .map(Result::unwrap)
            .any(|line| line.ends_with(&format!("row {at}")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reached);
        fixture.new_rows();
        fixture.upsert().unwrap();
        assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (400, 400));
    }
}

#[test]
fn a_stop_after_the_manifest_was_replaced_is_finished_too() {
    let fixture = Fixture::new();
    let new = fixture.build_from(StoreKind::Sled);
    let done = fixture.upsert().unwrap();
    fs::write(fixture.table().join("upsert.json"), new.to_json()).unwrap();
    assert!(matches!(
        fixture.verify(),
        Err(Error::UnfinishedUpsert { .. })
    ));
    let again = fixture.upsert().unwrap();
    assert_eq!((again.replaced, again.manifest), (0, done.manifest));
    assert_eq!(fixture.verify().unwrap(), 400);
}

#[test]
fn an_unfinished_upsert_gives_way_only_to_one_of_every_row() {
    let fixture = Fixture::new();
    fixture.build_from(StoreKind::Mapped);
    let stopped = common::child("ulimit -c 0;", &fixture.task("abort", 200));
    assert!(!{ stopped }.output().unwrap().status.success());
    let part = mine(&[random_ids(1, 6, 3000)], 6, 5, 40);
    fs::remove_dir_all(fixture.from()).unwrap();
    build(&fixture.from(), &part, &options(DIM)).unwrap();
    let error = fixture.upsert().unwrap_err();
    assert!(
        error.to_string().contains("an upsert is unfinished"),
        "{error}"
    );
    fs::remove_dir_all(fixture.from()).unwrap();
    build(&fixture.from(), &fixture.set, &options(DIM)).unwrap();
    assert_eq!(fixture.upsert().unwrap().manifest, fixture.old);
    assert_eq!((fixture.new_rows(), fixture.verify().unwrap()), (0, 400));
}
