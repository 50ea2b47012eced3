//! Damaged or missing rows: an error or the right rows, never a wrong row or a dead process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{build, in_store, mine, options, random_ids, row_of, small_set};
use scone_fgram::table::{BuildOptions, LookupResult, Span};
use scone_fgram::{Error, ErrorKind, FgramSet, RowDtype, StoreKind, Table, TableOptions};

const DIM: usize = 128;

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

fn copy_dir(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).unwrap();
        return;
    }
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

fn cold() -> TableOptions {
    TableOptions {
        hot_bytes: 0,
        ..TableOptions::default()
    }
}

fn look_up(table: &Table, ids: &[u32]) -> Result<LookupResult, Error> {
    let mut out = LookupResult::default();
    let span = Span {
        context: ids.len() as u32 - 1,
        answers: 1,
    };
    table
        .lookup(ids, &[span], &mut out)
        .inspect_err(|_| assert_eq!(out, LookupResult::default()))?;
    Ok(out)
}

/// What came of a damaged copy.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The damage hit nothing that counts.
    Sound,
    /// It opened, but some rows are refused, and so is the whole by verify.
    Partial,
    /// It does not open.
    Refused,
}

/// Opens a table and looks every f-gram up. Whatever it answers must be right.
fn probe(dir: &Path, set: &FgramSet) -> Outcome {
    let table = match Table::open(dir, &cold()) {
        Ok(table) => table,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::DataLoss | ErrorKind::Io),
                "{error}"
            );
            return Outcome::Refused;
        }
    };
    let mut refused = 0;
    for fgram in set.iter() {
        match look_up(&table, fgram.ids) {
            Ok(out) => {
                let mut row = Vec::new();
                RowDtype::F16
                    .encode(&row_of(fgram.ids, DIM), &mut row)
                    .unwrap();
                assert_eq!(
                    (out.match_lengths[0], &out.rows),
                    (fgram.ids.len() as u8, &row)
                );
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::DataLoss | ErrorKind::Io),
                    "{error}"
                );
                refused += 1;
            }
        }
    }
    let verified = table.verify(|_, _| {});
    assert!(
        refused == 0 || verified.is_err(),
        "verify missed {refused} rows"
    );
    if verified.is_ok() {
        Outcome::Sound
    } else {
        Outcome::Partial
    }
}

/// A table of several sled pages, and a folder for damaged copies.
struct Bench {
    home: tempfile::TempDir,
    set: FgramSet,
}

impl Bench {
    fn new() -> Self {
        let set = mine(&[random_ids(5, 6, 6000)], 6, 5, 1200);
        let home = tempfile::tempdir().unwrap();
        build(&home.path().join("table"), &set, &options(DIM)).unwrap();
        Self { home, set }
    }

    /// Changes the bytes of one file of a copy and probes it.
    fn damage(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let copy = self.home.path().join("copy");
        copy_dir(&self.home.path().join("table"), &copy);
        let mut bytes = fs::read(copy.join(file)).unwrap();
        change(&mut bytes);
        fs::write(copy.join(file), bytes).unwrap();
        let outcome = probe(&copy, &self.set);
        fs::remove_dir_all(copy).unwrap();
        outcome
    }

    /// The files of the store, relative to the table, with the length up to the last used byte.
    fn store_files(&self) -> Vec<(PathBuf, usize)> {
        let table = self.home.path().join("table");
        let used = |file: &PathBuf| {
            let bytes = fs::read(file).unwrap();
            let used = bytes
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last + 1);
            (file.strip_prefix(&table).unwrap().to_owned(), used)
        };
        files(&table.join("rows.sled")).iter().map(used).collect()
    }
}

