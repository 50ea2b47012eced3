//! Set files and manifests against damage and malice: a clear error, never a panic.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;

use common::{build, header, in_store, mine, options, random_ids};
use proptest::collection::vec;
use proptest::prelude::*;
use scone_fgram::table::TableKeys;
use scone_fgram::{Error, ErrorKind, FgramSet, Manifest, RowDtype, StoreKind, Table, TableOptions};
use sha2::{Digest as _, Sha256};

fn tiny_set() -> FgramSet {
    mine(&[random_ids(3, 200, 60)], 200, 4, 20)
}

/// Puts a right checksum behind whatever `body` is.
fn seal(body: &[u8]) -> Vec<u8> {
    [body, &Sha256::digest(body)].concat()
}

fn body(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() - 32].to_vec()
}

#[test]
fn a_set_file_gives_the_set_back() {
    for set in [tiny_set(), FgramSet::new(header(5, 2), Vec::new()).unwrap()] {
        let back = FgramSet::from_bytes(&set.to_bytes()).unwrap();
        assert_eq!(back.header(), set.header());
        assert!(back.iter().eq(set.iter()));
        assert_eq!(back.hash(), set.hash());
    }
}

#[test]
fn equal_sets_make_equal_files_in_whatever_order_they_were_given() {
    let set = tiny_set();
    let fgrams = set
        .iter()
        .map(|f| (scone_fgram::NGram::from_slice(f.ids).unwrap(), f.count));
    let mut again = FgramSet::new(set.header().clone(), fgrams.rev().collect()).unwrap();
    assert_ne!(
        again.hash(),
        set.hash(),
        "match counts are part of the file"
    );
    again
        .set_match_counts(set.iter().map(|f| f.match_count).collect())
        .unwrap();
    assert_eq!(again.to_bytes(), set.to_bytes());
}

