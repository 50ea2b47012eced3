//! The layouts of docs/formats.md, byte by byte. A change here needs a new format version.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;

use common::{header, model_hash};
use scone_fgram::table::{BuildOptions, build_table, table_id};
use scone_fgram::{Error, FgramSet, Manifest, NGram, RowDtype, SetHeader, StoreKind};
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

/// The header of a file of the table.
fn file_header(magic: &[u8], version: u32, manifest: &Manifest, facts: [u64; 6]) -> Vec<u8> {
    let mut header = [
        magic,
        &u32s(&[version]),
        manifest.checksum_seed.as_bytes(),
        &u32s(&[1000, 3, 0, 1]),
        &u64s(&[3]),
        &[0; 4],
        &u64s(&facts),
        &[0; 4],
    ]
    .concat();
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

/// Served order: by match count. The first key in the order of ids is in row 2, the last in 0.
fn check_keys(dir: &Path, manifest: &Manifest, sums: [u32; 3]) {
    let unused = u32::MAX;
    let expected = [
        file_header(b"SCONEKEY", 2, manifest, [2, 0, 0, 0, 0, 0]),
        u32s(&[300, 2, 7, sums[0]]),
        u32s(&[300, 2, unused, sums[1]]),
        u32s(&[2, 7, unused, sums[2]]),
    ];
    assert_eq!(fs::read(dir.join("keys.bin")).unwrap(), expected.concat());
}

/// Builds a table whose row of an f-gram is its length and its last id.
fn build(dir: &Path, store: StoreKind) -> Manifest {
    let options = BuildOptions {
        store,
        dim: 2,
        dtype: RowDtype::F32,
        model_hash: model_hash(),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend([ids.len() as f32, ids[ids.len() - 1] as f32]));
        Ok::<(), Error>(())
    };
    build_table(dir, &set(), &options, rows, |_, _| {}).unwrap()
}

#[test]
fn rows_bin() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = build(dir.path(), StoreKind::Mapped);
    let mut expected = file_header(b"SCONEROW", 1, &manifest, [8, 4096, 0, 0, 0, 0]);
    expected.resize(4096, 0);
    let keys: [&[u32]; 3] = [&[300, 2, 7], &[300, 2], &[2, 7]];
    let sums = keys.map(|ids| {
        let key: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let last = ids[ids.len() - 1] as f32;
        let row = [(ids.len() as f32).to_le_bytes(), last.to_le_bytes()].concat();
        expected.extend_from_slice(&row);
        crc32fast::hash(&[manifest.table_id.as_bytes(), &key, &row].concat())
    });
    assert_eq!(fs::read(dir.path().join("rows.bin")).unwrap(), expected);
    check_keys(dir.path(), &manifest, sums);
    assert_eq!(manifest.rows_sha256, None);
    let files: Vec<&str> = manifest.files.iter().map(|file| &*file.path).collect();
    assert_eq!(files, ["keys.bin", "index.bin", "rows.bin"]);
    for file in &manifest.files {
        let bytes = fs::read(dir.path().join(&file.path)).unwrap();
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!((file.bytes, &file.sha256), (bytes.len() as u64, &hash));
    }
}

/// The functions of docs/formats.md, "index.bin".
mod hashing {
    fn splitmix64(x: u64) -> u64 {
        let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn of(seed: u64, ids: &[u32]) -> u64 {
        ids.iter()
            .rev()
            .fold(seed, |hash, &id| splitmix64(hash ^ u64::from(id)))
    }

    pub(crate) fn slot(hash: u64, pilot: u16, slots: u64) -> u64 {
        let mixed = (hash ^ splitmix64(pilot.into())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) * slots) >> 32
    }

    pub(crate) fn fingerprint(hash: u64) -> u8 {
        (hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
    }
}

#[test]
fn index_bin() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = build(dir.path(), StoreKind::Mapped);
    let bytes = fs::read(dir.path().join("index.bin")).unwrap();
    // One partition of 4 slots and 1 bucket, seed 0.
    let directory = u32s(&[0, 0, 4, 1]);
    let crc = u64::from(crc32fast::hash(&directory));
    let header = file_header(b"SCONEIDX", 1, &manifest, [0, 1, 4, 1, crc, 0]);
    assert_eq!(bytes[..144], [header, directory].concat());
    assert_eq!(bytes.len(), 144 + 2 + 4 * 5);
    let pilot = u16::from_le_bytes([bytes[144], bytes[145]]);
    let mut expected = [[0, 0xff, 0xff, 0xff, 0xff]; 4];
    let keys: [&[u32]; 3] = [&[300, 2, 7], &[300, 2], &[2, 7]];
    for (ids, row) in keys.into_iter().zip(0..) {
        let hash = hashing::of(0, ids);
        let slot = hashing::slot(hash, pilot, 4) as usize;
        expected[slot] = [hashing::fingerprint(hash), row, 0, 0, 0];
    }
    assert_eq!(bytes[146..], expected.concat());
}

#[test]
fn rows_sled() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = build(dir.path(), StoreKind::Sled);
    check_keys(dir.path(), &manifest, [0; 3]);
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
    assert_eq!(manifest.rows_sha256, Some(hash));
}

/// Made by Python's hashlib from the text in docs/formats.md.
#[test]
fn table_ids() {
    let id = table_id(&"ab".repeat(32), &"cd".repeat(32), RowDtype::F16);
    assert_eq!(id, "08871ff2e59607c95d21bfb96c6ad27f");
}