#[test]
fn flipped_bits_in_the_store_never_make_a_wrong_row() {
    let bench = Bench::new();
    let mut outcomes = Vec::new();
    for (file, used) in bench.store_files() {
        let samples = random_ids(9, (8 * used) as u32, 60);
        let bits = (0..64.min(8 * used))
            .step_by(8)
            .chain(samples.iter().map(|&bit| bit as usize));
        for bit in bits {
            outcomes.push(bench.damage(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8)));
        }
    }
    let refused = outcomes
        .iter()
        .filter(|&outcome| *outcome != Outcome::Sound)
        .count();
    assert!(
        refused * 4 > outcomes.len(),
        "damage hardly ever noticed: {outcomes:?}"
    );
}

#[test]
fn a_store_cut_short_never_makes_a_wrong_row() {
    let bench = Bench::new();
    for (file, used) in bench
        .store_files()
        .into_iter()
        .filter(|(file, _)| file.ends_with("db"))
    {
        for eighth in 0..8 {
            let outcome = bench.damage(&file, |bytes| bytes.truncate(used * eighth / 8));
            assert_ne!(outcome, Outcome::Sound, "cut to {eighth}/8");
        }
        let outcome = bench.damage(&file, |bytes| bytes.fill(0));
        assert_eq!(outcome, Outcome::Refused);
        let noise = random_ids(4, 256, used).into_iter().map(|byte| byte as u8);
        let outcome = bench.damage(&file, |bytes| *bytes = noise.collect());
        assert_eq!(outcome, Outcome::Refused);
    }
}

#[test]
fn a_table_without_its_store_is_refused_and_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &small_set(), &options(DIM)).unwrap();
    fs::remove_dir_all(dir.path().join("rows.sled")).unwrap();
    let error = Table::open(dir.path(), &cold()).unwrap_err();
    assert!(
        error.to_string().contains("rows.sled/db is missing"),
        "{error}"
    );
    assert!(!dir.path().join("rows.sled").exists());
}

#[test]
fn a_table_without_its_manifest_is_no_table() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &small_set(), &options(DIM)).unwrap();
    fs::remove_file(dir.path().join("table.json")).unwrap();
    for dir in [dir.path(), &dir.path().join("nowhere")] {
        let error = Table::open(dir, &cold()).unwrap_err();
        assert!(matches!(error, Error::NoTable { .. }), "{error}");
        assert!(
            error.to_string().contains("it has no table.json"),
            "{error}"
        );
    }
}

fn key(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}

/// Changes the store of a fresh table through sled itself, so that sled sees nothing wrong.
/// `change` gets the store and two f-grams that are neither the first nor the last key.
fn changed(change: impl FnOnce(&sled::Db, &[u32], &[u32])) -> (tempfile::TempDir, [Vec<u32>; 2]) {
    let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
    build(dir.path(), &set, &options(DIM)).unwrap();
    let mut keys: Vec<Vec<u32>> = set.iter().map(|fgram| fgram.ids.to_vec()).collect();
    keys.sort();
    let two = [keys[100].clone(), keys[101].clone()];
    let db = sled::open(dir.path().join("rows.sled")).unwrap();
    change(&db, &two[0], &two[1]);
    db.flush().unwrap();
    drop(db);
    (dir, two)
}

/// The row of `ids` is refused for the reason given, other rows are served, verify fails.
fn check_refused(dir: &Path, ids: &[u32], why: &str) {
    let table = Table::open(dir, &cold()).unwrap();
    let error = look_up(&table, ids).unwrap_err();
    assert!(
        matches!(error, Error::DataLoss { .. }) && error.to_string().contains(why),
        "{error}"
    );
    assert!(look_up(&table, &ids[ids.len() - 2..]).is_ok() || ids.len() == 2);
    let error = table.verify(|_, _| {}).unwrap_err();
    assert!(
        error.to_string().contains("rows are bad") && error.to_string().contains(why),
        "{error}"
    );
    let verify = TableOptions {
        verify: true,
        ..cold()
    };
    drop(table);
    assert!(Table::open(dir, &verify).is_err());
}

