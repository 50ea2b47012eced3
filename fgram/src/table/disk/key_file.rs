//! `keys.bin`: the f-grams of one shard in served order, one record of fixed width each
//! (`docs/formats.md`, "keys.bin").

use std::io::{self, Write};
use std::path::Path;

use super::manifest::Manifest;
use super::names::KEYS_FILE;
use super::prefetch::prefetch_all;
use super::sums::RowSum;
use super::table_file::{FileKind, HEADER_BYTES, TableFile};
use crate::error::{Error, Result};
use crate::keys::{KeyList, Keys};
use crate::ngram::{MAX_N, NGram, TokenId};
use crate::set::FgramSet;
use crate::shard::shard_of;

/// Magic, version and name.
pub(crate) const KIND: FileKind = FileKind {
    name: KEYS_FILE,
    magic: *b"SCONEKEY",
    version: 2,
};

/// Fills the fields of a record behind the ids of a short f-gram; no id is as large.
const UNUSED: TokenId = u32::MAX;

/// Bytes of the checksum at the end of a record.
const SUM_BYTES: usize = 4;

/// The keys of a shard in served order: those of a set, which are not copied.
pub(crate) struct OfShard<'a> {
    set: &'a FgramSet,
    /// Ranks, in served order.
    ranks: Vec<u32>,
}

impl<'a> OfShard<'a> {
    /// Of shard `index` of `count`.
    pub(crate) fn new(set: &'a FgramSet, index: u32, count: u32) -> Self {
        let mut ranks = set.served_order();
        ranks.retain(|&rank| owner(set.get(rank as usize).ids, count) == index);
        Self { set, ranks }
    }
}

impl Keys for OfShard<'_> {
    fn len(&self) -> usize {
        self.ranks.len()
    }

    fn get(&self, index: usize) -> &[TokenId] {
        self.set.get(self.ranks[index] as usize).ids
    }
}

/// The shard of an f-gram.
fn owner(ids: &[TokenId], count: u32) -> u32 {
    match ids {
        [.., a, b] => shard_of([*a, *b], count),
        _ => 0,
    }
}

/// Writes the file. `sums` has the checksum of each row, or nothing when the store keeps them beside
/// the rows.
pub(crate) fn write(
    keys: &impl Keys,
    sums: &[u32],
    manifest: &Manifest,
    out: &mut impl Write,
) -> io::Result<()> {
    let max_n = usize::from(manifest.max_n);
    let by_ids = |row: &u32| keys.get(*row as usize);
    let rows = 0..keys.len() as u32;
    let first = rows.clone().min_by_key(by_ids).unwrap_or_default();
    let last = rows.max_by_key(by_ids).unwrap_or_default();
    let facts = [u64::from(first), u64::from(last), 0, 0, 0, 0];
    out.write_all(&KIND.header(manifest, facts))?;
    let mut record = Vec::with_capacity(record_bytes(max_n));
    for row in 0..keys.len() {
        let padded = keys.get(row).iter().copied();
        let padded = padded.chain(std::iter::repeat(UNUSED)).take(max_n);
        let sum = sums.get(row).copied().unwrap_or_default();
        record.clear();
        record.extend(padded.chain([sum]).flat_map(u32::to_le_bytes));
        out.write_all(&record)?;
    }
    Ok(())
}

/// The file's bytes.
#[cfg(test)]
pub(crate) fn encode(keys: &KeyList, sums: &[u32], manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::new();
    let written = write(keys, sums, manifest, &mut out);
    written.map(|()| out).unwrap_or_default()
}

fn record_bytes(max_n: usize) -> usize {
    4 * max_n + SUM_BYTES
}

/// The open file. Opening reads the header alone, and every record may be damaged, also later: who
/// finds another key than it looks for has to know whether that is possible.
pub(crate) struct KeyFile {
    file: TableFile,
    max_n: usize,
    rows: u32,
}

