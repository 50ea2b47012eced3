//! Rows in one file, opened by mmap (`docs/formats.md`, "rows.bin").

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::residency::Residency;
use super::row_store::RowStore;
use crate::error::{Error, Result};
use crate::ngram::NGram;
use crate::table::disk::key_file::KeyFile;
use crate::table::disk::manifest::Manifest;
use crate::table::disk::page::page_bytes;
use crate::table::disk::row_file::{self, KIND, ROWS_AT};
use crate::table::disk::sums::RowSum;
use crate::table::disk::table_file::TableFile;
use crate::table::memory::request::RowRequest;

/// The rows of a table in a mapped file.
pub(crate) struct MappedStore {
    file: TableFile,
    keys: Arc<KeyFile>,
    residency: Residency,
    /// The table directory, for messages.
    dir: PathBuf,
    row_bytes: usize,
    /// Bytes of a page, as a power of two.
    page_shift: u32,
    sum: RowSum,
}

impl MappedStore {
    pub(crate) fn open(dir: &Path, manifest: &Manifest, keys: Arc<KeyFile>) -> Result<Self> {
        let file = TableFile::open(dir, manifest, &KIND)?;
        if file.facts() != row_file::facts(manifest) {
            return Err(file.wrong("its rows have another width than those of table.json"));
        }
        let row_bytes = manifest.row_bytes();
        let expected = ROWS_AT as u64 + row_bytes as u64 * manifest.rows;
        if file.bytes().len() as u64 != expected {
            let (length, rows) = (file.bytes().len(), manifest.rows);
            return Err(file.wrong(format!("{length} bytes, but {rows} rows take {expected}")));
        }
        file.map().expect_random_reads();
        Ok(Self {
            residency: Residency::new(file.map().pages()),
            file,
            keys,
            dir: dir.to_owned(),
            row_bytes,
            page_shift: page_bytes().trailing_zeros(),
            sum: RowSum::new(&manifest.checksum_seed),
        })
    }

    /// Reads the first rows into memory, those served most, as many as fit into `bytes`, and checks
    /// them as any row that comes from the disk.
    ///
    /// # Errors
    /// When one is damaged, or the file cannot be read.
    pub(crate) fn warm(&self, bytes: u64) -> Result<()> {
        let rows = (bytes / self.row_bytes as u64).min(u64::from(self.keys.rows())) as u32;
        if rows > 0 {
            self.file.bring_in(self.range(rows - 1).end)?;
        }
        (0..rows).try_for_each(|row| self.check(row, self.stored(row)?))
    }

    /// Compares the SHA-256 of the whole file with `table.json`.
    pub(crate) fn verify_sha256(&self, manifest: &Manifest) -> Result<()> {
        self.file.verify(manifest, &KIND)
    }

    /// Checks what is before the rows in the file.
    pub(crate) fn verify_header(&self, manifest: &Manifest) -> Result<()> {
        let mut page = vec![0; ROWS_AT];
        self.read(0, &mut page)?;
        self.file.check_header(&page, manifest, &KIND)
    }

    /// Asks for some rows that [`MappedStore::verify_rows`] will read.
    pub(crate) fn read_run_soon(&self, rows: Range<u32>) {
        let bytes = self.range_of(rows);
        self.file.map().read_soon(bytes.start, bytes.len());
    }

