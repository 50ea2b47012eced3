//! Building tables: interruption, disk full, other runs in the way.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Output;

use common::{CHILD, build, in_store, mine, options, random_ids, row_of, small_set};
use scone_fgram::table::{BuildOptions, build_table};
use scone_fgram::{Error, ErrorKind, FgramSet, Manifest, RowDtype, StoreKind, Table, TableOptions};

const DIM: usize = 16;

/// The error of a caller, as a trainer would have one.
#[derive(Debug)]
enum Failure {
    #[expect(dead_code, reason = "shown when a test fails")]
    Table(Error),
    Stopped,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Table(error)
    }
}

/// Builds until `limit` rows were computed, then fails; returns how many were.
fn build_some(
    store: StoreKind,
    dir: &Path,
    set: &FgramSet,
    limit: usize,
) -> (Result<Manifest, Failure>, usize) {
    let computed = Cell::new(0);
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        if computed.get() + batch.len() > limit {
            return Err(Failure::Stopped);
        }
        computed.set(computed.get() + batch.len());
        batch.iter().for_each(|ids| out.extend(row_of(ids, DIM)));
        Ok(())
    };
    (
        build_table(dir, set, &in_store(store, DIM), rows, |_, _| {}),
        computed.get(),
    )
}

fn open(dir: &Path) -> Result<Table, Error> {
    Table::open(
        dir,
        &TableOptions {
            verify: true,
            ..TableOptions::default()
        },
    )
}

#[test]
fn an_interrupted_build_goes_on_and_ends_the_same() {
    for store in StoreKind::ALL {
        let (set, home) = (small_set(), tempfile::tempdir().unwrap());
        let whole_dir = home.path().join("whole");
        let whole = build(&whole_dir, &set, &in_store(store, DIM)).unwrap();
        let dir = home.path().join("parts");
        let mut computed = 0;
        for limit in [0, 64, 100, 130] {
            let (built, now) = build_some(store, &dir, &set, limit);
            assert!(matches!(built, Err(Failure::Stopped)), "{built:?}");
            let refused = open(&dir).unwrap_err();
            assert!(matches!(refused, Error::NoTable { .. }), "{refused}");
            assert!(refused.to_string().contains("has not ended"), "{refused}");
            computed += now;
        }
        assert_eq!(computed, 3 * 64 + 64);
        let (built, now) = build_some(store, &dir, &set, usize::MAX);
        assert_eq!(built.unwrap(), whole);
        assert_eq!(computed + now, set.len(), "no row was computed twice");
        let read = |dir: &Path, file: &str| fs::read(dir.join(file)).unwrap();
        for file in whole
            .files
            .iter()
            .map(|file| &*file.path)
            .chain(["table.json"])
        {
            assert_eq!(read(&dir, file), read(&whole_dir, file), "{file}");
        }
        let left = ["build.json", "rows.crc"].map(|name| dir.join(name).exists());
        assert_eq!(left, [false; 2]);
        open(&dir).unwrap();
        // Once more, there is nothing left to do.
        let (built, now) = build_some(store, &dir, &set, 0);
        assert_eq!((built.unwrap(), now), (whole, 0));
    }
}

#[test]
fn rows_damaged_before_a_build_goes_on_are_computed_anew() {
    let (set, home) = (small_set(), tempfile::tempdir().unwrap());
    let store = StoreKind::Mapped;
    let whole = build(&home.path().join("whole"), &set, &in_store(store, DIM)).unwrap();
    type Change = fn(&mut Vec<u8>);
    // Case by case: how many of the 128 rows there are kept. Rows have 32 bytes, marks 8.
    let changes: [(&str, Change, usize); 6] = [
        ("rows.bin", |bytes| flip_a_bit_of_a_row(bytes), 127),
        ("rows.crc", |bytes| flip_a_bit_of_a_mark(bytes), 127),
        ("rows.crc", |bytes| bytes.truncate(8 * 100 + 3), 0),
        ("rows.bin", |bytes| bytes.truncate(4096 + 101 * 32), 0),
        ("rows.bin", |bytes| bytes[70] ^= 1, 0),
        ("rows.bin", |bytes| bytes[4096..].fill(0), 0),
    ];
    for (case, (file, change, kept)) in changes.into_iter().enumerate() {
        let dir = home.path().join(case.to_string());
        build_some(store, &dir, &set, 128).0.unwrap_err();
        let path = dir.join(file);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let (built, computed) = build_some(store, &dir, &set, usize::MAX);
        assert_eq!(built.unwrap(), whole);
        assert_eq!(computed, set.len() - kept, "case {case}");
        open(&dir).unwrap();
    }
}