impl KeyFile {
    pub(crate) fn open(dir: &Path, manifest: &Manifest) -> Result<Self> {
        let file = TableFile::open(dir, manifest, &KIND)?;
        let max_n = usize::from(manifest.max_n);
        let expected = HEADER_BYTES as u64 + record_bytes(max_n) as u64 * manifest.rows;
        if file.bytes().len() as u64 != expected {
            let (length, rows) = (file.bytes().len(), manifest.rows);
            let problem = format!("{length} bytes, but {rows} keys take {expected}");
            return Err(file.wrong(problem));
        }
        // The manifest keeps rows below 2^31.
        let rows = manifest.rows as u32;
        let ends = file.facts();
        if rows > 0 && ends[..2].iter().any(|&row| row >= u64::from(rows)) {
            return Err(file.wrong("names a first or last row that it has not"));
        }
        Ok(Self { file, max_n, rows })
    }

    /// Reads all keys into memory: every look-up compares one, so they must never be waited for.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn bring_in(&self) -> Result<()> {
        self.file.bring_in(self.file.bytes().len())
    }

    /// Number of keys.
    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }

    /// Row ids of the first and the last key in the order of ids; `None` without keys.
    pub(crate) fn ends(&self) -> Option<[u32; 2]> {
        let [first, last, ..] = self.file.facts();
        (self.rows > 0).then_some([first as u32, last as u32])
    }

    /// Starts to read the key of `row`, if there is one, for a comparison soon.
    #[inline]
    pub(crate) fn prefetch(&self, row: u32) {
        let width = record_bytes(self.max_n);
        let start = HEADER_BYTES + width * row as usize;
        prefetch_all(
            self.file
                .bytes()
                .get(start..start + width)
                .unwrap_or_default(),
        );
    }

    /// Whether the f-gram of `row` is exactly `ids`.
    #[inline]
    pub(crate) fn is(&self, row: u32, ids: &[TokenId]) -> bool {
        let Some((stored, _)) = self.record(row) else {
            return false;
        };
        let Some((stored, rest)) = stored.split_at_checked(ids.len()) else {
            return false;
        };
        let same = stored
            .iter()
            .zip(ids)
            .all(|(stored, &id)| u32::from_le_bytes(*stored) == id && id != UNUSED);
        same && rest
            .first()
            .is_none_or(|next| u32::from_le_bytes(*next) == UNUSED)
    }

    /// The f-gram of `row`.
    ///
    /// # Errors
    /// When the record is no f-gram.
    pub(crate) fn get(&self, row: u32) -> Result<NGram> {
        let (stored, _) = self
            .record(row)
            .ok_or_else(|| self.file.wrong(format!("has no row {row}")))?;
        let mut ids = [UNUSED; MAX_N];
        for (id, stored) in ids.iter_mut().zip(stored) {
            *id = u32::from_le_bytes(*stored);
        }
        let len = ids.iter().position(|&id| id == UNUSED).unwrap_or(MAX_N);
        let key = NGram::from_slice(&ids[..len]).filter(|_| len >= 2);
        let padded = ids[len..].iter().all(|&id| id == UNUSED);
        key.filter(|_| padded)
            .ok_or_else(|| self.file.wrong(format!("row {row} has no f-gram: {ids:?}")))
    }

    /// Whether `bytes` have the checksum of the row, when the store keeps it here.
    #[inline]
    pub(crate) fn check_row(&self, row: u32, bytes: &[u8], sum: &RowSum) -> bool {
        let Some((stored, expected)) = self.record(row) else {
            return false;
        };
        let mut key = [[0; 4]; MAX_N];
        let mut len = 0;
        for (key, id) in key.iter_mut().zip(stored) {
            let id = u32::from_le_bytes(*id);
            *key = id.to_be_bytes();
            len += usize::from(id != UNUSED);
        }
        sum.of_key(key[..len].as_flattened(), bytes) == u32::from_le_bytes(*expected)
    }

    #[inline]
    fn record(&self, row: u32) -> Option<(&[[u8; 4]], &[u8; 4])> {
        let width = record_bytes(self.max_n);
        let start = HEADER_BYTES + width * row as usize;
        let record = self.file.bytes().get(start..start + width)?;
        let (sum, ids) = record.as_chunks::<4>().0.split_last()?;
        Some((ids, sum))
    }

    /// # Errors
    /// When a part of the file was gone when it was read.
    pub(crate) fn check_not_lost(&self) -> Result<()> {
        self.file.check_not_lost()
    }

    /// An error about the record of a row.
    pub(crate) fn damaged(&self, row: u32) -> Error {
        self.file.wrong(format!("the key of row {row} is damaged"))
    }

    /// An error about a key that the index does not find, or finds as another row.
    pub(crate) fn not_found(&self, row: u32, ids: &[TokenId]) -> Error {
        self.file.wrong(format!(
            "the index does not find f-gram {ids:?} as row {row}: one of the two is damaged"
        ))
    }

    /// The f-gram of `row`, checked as far as it can be without its row.
    ///
    /// # Errors
    /// When it is no f-gram of this shard and vocabulary; the error names it.
    pub(crate) fn checked(&self, row: u32, manifest: &Manifest) -> Result<NGram> {
        let key = self.get(row)?;
        let ids = key.as_slice();
        if owner(ids, manifest.shard_count) != manifest.shard_index {
            let problem = format!("f-gram {ids:?} belongs to another shard");
            return Err(self.file.wrong(problem));
        }
        let vocab_size = manifest.vocab_size;
        if ids.iter().any(|&id| id >= vocab_size) {
            let problem =
                format!("f-gram {ids:?} has an id that is not below vocab_size {vocab_size}");
            return Err(self.file.wrong(problem));
        }
        Ok(key)
    }

    /// All keys, each checked.
    ///
    /// # Errors
    /// As [`KeyFile::checked`].
    pub(crate) fn read_all(&self, manifest: &Manifest) -> Result<KeyList> {
        let mut keys = KeyList::with_capacity(self.rows as usize);
        for row in 0..self.rows {
            keys.push(self.checked(row, manifest)?.as_slice())?;
        }
        Ok(keys)
    }

    /// Checks the header of the file as it is now.
    pub(crate) fn verify_header(&self, manifest: &Manifest) -> Result<()> {
        let header = self.file.bytes().get(..HEADER_BYTES).unwrap_or_default();
        self.file.check_header(header, manifest, &KIND)
    }

    /// Checks that `row` has no checksum here: its store keeps it.
    ///
    /// # Errors
    /// When there is one.
    pub(crate) fn check_no_sum(&self, row: u32) -> Result<()> {
        match self.record(row) {
            Some((_, [0, 0, 0, 0])) => Ok(()),
            _ => Err(self.damaged(row)),
        }
    }

    /// Compares the SHA-256 of the whole file with `table.json`.
    pub(crate) fn verify_sha256(&self, manifest: &Manifest) -> Result<()> {
        self.file.verify(manifest, &KIND)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::samples;
    use super::*;

    const KEYS: [&[u32]; 3] = [&[1, 2], &[1, 2, 3], &[2, 3]];

    fn bytes() -> Vec<u8> {
        let mut list = KeyList::default();
        KEYS.iter().for_each(|key| list.push(key).unwrap());
        let sum = |row: usize| RowSum::new("").of(KEYS[row], &[row as u8; 4]);
        encode(&list, &[sum(0), sum(1), !sum(2)], &samples::manifest(3, 3))
    }

    /// Opens `bytes` as the keys of a table of `shards` shards, this one the first.
    fn open(bytes: &[u8], shards: u32) -> Result<KeyFile> {
        let mut manifest = samples::manifest(3, 3);
        manifest.shard_count = shards;
        samples::open_with(&KIND, bytes, &mut manifest, |dir, manifest| {
            KeyFile::open(dir, manifest)
        })
    }

    /// The bytes with others from `at` on, and a right checksum of the header.
    fn changed(at: usize, with: &[u8]) -> Vec<u8> {
        let mut bytes = bytes();
        bytes[at..at + with.len()].copy_from_slice(with);
        samples::reseal(&mut bytes);
        bytes
    }

    #[test]
    fn keys_and_sums_come_back_in_their_order() {
        let file = open(&bytes(), 1).unwrap();
        let all = file.read_all(&samples::manifest(3, 3)).unwrap();
        assert!(all.iter().eq(KEYS));
        let sum = RowSum::new("");
        let of_rows = [0, 1, 2, 3].map(|row| file.check_row(row, &[row as u8; 4], &sum));
        assert_eq!(of_rows, [true, true, false, false]);
        assert_eq!(file.ends(), Some([0, 2]));
        for (key, row) in KEYS.into_iter().zip(0..) {
            assert!(file.is(row, key));
            assert_eq!(file.get(row).unwrap().as_slice(), key);
        }
        assert!(!file.is(0, &[1]) && !file.is(0, &[1, 2, u32::MAX]) && !file.is(3, &[1, 2]));
        assert!(!file.is(1, &[1, 2]) && !file.is(1, &[1, 2, 3, 4]) && file.get(3).is_err());
    }

    #[test]
    fn a_right_checksum_is_not_enough() {
        // Offsets as in docs/formats.md.
        for (at, with, problem) in [
            (8, [9, 0, 0, 0], "format version 9"),
            (12, [b'f'; 4], "another table"),
            (44, [11, 0, 0, 0], "another table"),
            (48, [4, 0, 0, 0], "another table"),
            (52, [1, 0, 0, 0], "another table"),
            (56, [2, 0, 0, 0], "another table"),
            (60, [4, 0, 0, 0], "another table"),
            (68, [1, 0, 0, 0], "another table"),
            (80, [3, 0, 0, 0], "first or last row"),
        ] {
            let text = open(&changed(at, &with), 1)
                .map(|_| ())
                .unwrap_err()
                .to_string();
            assert!(
                text.contains(problem),
                "{at}: {text:?} does not say {problem:?}"
            );
        }
        let mut longer = bytes();
        longer.push(0);
        assert!(open(&longer, 1).is_err());
    }

    #[test]
    fn a_record_that_is_no_f_gram_of_the_table_is_found() {
        let manifest = samples::manifest(3, 3);
        for (at, with, problem) in [
            (128, u32::MAX, "row 0 has no f-gram"),
            (132, u32::MAX, "row 0 has no f-gram"),
            (148, u32::MAX, "row 1 has no f-gram"),
            (128, 10, "vocab_size 10"),
        ] {
            let file = open(&changed(at, &with.to_le_bytes()), 1).unwrap();
            let text = file
                .read_all(&manifest)
                .map(|_| ())
                .unwrap_err()
                .to_string();
            assert!(text.contains(problem), "{text:?} does not say {problem:?}");
        }
        let mut manifest = samples::manifest(3, 3);
        manifest.shard_count = 4;
        let mut list = KeyList::default();
        KEYS.iter().for_each(|key| list.push(key).unwrap());
        let file = open(&encode(&list, &[], &manifest), 4).unwrap();
        let text = file
            .read_all(&manifest)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(text.contains("another shard"), "{text}");
    }

    proptest! {
        #[test]
        fn sealed_mutations_are_survived(
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = bytes();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            samples::reseal(&mut bytes);
            if let Ok(file) = open(&bytes, 1) {
                let _ = file.read_all(&samples::manifest(3, 3));
                (0..5).for_each(|row| { let _ = file.is(row, &[1, 2]); });
            }
            bytes.truncate(cut.index(bytes.len()));
            samples::reseal(&mut bytes);
            let refused = matches!(open(&bytes, 1), Err(Error::Format { .. }));
            prop_assert!(refused);
        }

        #[test]
        fn any_bytes_at_all_are_survived(bytes in vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes, 1).is_err());
        }
    }
}