    /// Reads some rows from the file, in one piece, and checks each. Returns how many are damaged, and
    /// the first error.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn verify_rows(
        &self,
        rows: Range<u32>,
        piece: &mut Vec<u8>,
    ) -> Result<Option<(u64, Error)>> {
        let bytes = self.range_of(rows.clone());
        piece.resize(bytes.len(), 0);
        self.read(bytes.start, piece)?;
        let mut bad = None;
        for (row, bytes) in rows.zip(piece.chunks_exact(self.row_bytes)) {
            if !self.keys.check_row(row, bytes, &self.sum) {
                let (count, _) = bad.get_or_insert_with(|| (0, self.damaged(row)));
                *count += 1;
            }
        }
        Ok(bad)
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        self.file.read_at(start, out)
    }

    /// The bytes of some rows in the file.
    fn range_of(&self, rows: Range<u32>) -> Range<usize> {
        self.range(rows.start).start..self.range(rows.end).start
    }

    /// The bytes of the row in the file.
    fn range(&self, row: u32) -> Range<usize> {
        let start = ROWS_AT + row as usize * self.row_bytes;
        start..start + self.row_bytes
    }

    fn stored(&self, row: u32) -> Result<&[u8]> {
        let stored = self.file.bytes().get(self.range(row));
        stored.ok_or_else(|| self.file.wrong("cut short"))
    }

    /// # Errors
    /// When a part of the file was gone when it was read.
    pub(crate) fn check_not_lost(&self) -> Result<()> {
        self.file.check_not_lost()
    }

    #[cold]
    fn damaged(&self, row: u32) -> Error {
        let named = |key: NGram| {
            let problem = format!("the row of {:?} is damaged", key.as_slice());
            Error::data_loss(&self.dir, problem)
        };
        // Where the file is gone, that is the reason.
        let reasons = self.check_not_lost().and_then(|()| self.keys.get(row));
        reasons.map_or_else(|reason| reason, named)
    }

    fn pages(&self, range: &Range<usize>) -> RangeInclusive<usize> {
        range.start >> self.page_shift..=(range.end - 1) >> self.page_shift
    }
}

impl RowStore for MappedStore {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn count_rows(&self) -> Result<u64> {
        Ok(((self.file.bytes().len() - ROWS_AT) / self.row_bytes) as u64)
    }