/// Of one that is there: the others are zeros.
fn flip_a_bit_of_a_row(bytes: &mut [u8]) {
    let there = bytes[4096..].iter().position(|&byte| byte != 0).unwrap();
    bytes[4096 + there] ^= 1;
}

fn flip_a_bit_of_a_mark(bytes: &mut [u8]) {
    let there = bytes.chunks(8).position(|mark| mark[4] == 1).unwrap();
    bytes[8 * there] ^= 1;
}

#[test]
fn marks_left_by_a_kill_at_the_very_end_are_cleared() {
    for store in StoreKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let whole = build(dir.path(), &small_set(), &in_store(store, DIM)).unwrap();
        for name in ["build.json", "rows.crc"] {
            fs::write(dir.path().join(name), b"left").unwrap();
        }
        let (built, computed) = build_some(store, dir.path(), &small_set(), 0);
        assert_eq!((built.unwrap(), computed), (whole, 0));
        assert!(!dir.path().join("build.json").exists() && !dir.path().join("rows.crc").exists());
    }
}

#[test]
fn progress_runs_from_nothing_to_the_total() {
    let (set, dir) = (small_set(), tempfile::tempdir().unwrap());
    let mut seen = Vec::new();
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        out.resize(batch.len() * DIM, 0.0);
        Ok::<(), Error>(())
    };
    build_table(dir.path(), &set, &options(DIM), rows, |done, total| {
        seen.push((done, total))
    })
    .unwrap();
    let total = set.len() as u64;
    assert_eq!(
        (seen[0], *seen.last().unwrap()),
        ((0, total), (total, total))
    );
    assert!(seen.is_sorted() && seen.len() == 1 + set.len().div_ceil(64));
}

#[test]
fn another_run_in_the_directory_is_refused_by_name() {
    let set = small_set();
    let other_set = mine(&[random_ids(2, 6, 3000)], 6, 5, 400);
    let good = options(DIM);
    let others = [
        (
            "model",
            set.clone(),
            BuildOptions {
                model_hash: "cd".repeat(32),
                ..good.clone()
            },
        ),
        ("f-gram set", other_set, good.clone()),
        (
            "dtype",
            set.clone(),
            BuildOptions {
                dtype: RowDtype::Int8,
                ..good.clone()
            },
        ),
        (
            "dim",
            set.clone(),
            BuildOptions {
                dim: DIM + 1,
                ..good.clone()
            },
        ),
        (
            "shard",
            set.clone(),
            BuildOptions {
                shard: (1, 2),
                ..good.clone()
            },
        ),
        ("store", set.clone(), in_store(StoreKind::Mapped, DIM)),
    ];
    let (half, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build_some(StoreKind::Sled, half.path(), &set, 100)
        .0
        .unwrap_err();
    build(whole.path(), &set, &good).unwrap();
    for (field, set, options) in others {
        for dir in [&half, &whole] {
            let error = build(dir.path(), &set, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch);
            assert!(
                error.to_string().contains(&format!("another {field}")),
                "{field}: {error}"
            );
        }
    }
    // Neither was harmed.
    assert_eq!(
        build(half.path(), &set, &good).unwrap(),
        open(whole.path()).unwrap().manifest().clone()
    );
}

#[test]
fn a_table_names_its_base_and_is_the_same_table_without() {
    let (set, home) = (small_set(), tempfile::tempdir().unwrap());
    let of_base = |byte: &str| BuildOptions {
        base_hash: Some(byte.repeat(32)),
        ..options(DIM)
    };
    let dir = |name: &str| home.path().join(name);
    let plain = build(&dir("plain"), &set, &options(DIM)).unwrap();
    assert_eq!(plain.base_hash, None);
    let json = String::from_utf8(plain.to_json()).unwrap();
    assert!(!json.contains("base_hash"), "{json}");
    // A build that began without it goes on, and the table has it.
    build_some(StoreKind::Sled, &dir("named"), &set, 100)
        .0
        .unwrap_err();
    let named = build(&dir("named"), &set, &of_base("01")).unwrap();
    assert_eq!(open(&dir("named")).unwrap().manifest(), &named);
    assert_eq!(named.base_hash.as_deref(), Some(&*"01".repeat(32)));
    let without = Manifest {
        base_hash: None,
        ..named.clone()
    };
    assert_eq!(without, plain);
    // What is finished stays as it is; of another base it is another table.
    assert_eq!(build(&dir("plain"), &set, &of_base("01")).unwrap(), plain);
    let error = build(&dir("named"), &set, &of_base("02")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("another base"), "{error}");
    let error = build(&dir("bad"), &set, &of_base("x")).unwrap_err();
    assert!(error.to_string().contains("base_hash"), "{error}");
}

#[test]
fn rows_of_nowhere_are_not_adopted() {
    for (store, name) in StoreKind::ALL.into_iter().zip(["rows.bin", "rows.sled"]) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        let error = build(dir.path(), &small_set(), &in_store(store, DIM)).unwrap_err();
        assert!(matches!(error, Error::NoTable { .. }), "{error}");
    }
}

