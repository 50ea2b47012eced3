//! The layouts of docs/formats.md, byte by byte. A change here needs a new format version.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use common::{header, model_hash};
use scone_fgram::table::{BuildOptions, build_table, table_id};
use scone_fgram::{Error, FgramSet, NGram, RowDtype, SetHeader};
use sha2::{Digest as _, Sha256};

fn set() -> FgramSet {
    let fgrams = [(vec![300, 2], 200), (vec![2, 7], 9), (vec![300, 2, 7], 9)];
    let fgrams = fgrams.map(|(ids, count)| (NGram::from_slice(&ids).unwrap(), count));
    let header = SetHeader {
        min_count: 5,
        ..header(1000, 3)
    };
    let mut set = FgramSet::new(header, fgrams.to_vec()).unwrap();
    set.set_match_counts(vec![1, 0, 9]).unwrap();
    set
}

fn sealed(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&body[..], &Sha256::digest(&body)].concat()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn fgrams_bin() {
    let expected = sealed(&[
        b"SCONEFGS",
        &u32s(&[1, 1000, 3]),
        &u64s(&[5]),
        &[7; 32],
        &u64s(&[2, 1, 3]),
        // n, ids, count, match_count; 300 and 200 take two bytes.
        &[2, 0xac, 2, 2, 0xc8, 1, 1],
        &[2, 2, 7, 9, 0],
        &[3, 0xac, 2, 2, 7, 9, 9],
    ]);
    assert_eq!(set().to_bytes(), expected);
    let hash: String = Sha256::digest(&expected)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(set().hash(), hash);
}

#[test]
fn a_table() {
    let (dir, set) = (tempfile::tempdir().unwrap(), set());
    let options = BuildOptions {
        dim: 2,
        dtype: RowDtype::F32,
        model_hash: model_hash(),
        ..BuildOptions::default()
    };
    // The row of an f-gram is its length and its last id.
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend([ids.len() as f32, ids[ids.len() - 1] as f32]));
        Ok::<(), Error>(())
    };
    let manifest = build_table(dir.path(), &set, &options, rows, |_, _| {}).unwrap();

    // Served order: by match count.
    let expected = sealed(&[
        b"SCONEKEY",
        &u32s(&[1]),
        manifest.table_id.as_bytes(),
        &u32s(&[1000, 3, 0, 1]),
        &u64s(&[3]),
        &[3, 0xac, 2, 2, 7],
        &[2, 0xac, 2, 2],
        &[2, 2, 7],
    ]);
    assert_eq!(fs::read(dir.path().join("keys.bin")).unwrap(), expected);

    let db = sled::open(dir.path().join("rows.sled")).unwrap();
    let stored: Vec<_> = db.iter().map(Result::unwrap).collect();
    let keys: [&[u32]; 3] = [&[2, 7], &[300, 2], &[300, 2, 7]];
    let mut all_rows = Sha256::new();
    assert_eq!(stored.len(), keys.len());
    for ((key, value), ids) in stored.iter().zip(keys) {
        let expected: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        assert_eq!(**key, expected);
        let last = ids[ids.len() - 1] as f32;
        let row = [(ids.len() as f32).to_le_bytes(), last.to_le_bytes()].concat();
        let sum = crc32fast::hash(&[manifest.table_id.as_bytes(), key, &row].concat());
        assert_eq!(**value, [row.clone(), sum.to_le_bytes().to_vec()].concat());
        all_rows.update([&[ids.len() as u8], &key[..], &row].concat());
    }
    let hash: String = all_rows
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(manifest.rows_sha256, hash);
}

/// Made by Python's hashlib from the text in docs/formats.md.
#[test]
fn table_ids() {
    let id = table_id(&"ab".repeat(32), &"cd".repeat(32), RowDtype::F16);
    assert_eq!(id, "08871ff2e59607c95d21bfb96c6ad27f");
}
