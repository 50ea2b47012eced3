//! Files of a table that are changed while it is open: damage is met as an error, the right rows are
//! served, and the process lives.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use common::{CHILD, build, in_store, random_ids, row_of, small_set};
use scone_fgram::table::{LookupResult, Span};
use scone_fgram::{Error, ErrorKind, FgramSet, RowDtype, StoreKind, Table, TableOptions};

const DIM: usize = 128;

fn open(dir: &Path) -> Table {
    Table::open(dir, &TableOptions::default()).unwrap()
}

fn look_up(table: &Table, ids: &[u32]) -> Result<LookupResult, Error> {
    let mut out = LookupResult::default();
    let span = Span {
        context: ids.len() as u32 - 1,
        answers: 1,
    };
    table.lookup(ids, &[span], &mut out)?;
    Ok(out)
}

/// Looks every f-gram up; returns how many were refused. What is answered must be right.
fn refused(table: &Table, set: &FgramSet) -> usize {
    let mut refused = 0;
    for fgram in set.iter() {
        match look_up(table, fgram.ids) {
            Ok(out) => {
                let mut row = Vec::new();
                let numbers = row_of(fgram.ids, DIM);
                RowDtype::F16.encode(&numbers, &mut row).unwrap();
                assert_eq!(out.match_lengths, [fgram.ids.len() as u8]);
                assert_eq!(out.rows, row);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
                refused += 1;
            }
        }
    }
    refused
}

/// Writes noise over a part of a file, in place.
fn overwrite(path: &Path, at: u64, len: usize) {
    let noise: Vec<u8> = random_ids(3, 256, len)
        .iter()
        .map(|&byte| byte as u8)
        .collect();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&noise, at).unwrap();
}

#[test]
fn a_row_overwritten_while_the_table_is_open_is_refused_and_no_other() {
    let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
    build(dir.path(), &set, &in_store(StoreKind::Mapped, DIM)).unwrap();
    let table = open(dir.path());
    assert_eq!(refused(&table, &set), 0);
    assert!(!table.is_damaged());

    // A part of the eighth row and of the one after it (docs/formats.md).
    let row_bytes = 2 * DIM as u64;
    overwrite(&dir.path().join("rows.bin"), 4096 + 8 * row_bytes - 3, 6);
    assert_eq!(refused(&table, &set), 2);
    assert!(table.is_damaged());
    let eighth = set.get(set.served_order()[7] as usize).ids;
    let said = look_up(&table, eighth).unwrap_err().to_string();
    assert!(said.contains(&format!("the row of {eighth:?}")), "{said}");

    // Among others in one look-up, too; and nothing is left of those.
    let mut out = LookupResult::default();
    let ids: Vec<u32> = set.iter().flat_map(|fgram| fgram.ids.to_vec()).collect();
    let whole = [Span {
        context: 0,
        answers: ids.len() as u32,
    }];
    assert!(table.lookup(&ids, &whole, &mut out).is_err());
    assert_eq!(out, LookupResult::default());
}

#[test]
fn keys_overwritten_while_the_table_is_open_hide_nothing() {
    for store in StoreKind::ALL {
        let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
        build(dir.path(), &set, &in_store(store, DIM)).unwrap();
        let table = open(dir.path());
        let path = dir.path().join("keys.bin");
        // A record has 24 bytes; the last 4 are of use in a mapped table alone.
        overwrite(&path, 128 + 24 * 17, 20);
        assert_eq!(refused(&table, &set), 1, "{store}");
        overwrite(&path, 128, 24 * set.len());
        assert_eq!(refused(&table, &set), set.len(), "{store}");
        assert!(table.is_damaged());
    }
}

/// Two tables of the same shape: one is copied over the other, as by `cp` or `rsync --inplace`.
#[test]
fn files_of_another_table_copied_over_an_open_one_give_none_of_its_rows() {
    for name in ["keys.bin", "rows.bin"] {
        let (set, home) = (small_set(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (home.path().join("ours"), home.path().join("theirs"));
        let options = in_store(StoreKind::Mapped, DIM);
        build(&ours, &set, &options).unwrap();
        let other = scone_fgram::table::BuildOptions {
            model_hash: "cd".repeat(32),
            ..options
        };
        build(&theirs, &set, &other).unwrap();
        let table = open(&ours);
        fs::write(ours.join(name), fs::read(theirs.join(name)).unwrap()).unwrap();
        // The numbers of these rows are equal, so only those that are checked with other sums fail.
        let expected = if name == "keys.bin" { set.len() } else { 0 };
        assert_eq!(refused(&table, &set), expected, "{name}");
    }
}

#[test]
fn an_index_changed_or_cut_short_while_the_table_is_open_changes_nothing() {
    for store in StoreKind::ALL {
        let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
        build(dir.path(), &set, &in_store(store, DIM)).unwrap();
        let table = open(dir.path());
        let path = dir.path().join("index.bin");
        overwrite(&path, 0, fs::metadata(&path).unwrap().len() as usize);
        assert_eq!(refused(&table, &set), 0, "{store}");
        File::create(&path).unwrap();
        assert_eq!(refused(&table, &set), 0, "{store}");
        // It is no table to be opened any more, and is found out when it is verified.
        let error = table.verify(|_, _| {}).unwrap_err();
        assert!(error.to_string().contains("index.bin"), "{error}");
        drop(table);
        assert!(Table::open(dir.path(), &TableOptions::default()).is_err());
    }
}

/// Files cut short while they are open, in a process of their own: it would die of a SIGBUS.
#[test]
fn a_file_cut_short_while_the_table_is_open_is_not_the_end_of_the_process() {
    for task in ["rows.bin mapped", "keys.bin mapped", "keys.bin sled"] {
        let output = common::child("", task).output().unwrap();
        assert_eq!(output.status.signal(), None, "{task}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{task}: {said}");
        assert!(said.contains("1 passed"), "{task}: {said}");
    }
}

/// The other end of the test above; nothing without it.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (name, store) = task.split_once(' ').unwrap();
    let store: StoreKind = store.parse().unwrap();
    let (set, home) = (small_set(), tempfile::tempdir().unwrap());
    let dirs = ["short", "other", "good"].map(|name| home.path().join(name));
    for dir in &dirs {
        build(dir, &set, &in_store(store, DIM)).unwrap();
    }
    let [short, other, good] = &dirs;
    let (table, other) = (open(short), open(other));
    assert_eq!(refused(&table, &set), 0);

    let path = short.join(name);
    let length = fs::metadata(&path).unwrap().len();
    let file = File::options().write(true).open(&path).unwrap();
    // The pages behind the first are gone; rows.bin has its first row on the second.
    file.set_len(4096).unwrap();
    assert!(length > 2 * 4096, "{name} has {length} bytes");
    assert!(refused(&table, &set) > 0);
    assert!(table.is_damaged());
    // From then on it answers nothing, and says why.
    assert_eq!(refused(&table, &set), set.len());
    let ids = set.get(0).ids;
    let said = look_up(&table, ids).unwrap_err().to_string();
    assert!(said.contains(name) && said.contains("cut short"), "{said}");
    assert_eq!(refused(&other, &set), 0);

    // Put right by renaming, as tables are replaced, and opened again.
    drop(table);
    fs::rename(good.join(name), &path).unwrap();
    assert_eq!(refused(&open(short), &set), 0);
    assert_eq!(refused(&other, &set), 0);
}