#[test]
fn senseless_options_are_refused_before_anything_is_written() {
    let good = options(DIM);
    let cases = [
        (
            "batch_rows",
            BuildOptions {
                batch_rows: 0,
                ..good.clone()
            },
        ),
        (
            "dim",
            BuildOptions {
                dim: 0,
                ..good.clone()
            },
        ),
        (
            "dim",
            BuildOptions {
                dim: 1 << 21,
                ..good.clone()
            },
        ),
        (
            "shard",
            BuildOptions {
                shard: (2, 2),
                ..good.clone()
            },
        ),
        (
            "shard",
            BuildOptions {
                shard: (0, 0),
                ..good.clone()
            },
        ),
        (
            "model_hash",
            BuildOptions {
                model_hash: "x".into(),
                ..good.clone()
            },
        ),
        (
            "threads",
            BuildOptions {
                threads: 0,
                ..good.clone()
            },
        ),
    ];
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("table");
    for (field, options) in cases {
        let error = build(&dir, &small_set(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(field), "{error}");
        assert!(!dir.exists());
    }
}

#[test]
fn rows_that_are_wrong_are_refused() {
    let set = small_set();
    let with = |row: Vec<f32>| {
        let dir = tempfile::tempdir().unwrap();
        let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
            batch.iter().for_each(|_| out.extend_from_slice(&row));
            Ok::<(), Error>(())
        };
        let error = build_table(dir.path(), &set, &options(DIM), rows, |_, _| {}).unwrap_err();
        assert!(!dir.path().join("table.json").exists());
        error.to_string()
    };
    assert!(with(vec![0.0; DIM - 1]).contains("960 numbers for 64 rows of 16"));
    let nan = with(vec![f32::NAN; DIM]);
    assert!(nan.contains("f-gram [") && nan.contains("NaN"), "{nan}");
}

#[test]
fn an_empty_set_makes_an_empty_table() {
    for store in StoreKind::ALL {
        let set = FgramSet::new(common::header(6, 5), Vec::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            build(dir.path(), &set, &in_store(store, DIM)).unwrap().rows,
            0
        );
        assert!(open(dir.path()).unwrap().index().is_empty());
    }
}

#[test]
fn the_id_of_a_table_does_not_depend_on_shards_or_store() {
    let (set, home) = (small_set(), tempfile::tempdir().unwrap());
    let id = |store, shard: (u32, u32), dtype| {
        let dir = home.path().join(format!("{store}{shard:?}{dtype}"));
        build(
            &dir,
            &set,
            &BuildOptions {
                shard,
                dtype,
                ..in_store(store, DIM)
            },
        )
        .unwrap()
        .table_id
    };
    let whole = id(StoreKind::Sled, (0, 1), RowDtype::F16);
    assert_eq!(whole.len(), 32);
    assert_eq!(id(StoreKind::Sled, (1, 2), RowDtype::F16), whole);
    assert_eq!(id(StoreKind::Mapped, (0, 1), RowDtype::F16), whole);
    assert_ne!(id(StoreKind::Sled, (0, 1), RowDtype::F32), whole);
}

// Tests that need a process of their own run this test binary again, as the child below.