    fn in_memory<'a>(&'a self, rows: &[u32], found: &mut Vec<Option<&'a [u8]>>) {
        let tick = self.residency.tick(Instant::now());
        found.extend(rows.iter().map(|&row| {
            let range = self.range(row);
            let pages = self.pages(&range);
            let resident = self.residency.holds(self.file.map(), pages, tick);
            resident.then(|| self.file.bytes().get(range)).flatten()
        }));
    }

    #[inline]
    fn check(&self, row: u32, bytes: &[u8]) -> Result<()> {
        match self.keys.check_row(row, bytes, &self.sum) {
            true => Ok(()),
            false => Err(self.damaged(row)),
        }
    }

    fn read_soon(&self, rows: &[RowRequest]) {
        for request in rows {
            let range = self.range(request.row);
            self.file.map().read_soon(range.start, range.len());
        }
    }

    fn get_many(&self, rows: &[RowRequest], out: &mut [u8]) -> Result<()> {
        for request in rows {
            let out = &mut out[request.range(self.row_bytes)];
            let read = self.file.map().read_at(self.range(request.row).start, out);
            read.map_err(|_| self.damaged(request.row))?;
            // What is sent is checked, not what it was copied from.
            self.check(request.row, out)?;
            let tick = self.residency.tick(Instant::now());
            self.residency
                .note(self.pages(&self.range(request.row)), tick);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::keys::KeyList;
    use crate::table::disk::key_file;
    use crate::table::disk::samples;

    const KEYS: [&[u32]; 3] = [&[1, 2], &[1, 2, 3], &[2, 3]];

    /// Row r is 8 bytes of r; the file, and the checksums for `keys.bin`.
    fn files() -> (Vec<u8>, Vec<u32>) {
        let manifest = samples::manifest(3, 3);
        let mut bytes = KIND.header(&manifest, row_file::facts(&manifest)).to_vec();
        bytes.resize(ROWS_AT, 0);
        let sum = RowSum::new(&manifest.checksum_seed);
        let sums = KEYS.into_iter().zip(0u8..).map(|(ids, r)| {
            bytes.extend_from_slice(&[r; 8]);
            sum.of(ids, &[r; 8])
        });
        let sums = sums.collect();
        (bytes, sums)
    }

    fn open(bytes: &[u8], sums: &[u32]) -> Result<MappedStore> {
        let mut manifest = samples::manifest(3, 3);
        let mut list = KeyList::default();
        KEYS.iter().for_each(|key| list.push(key).unwrap());
        let keys = key_file::encode(&list, sums, &manifest);
        let keys = samples::open_with(&key_file::KIND, &keys, &mut manifest, KeyFile::open)?;
        samples::open_with(&KIND, bytes, &mut manifest, |dir, manifest| {
            MappedStore::open(dir, manifest, Arc::new(keys))
        })
    }

    fn read(store: &MappedStore, rows: &[u32]) -> Result<Vec<u8>> {
        let request = |(&row, index)| RowRequest { row, index };
        let requests: Vec<RowRequest> = rows.iter().zip(0..).map(request).collect();
        let mut out = vec![9; 8 * rows.len()];
        store.get_many(&requests, &mut out)?;
        Ok(out)
    }

    #[test]
    fn rows_come_to_their_indices_and_are_then_in_memory() {
        let (bytes, sums) = files();
        let store = open(&bytes, &sums).unwrap();
        assert_eq!(read(&store, &[2, 0]).unwrap(), [[2; 8], [0; 8]].concat());
        let mut found = Vec::new();
        store.in_memory(&[1, 1 << 30], &mut found);
        assert_eq!(found, [Some(&[1; 8][..]), None]);
        assert_eq!(store.count_rows().unwrap(), 3);
    }

    #[test]
    fn a_fetched_row_that_is_damaged_or_another_one_is_refused() {
        let (bytes, sums) = files();
        let mut flipped = bytes.clone();
        flipped[ROWS_AT + 8] ^= 4;
        let mut swapped = bytes.clone();
        swapped[ROWS_AT..ROWS_AT + 8].fill(1);
        swapped[ROWS_AT + 8..ROWS_AT + 16].fill(0);
        for bytes in [flipped, swapped] {
            let store = open(&bytes, &sums).unwrap();
            let text = read(&store, &[2, 1]).unwrap_err().to_string();
            assert!(text.contains("the row of [1, 2, 3] is damaged"), "{text}");
            assert!(read(&store, &[2]).is_ok());
        }
    }

    #[test]
    fn rows_read_at_start_are_checked_and_no_others() {
        let (mut bytes, sums) = files();
        bytes[ROWS_AT + 8] ^= 4;
        let store = open(&bytes, &sums).unwrap();
        // A row has 8 bytes.
        assert!(store.warm(15).is_ok());
        for enough in [16, 1000, u64::MAX] {
            let text = store.warm(enough).unwrap_err().to_string();
            assert!(text.contains("the row of [1, 2, 3] is damaged"), "{text}");
        }
    }

    #[test]
    fn a_file_of_another_shape_is_refused() {
        let (bytes, sums) = files();
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            samples::reseal(&mut bytes);
            open(&bytes, &sums).map(|_| ()).unwrap_err().to_string()
        };
        assert!(with(72, 16).contains("another width"));
        assert!(with(81, 0).contains("another width"));
        assert!(with(60, 4).contains("another table"));
        let longer = [&bytes[..], &[0; 8]].concat();
        let text = open(&longer, &sums).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("3 rows take 4120"), "{text}");
    }

    proptest! {
        #[test]
        fn sealed_mutations_and_any_bytes_at_all_are_survived(
            changes in vec((0usize..4120, any::<u8>()), 1..5),
            noise in vec(any::<u8>(), 0..200),
        ) {
            let (mut bytes, sums) = files();
            for (at, value) in changes {
                bytes[at] = value;
            }
            samples::reseal(&mut bytes);
            if let Ok(store) = open(&bytes, &sums) {
                for row in 0..4 {
                    if let Ok(out) = read(&store, &[row]) {
                        prop_assert_eq!(out, [row as u8; 8]);
                    }
                }
            }
            prop_assert!(open(&noise, &sums).is_err());
        }
    }
}