#[test]
fn a_written_set_is_read_back_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fgrams.bin");
    tiny_set().write(&path).unwrap();
    assert_eq!(FgramSet::read(&path).unwrap().hash(), tiny_set().hash());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::write(
        &path,
        b"SCONEFGS and then something else, which is long enough to hold a sum",
    )
    .unwrap();
    let text = FgramSet::read(&path).unwrap_err().to_string();
    assert!(
        text.contains("fgrams.bin") && text.contains("checksum"),
        "{text}"
    );
    let missing = FgramSet::read(dir.path().join("none.bin")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_set_file_is_noticed() {
    let bytes = tiny_set().to_bytes();
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = FgramSet::from_bytes(&damaged).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "bit {bit}: {error}");
    }
    for len in 0..bytes.len() {
        assert!(FgramSet::from_bytes(&bytes[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn a_set_file_with_a_right_checksum_is_still_checked() {
    let bytes = tiny_set().to_bytes();
    let good = body(&bytes);
    // Offsets as in docs/formats.md: version 8, vocab_size 12, max_n 16, totals 60, S 84 for K 4.
    let with = |at: usize, value: &[u8]| {
        let mut body = good.clone();
        body[at..at + value.len()].copy_from_slice(value);
        FgramSet::from_bytes(&seal(&body)).unwrap_err().to_string()
    };
    for (text, problem) in [
        (with(8, &2u32.to_le_bytes()), "format version 2"),
        (with(12, &3u32.to_le_bytes()), "vocab_size 3"),
        (with(12, &u32::MAX.to_le_bytes()), "vocab_size"),
        (with(16, &9u32.to_le_bytes()), "max_n"),
        (with(16, &300u32.to_le_bytes()), "300"),
        (with(60, &0u64.to_le_bytes()), "totals"),
        (with(84, &19u64.to_le_bytes()), "left over"),
        (with(84, &21u64.to_le_bytes()), "not a number"),
        (with(84, &u64::MAX.to_le_bytes()), "cannot fit"),
        (with(92, &[1]), "an f-gram of 1 ids"),
        (with(92, &[5]), "an f-gram of 5 ids"),
    ] {
        assert!(text.contains(problem), "{text:?} does not say {problem:?}");
    }
}

#[test]
fn a_set_file_out_of_rank_order_is_refused() {
    let low_first = [2, 1, 2, 5, 0, 2, 3, 4, 6, 0];
    let mut body = body(&FgramSet::new(header(9, 2), Vec::new()).unwrap().to_bytes());
    let at = body.len() - 16;
    body[at..at + 8].copy_from_slice(&2u64.to_le_bytes());
    body[at + 8..].copy_from_slice(&2u64.to_le_bytes());
    body.extend(low_first);
    let text = FgramSet::from_bytes(&seal(&body)).unwrap_err().to_string();
    assert!(text.contains("out of order"), "{text}");
    // The same two in order are a set.
    let end = body.len();
    body[end - 10..].copy_from_slice(&[2, 3, 4, 6, 0, 2, 1, 2, 5, 0]);
    assert_eq!(FgramSet::from_bytes(&seal(&body)).unwrap().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_bytes_at_all_are_survived(bytes in vec(any::<u8>(), 0..400)) {
        let _ = FgramSet::from_bytes(&bytes);
        let _ = FgramSet::from_bytes(&seal(&[b"SCONEFGS", &1u32.to_le_bytes()[..], &bytes].concat()));
        let _ = Manifest::from_json("table.json", &bytes);
    }

    /// Whatever is changed in a sealed file, what it gives, if anything, is a sound set.
    #[test]
    fn sealed_mutations_are_survived(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut body = body(&tiny_set().to_bytes());
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        if let Ok(set) = FgramSet::from_bytes(&seal(&body)) {
            prop_assert_eq!(FgramSet::from_bytes(&set.to_bytes()).unwrap().hash(), set.hash());
        }
    }
}

/// A table, its directory, and the bytes of its manifest.
fn table() -> (tempfile::TempDir, Manifest, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = build(dir.path(), &tiny_set(), &options(4)).unwrap();
    let bytes = fs::read(dir.path().join("table.json")).unwrap();
    (dir, manifest, bytes)
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_manifest_is_noticed() {
    let (_dir, manifest, bytes) = table();
    assert_eq!(Manifest::from_json("table.json", &bytes).unwrap(), manifest);
    assert_eq!(manifest.to_json(), bytes);
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let read = Manifest::from_json("table.json", &damaged);
        assert!(
            matches!(read, Err(Error::Format { .. })),
            "bit {bit}: {read:?}"
        );
    }
    // All but the last byte, a line feed.
    for len in 0..bytes.len() - 1 {
        assert!(
            Manifest::from_json("table.json", &bytes[..len]).is_err(),
            "cut to {len}"
        );
    }
}

#[test]
fn a_later_manifest_is_called_by_its_version() {
    let (_dir, manifest, _) = table();
    let later = Manifest {
        format_version: 3,
        ..manifest
    };
    let text = Manifest::from_json("table.json", &later.to_json())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("format version 3, this build reads 2"),
        "{text}"
    );
}

#[test]
fn an_impossible_manifest_is_refused_though_its_checksum_is_right() {
    let (_dir, good, _) = table();
    let cases = [
        (
            Manifest {
                max_n: 9,
                ..good.clone()
            },
            "max_n",
        ),
        (
            Manifest {
                vocab_size: 0,
                ..good.clone()
            },
            "vocab_size",
        ),
        (
            Manifest {
                dim: 0,
                ..good.clone()
            },
            "dim",
        ),
        (
            Manifest {
                dim: u32::MAX,
                ..good.clone()
            },
            "dim",
        ),
        (
            Manifest {
                shard_count: 0,
                ..good.clone()
            },
            "shard_count",
        ),
        (
            Manifest {
                shard_index: 1,
                ..good.clone()
            },
            "shard_index",
        ),
        (
            Manifest {
                rows: 1 << 40,
                ..good.clone()
            },
            "rows",
        ),
        (
            Manifest {
                model_hash: "AB".repeat(32),
                ..good.clone()
            },
            "model_hash",
        ),
        (
            Manifest {
                dtype: RowDtype::Int8,
                ..good.clone()
            },
            "table_id",
        ),
        (
            Manifest {
                checksum_seed: "x".repeat(32),
                ..good.clone()
            },
            "checksum_seed",
        ),
    ];
    for (manifest, field) in cases {
        let text = Manifest::from_json("m", &manifest.to_json())
            .unwrap_err()
            .to_string();
        assert!(text.contains(field), "{text:?} does not name {field}");
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_the_files_is_noticed() {
    for store in StoreKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let manifest = build(dir.path(), &tiny_set(), &in_store(store, 4)).unwrap();
        let keys = TableKeys::read(dir.path(), &manifest).unwrap();
        assert_eq!(keys.iter().len(), 20);
        for file in manifest.files.iter().map(|file| &file.path) {
            check_damage(dir.path(), file, store);
        }
    }
}

/// Flips bits of a file of the table and cuts it short.
fn check_damage(dir: &Path, file: &str, store: StoreKind) {
    let path = dir.join(file);
    let bytes = fs::read(&path).unwrap();
    let verified = TableOptions {
        verify: true,
        ..TableOptions::default()
    };
    let refused = |what: String| {
        let error = Table::open(dir, &verified).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{file}, {what}: {error}");
        error.to_string()
    };
    // Odd steps meet every bit of a byte. Most of a large file is padding, and sled opens slowly.
    let step = match store {
        StoreKind::Mapped if bytes.len() < 2000 => 7,
        StoreKind::Mapped => 61,
        StoreKind::Sled => 331,
    };
    for bit in (0..8 * bytes.len()).step_by(step) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, damaged).unwrap();
        let error = refused(format!("bit {bit}"));
        assert!(error.contains(file) || error.contains("row"), "{error}");
    }
    for len in (0..bytes.len()).step_by(step) {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(refused(format!("cut to {len}")).contains(file));
    }
    fs::remove_file(&path).unwrap();
    let gone = Table::open(dir, &TableOptions::default()).unwrap_err();
    assert!(gone.to_string().contains(file), "{gone}");
    fs::write(&path, &bytes).unwrap();
    Table::open(dir, &verified).unwrap();
}