/// What the child does, and to which table directory. Not a test of its own.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (task, rest) = task.split_once(' ').unwrap();
    let (store, dir) = rest.split_once(' ').unwrap();
    let (store, dir): (StoreKind, _) = (store.parse().unwrap(), Path::new(dir));
    match task {
        "abort" => {
            let computed = Cell::new(0);
            let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
                computed.set(computed.get() + batch.len());
                if computed.get() > 200 {
                    // As a kill would: nothing is flushed or dropped.
                    std::process::abort();
                }
                batch.iter().for_each(|ids| out.extend(row_of(ids, DIM)));
                Ok::<(), Error>(())
            };
            build_table(dir, &small_set(), &in_store(store, DIM), rows, |_, _| {}).unwrap();
        }
        "full" => {
            // 400 rows of 8 KiB under a limit of 1 MiB a file.
            let error = build(dir, &small_set(), &in_store(store, 4096)).unwrap_err();
            println!("{:?}: {error}", error.kind());
        }
        "open" => {
            let error = open(dir).unwrap_err();
            println!("{:?}: {error}", error.kind());
        }
        "verify" => {
            let rows = open(dir).unwrap().verify(|_, _| {}).unwrap().rows;
            println!("sound: {rows} rows");
        }
        _ => unreachable!("{task}"),
    }
}

/// Runs `task` in a process, behind shell commands that set it up.
fn run_child(before: &str, task: &str, store: StoreKind, dir: &Path) -> Output {
    let task = format!("{task} {store} {}", dir.display());
    common::child(before, &task).output().unwrap()
}

#[test]
fn a_killed_build_goes_on() {
    for store in StoreKind::ALL {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("table");
        let killed = run_child("ulimit -c 0;", "abort", store, &dir);
        assert!(!killed.status.success());
        assert!(dir.join("build.json").exists() && !dir.join("table.json").exists());
        let options = in_store(store, DIM);
        let whole = build(&home.path().join("whole"), &small_set(), &options).unwrap();
        assert_eq!(build(&dir, &small_set(), &options).unwrap(), whole);
        open(&dir).unwrap();
    }
}

#[test]
fn a_full_disk_leaves_no_table() {
    for (store, file) in StoreKind::ALL.into_iter().zip(["the rows", ""]) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("table");
        // `ulimit -f` counts blocks of 512 bytes or 1 KiB; past it, writes fail with EFBIG.
        let full = run_child("ulimit -f 1024; trap '' XFSZ;", "full", store, &dir);
        let (out, err) = (
            String::from_utf8_lossy(&full.stdout),
            String::from_utf8_lossy(&full.stderr),
        );
        assert!(full.status.success(), "{out}{err}");
        assert!(
            out.contains(&format!("Io: cannot write {file}")),
            "{out}{err}"
        );
        assert!(!dir.join("table.json").exists());
        assert!(matches!(open(&dir), Err(Error::NoTable { .. })));
        // With room again, the same build ends well.
        build(&dir, &small_set(), &in_store(store, 4096)).unwrap();
        open(&dir).unwrap();
    }
}

#[test]
fn processes_share_a_mapped_table_though_the_directory_is_read_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("table");
    build(&dir, &small_set(), &in_store(StoreKind::Mapped, DIM)).unwrap();
    let entries = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for path in entries.chain([dir.clone()]).collect::<Vec<_>>() {
        let mode = if path.is_dir() { 0o555 } else { 0o444 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let table = open(&dir).unwrap();
    let other = run_child("", "verify", StoreKind::Mapped, &dir);
    let out = String::from_utf8_lossy(&other.stdout);
    assert!(out.contains("sound: 400 rows"), "{out}");
    drop(table);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_table_open_in_another_process_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &small_set(), &options(DIM)).unwrap();
    let table = open(dir.path()).unwrap();
    let other = run_child("", "open", StoreKind::Sled, dir.path());
    let out = String::from_utf8_lossy(&other.stdout);
    assert!(
        out.contains("Busy: the table") && out.contains("in another process"),
        "{out}"
    );
    drop(table);
    open(dir.path()).unwrap();
}

#[test]
fn a_table_that_is_just_being_closed_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &small_set(), &options(DIM)).unwrap();
    // sled's own threads may hold the lock like this for a moment after the tree was dropped.
    let file = fs::File::open(dir.path().join("rows.sled/db")).unwrap();
    file.lock().unwrap();
    let (opening, opens) = std::sync::mpsc::channel();
    let closer = std::thread::spawn(move || {
        opens.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(file);
    });
    opening.send(()).unwrap();
    open(dir.path()).unwrap();
    closer.join().unwrap();
}
