//! The index against a brute-force oracle and the matcher, and damaged files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::build::encode;
use super::index::{KeyIndex, PROBES};
use super::layout::{EMPTY, ENTRY_BYTES, KIND, SLOT_BYTES};
use crate::error::Result;
use crate::keys::KeyList;
use crate::matcher::{Match, Matcher};
use crate::table::disk::key_file::{self, KeyFile};
use crate::table::disk::samples;
use crate::table::disk::table_file::HEADER_BYTES;

fn list(keys: &[&[u32]]) -> KeyList {
    let mut list = KeyList::default();
    keys.iter().for_each(|key| list.push(key).unwrap());
    list
}

fn key_list(keys: &[Vec<u32>]) -> KeyList {
    list(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Opens `bytes` as the index of `keys`.
fn open(keys: &KeyList, max_n: u8, bytes: &[u8]) -> Result<KeyIndex> {
    let mut manifest = samples::manifest(keys.len() as u64, max_n);
    let key_bytes = key_file::encode(keys, &[], &manifest);
    let keys = samples::open_with(&key_file::KIND, &key_bytes, &mut manifest, KeyFile::open)?;
    samples::open_with(&KIND, bytes, &mut manifest, |dir, manifest| {
        KeyIndex::open(dir, manifest, Arc::new(keys))
    })
}

fn encoded(keys: &KeyList, max_n: u8, threads: usize) -> Vec<u8> {
    let manifest = samples::manifest(keys.len() as u64, max_n);
    encode(keys, &manifest, threads).unwrap()
}

fn index(keys: &KeyList, max_n: u8) -> KeyIndex {
    open(keys, max_n, &encoded(keys, max_n, 2)).unwrap()
}

/// The definition: try every start, leftmost first.
fn oracle(rows: &HashMap<&[u32], u32>, max_n: usize, ids: &[u32]) -> Option<Match> {
    let lengths = (2..=max_n.min(ids.len())).rev();
    lengths.into_iter().find_map(|n| {
        let row = *rows.get(&ids[ids.len() - n..])?;
        Some(Match { len: n as u8, row })
    })
}

/// Random f-grams of ids below `vocab` with all their suffixes, in no order.
fn suffix_closed(seed: u64, vocab: u32, max_n: usize, grams: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut keys = HashSet::new();
    for _ in 0..grams {
        let n = rng.random_range(2..=max_n);
        let gram: Vec<u32> = (0..n).map(|_| rng.random_range(0..vocab)).collect();
        (2..=n).for_each(|n| {
            keys.insert(gram[gram.len() - n..].to_vec());
        });
    }
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_unstable_by_key(|key| crate::shard::splitmix64(u64::from(key[0]) ^ seed));
    keys
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Closed under suffix but not under prefix, as the keys of a table may be.
    #[test]
    fn longest_match_is_that_of_the_oracle_and_of_the_matcher(
        vocab in 2u32..=9,
        max_n in 2usize..=8,
        grams in 0usize..200,
        seed: u64,
        ids in vec(0u32..10, 0..200),
    ) {
        let keys = suffix_closed(seed, vocab, max_n, grams);
        let rows: HashMap<&[u32], u32> = keys.iter().map(Vec::as_slice).zip(0..).collect();
        let matcher = Matcher::build(keys.iter().map(Vec::as_slice), max_n as u8).unwrap();
        let index = index(&key_list(&keys), max_n as u8);
        for end in 0..=ids.len() {
            let found = index.longest(&ids[..end]).unwrap();
            prop_assert_eq!(found, oracle(&rows, max_n, &ids[..end]));
            prop_assert_eq!(found, matcher.longest(&ids[..end]));
        }
        let heads: Vec<&[u32]> = (0..=ids.len()).map(|end| &ids[..end]).collect();
        let mut each = Vec::new();
        index.longest_each(&heads, &mut each).unwrap();
        prop_assert!(each.iter().copied().eq(heads.iter().map(|ids| index.longest(ids).unwrap())));
        for (key, &row) in &rows {
            prop_assert_eq!(index.row(key).unwrap(), Some(row));
        }
    }

    /// Damage behind right checksums: another answer perhaps, but only ever a key that is there.
    #[test]
    fn sealed_mutations_are_survived(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let keys = suffix_closed(1, 4, 4, 60);
        let key_list = key_list(&keys);
        let mut bytes = encoded(&key_list, 4, 1);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        reseal(&mut bytes);
        if let Ok(index) = open(&key_list, 4, &bytes) {
            for key in &keys {
                let mut each = Vec::new();
                let found = index.longest(key);
                let same = index.longest_each(&[key], &mut each);
                prop_assert_eq!(found.is_ok(), same.is_ok());
                if let Ok(Some(found)) = found {
                    prop_assert_eq!(each, [Some(found)]);
                    prop_assert_eq!(&keys[found.row as usize], &key[key.len() - usize::from(found.len)..]);
                }
            }
        }
        bytes.truncate(cut.index(bytes.len()));
        reseal(&mut bytes);
        prop_assert!(open(&key_list, 4, &bytes).is_err());
    }

    #[test]
    fn any_bytes_at_all_are_survived(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(open(&list(&[&[1, 2]]), 2, &bytes).is_err());
    }
}

/// Gives header and directory right checksums, as far as the file has them.
fn reseal(bytes: &mut [u8]) {
    let Some(partitions) = bytes.get(80..88) else {
        return;
    };
    let partitions = u64::from_le_bytes(partitions.try_into().unwrap()) as usize;
    let end = partitions
        .saturating_add(1)
        .saturating_mul(ENTRY_BYTES)
        .saturating_add(HEADER_BYTES);
    if let Some(directory) = bytes.get(HEADER_BYTES..end) {
        let crc = u64::from(crc32fast::hash(directory));
        bytes[104..112].copy_from_slice(&crc.to_le_bytes());
    }
    samples::reseal(bytes);
}

#[test]
fn a_large_index_is_exact_small_and_the_same_from_any_number_of_threads() {
    let keys = suffix_closed(7, 300, 5, 20_000);
    let key_list = key_list(&keys);
    assert!(
        keys.len() > 5 * 8192,
        "{} keys in some partitions",
        keys.len()
    );
    let bytes = encoded(&key_list, 5, 1);
    assert_eq!(encoded(&key_list, 5, 3), bytes);
    assert_eq!(encoded(&key_list, 5, 64), bytes);
    let a_key = bytes.len() as f64 / keys.len() as f64;
    assert!(a_key < 6.0, "{a_key} bytes a key");
    let index = open(&key_list, 5, &bytes).unwrap();
    let rows: HashMap<&[u32], u32> = keys.iter().map(Vec::as_slice).zip(0..).collect();
    assert!(
        rows.iter()
            .all(|(key, &row)| index.row(key).unwrap() == Some(row))
    );
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..50_000 {
        let ids: [u32; 6] = std::array::from_fn(|_| rng.random_range(0..300));
        assert_eq!(index.longest(&ids).unwrap(), oracle(&rows, 5, &ids));
    }
}

#[test]
fn never_makes_more_than_k_minus_1_probes() {
    let all: Vec<Vec<u32>> = (2..=5).flat_map(|n| all_grams(n, 3)).collect();
    let index = index(&key_list(&all), 5);
    for ids in all_grams(7, 3) {
        PROBES.with(|probes| probes.set(0));
        assert_eq!(index.longest(&ids).unwrap().unwrap().len, 5);
        assert_eq!(PROBES.with(Cell::get), 4);
    }
    // Of what is not there, 1 in 256 meets a fingerprint and is probed once more.
    PROBES.with(|probes| probes.set(0));
    (0..1000).for_each(|id| assert_eq!(index.longest(&[1, 1, 1, 5 + id]).unwrap(), None));
    let probes = PROBES.with(Cell::get);
    assert!((1000..1050).contains(&probes), "{probes} for 1000 misses");
}

fn all_grams(n: u32, vocab: u32) -> impl Iterator<Item = Vec<u32>> {
    (0..vocab.pow(n)).map(move |x| (0..n).map(|i| x / vocab.pow(i) % vocab).collect())
}

#[test]
fn an_empty_index_finds_nothing() {
    let index = index(&list(&[]), 5);
    assert!(index.is_empty());
    assert_eq!(index.longest(&[0, 0, 0]).unwrap(), None);
    assert_eq!(index.longest(&[]).unwrap(), None);
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let keys = list(&[&[1, 2], &[2, 3], &[1, 2]]);
    let error = encode(&keys, &samples::manifest(3, 2), 1).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn huge_ids_do_not_alias_small_ones() {
    let index = index(&list(&[&[1, 2]]), 2);
    assert_eq!(index.longest(&[1, 1 << 31 | 2]).unwrap(), None);
    assert_eq!(index.longest(&[1 << 31 | 1, 2]).unwrap(), None);
    assert_eq!(index.row(&[1, 2]).unwrap(), Some(0));
}

#[test]
fn an_index_that_misses_a_key_is_found_out() {
    let keys = suffix_closed(3, 5, 3, 30);
    let (keys, mut bytes) = (key_list(&keys), Vec::new());
    let mut found = 0;
    for slot in 0..4 {
        bytes.clone_from(&encoded(&keys, 3, 1));
        let at = bytes.len() - (slot + 1) * SLOT_BYTES;
        found += usize::from(bytes[at + 1..][..4] != EMPTY.to_le_bytes());
        bytes[at] ^= 1;
        let mut manifest = samples::manifest(keys.len() as u64, 3);
        let key_bytes = key_file::encode(&keys, &[], &manifest);
        let file = samples::open_with(&key_file::KIND, &key_bytes, &mut manifest, KeyFile::open);
        let verified = samples::open_with(&KIND, &bytes, &mut manifest, |dir, manifest| {
            let file = Arc::new(file.unwrap());
            let rows = 0..file.rows();
            let all = rows.map(|row| file.get(row)).collect::<Result<Vec<_>>>()?;
            KeyIndex::open(dir, manifest, file)?.check_finds(0, &all)
        });
        found -= usize::from(verified.is_err());
    }
    assert_eq!(found, 0, "each slot in use that was damaged is noticed");
}