#[test]
fn a_flipped_bit_that_sled_does_not_see_is_refused() {
    let (dir, [ids, _]) = changed(|db, ids, _| {
        let mut value = db.get(key(ids)).unwrap().unwrap().to_vec();
        value[17] ^= 0x10;
        db.insert(key(ids), value).unwrap();
    });
    check_refused(dir.path(), &ids, "damaged");
}

#[test]
fn rows_that_were_swapped_are_refused() {
    let (dir, [ids, other]) = changed(|db, ids, other| {
        let (a, b) = (
            db.get(key(ids)).unwrap().unwrap(),
            db.get(key(other)).unwrap().unwrap(),
        );
        db.insert(key(ids), b).unwrap();
        db.insert(key(other), a).unwrap();
    });
    check_refused(dir.path(), &ids, "damaged");
    check_refused(dir.path(), &other, "damaged");
}

#[test]
fn a_row_cut_short_or_missing_is_refused() {
    let (dir, [ids, other]) = changed(|db, ids, other| {
        db.insert(key(ids), &b"abc"[..]).unwrap();
        db.remove(key(other)).unwrap();
    });
    check_refused(dir.path(), &ids, "damaged");
    let table = Table::open(dir.path(), &cold()).unwrap();
    assert!(
        look_up(&table, &other)
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
}

#[test]
fn a_row_too_many_is_noticed_by_verify() {
    let (dir, _) = changed(|db, ids, _| {
        db.insert(key(&[ids, ids].concat()), &b"abc"[..]).unwrap();
    });
    let table = Table::open(dir.path(), &cold()).unwrap();
    let error = table.verify(|_, _| {}).unwrap_err();
    assert!(
        error.to_string().contains("401 rows stored, but 400 keys"),
        "{error}"
    );
}

#[test]
fn files_of_another_table_are_refused() {
    for store in StoreKind::ALL {
        let (set, home) = (small_set(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (home.path().join("ours"), home.path().join("theirs"));
        let manifest = build(&ours, &set, &in_store(store, DIM)).unwrap();
        let other = BuildOptions {
            model_hash: "cd".repeat(32),
            ..in_store(store, DIM)
        };
        build(&theirs, &set, &other).unwrap();
        let listed = manifest.files.iter().map(|file| file.path.as_str());
        let rows = (store == StoreKind::Sled).then_some("rows.sled");
        for name in listed.chain(rows) {
            let copy = home.path().join("copy");
            copy_dir(&ours, &copy);
            copy_dir(&theirs.join(name), &copy.join(name));
            let error = Table::open(&copy, &cold()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataLoss, "{name}: {error}");
            let named = error.to_string().contains("another table");
            assert!(named || name == "rows.sled", "{name}: {error}");
            fs::remove_dir_all(copy).unwrap();
        }
    }
}

/// A table whose copying stopped halfway: at a border of files, and inside each of them.
#[test]
fn a_half_copied_table_is_refused() {
    for store in StoreKind::ALL {
        let (set, home) = (small_set(), tempfile::tempdir().unwrap());
        let whole = home.path().join("whole");
        build(&whole, &set, &in_store(store, DIM)).unwrap();
        // What sled does with files that are cut short has tests of its own.
        let top = |file: &PathBuf| file.parent() == Some(&whole);
        for file in files(&whole).into_iter().filter(top) {
            let name = file.strip_prefix(&whole).unwrap();
            let copy = home.path().join("copy");
            copy_dir(&whole, &copy);
            let length = fs::metadata(&file).unwrap().len();
            for kept in [
                None,
                Some(0),
                Some(length / 2),
                Some(length.saturating_sub(1)),
            ] {
                let target = copy.join(name);
                match kept {
                    None => fs::remove_file(&target).unwrap(),
                    Some(kept) => {
                        fs::copy(&file, &target).unwrap();
                        let target = fs::File::options().write(true).open(target).unwrap();
                        target.set_len(kept).unwrap();
                    }
                }
                let refused = Table::open(&copy, &cold());
                // All but the line feed at the end of table.json is all of it.
                let whole = name.ends_with("table.json") && kept == Some(length - 1);
                assert_eq!(refused.is_err(), !whole, "{name:?} {kept:?}");
            }
            fs::remove_dir_all(copy).unwrap();
        }
    }
}

#[test]
fn verify_names_the_first_damaged_row_of_a_mapped_table() {
    let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
    build(dir.path(), &set, &in_store(StoreKind::Mapped, DIM)).unwrap();
    let path = dir.path().join("rows.bin");
    let mut bytes = fs::read(&path).unwrap();
    let row_bytes = 2 * DIM;
    for row in [70, 300] {
        bytes[4096 + row * row_bytes + 5] ^= 0x20;
    }
    fs::write(&path, bytes).unwrap();
    let table = Table::open(dir.path(), &cold()).unwrap();
    let text = table.verify(|_, _| {}).unwrap_err().to_string();
    let first = set.get(set.served_order()[70] as usize).ids;
    assert!(text.contains("2 of 400 rows are bad"), "{text}");
    assert!(
        text.contains(&format!("the row of {first:?} is damaged")),
        "{text}"
    );
}

/// Damage behind right checksums of the header never makes a panic, nor a row of another f-gram, nor
/// hides one.
#[test]
fn flipped_bits_in_keys_and_index_are_refused_or_change_nothing() {
    for store in StoreKind::ALL {
        let (set, home) = (small_set(), tempfile::tempdir().unwrap());
        let dir = home.path().join("table");
        build(&dir, &set, &in_store(store, DIM)).unwrap();
        for name in ["keys.bin", "index.bin"] {
            let bytes = fs::read(dir.join(name)).unwrap();
            for bit in random_ids(12, 8 * bytes.len() as u32, 200) {
                let mut damaged = bytes.clone();
                damaged[bit as usize / 8] ^= 1 << (bit % 8);
                fs::write(dir.join(name), damaged).unwrap();
                let outcome = probe(&dir, &set);
                assert_ne!(outcome, Outcome::Sound, "{name}, bit {bit}");
                if name == "index.bin" {
                    assert_eq!(outcome, Outcome::Refused, "bit {bit}");
                }
            }
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// What is behind the header and before the rows is checked too, and what was opened before it changed.
#[test]
fn verify_finds_any_flipped_bit_of_a_mapped_table_that_is_open() {
    let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
    build(dir.path(), &set, &in_store(StoreKind::Mapped, DIM)).unwrap();
    let table = Table::open(dir.path(), &cold()).unwrap();
    table.verify_sha256().unwrap();
    for name in ["rows.bin", "keys.bin", "index.bin"] {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        let bits = random_ids(3, 8 * bytes.len() as u32, 100);
        // Of each part of a header and of the zeros behind it, too.
        for bit in bits.into_iter().chain((0..8 * 200).step_by(61)) {
            let mut damaged = bytes.clone();
            damaged[bit as usize / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            assert!(table.verify(|_, _| {}).is_err(), "{name}, bit {bit}");
        }
        assert!(table.verify_sha256().is_err(), "{name}");
        fs::write(&path, bytes).unwrap();
        table.verify(|_, _| {}).unwrap();
    }
}

/// A table begins with the rows served most in memory, and does not begin with a damaged one.
#[test]
fn a_damaged_row_refuses_the_table_when_it_is_read_at_start() {
    let (dir, set) = (tempfile::tempdir().unwrap(), small_set());
    build(dir.path(), &set, &in_store(StoreKind::Mapped, DIM)).unwrap();
    let path = dir.path().join("rows.bin");
    let mut bytes = fs::read(&path).unwrap();
    // The first row begins there (docs/formats.md).
    bytes[4096] ^= 1;
    fs::write(&path, bytes).unwrap();
    let open = |options: TableOptions| Table::open(dir.path(), &options).map(|_| ());
    let error = open(TableOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    open(cold()).unwrap();
    open(TableOptions {
        warm: false,
        ..TableOptions::default()
    })
    .unwrap();
}
