//! Rows in one file, opened by mmap (`docs/formats.md`, "rows.bin").

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::key_file::KeyFile;
use super::manifest::Manifest;
use super::mapping::page_bytes;
use super::residency::Residency;
use super::row_sum::RowSum;
use super::store::{RowRequest, RowStore};
use super::table_file::{FACTS, FileKind, TableFile};
use crate::error::{Error, Result};

/// Magic, version and name.
pub(super) const KIND: FileKind = FileKind {
    name: "rows.bin",
    magic: *b"SCONEROW",
    version: 1,
};

/// Where the rows begin: at a page border, so that rows of whole pages share none.
pub(super) const ROWS_AT: usize = 4096;

/// The facts in the header of the file.
pub(super) fn facts(manifest: &Manifest) -> [u64; FACTS] {
    [manifest.row_bytes() as u64, ROWS_AT as u64, 0, 0, 0, 0]
}

/// The rows of a table in a mapped file.
pub(super) struct MappedStore {
    file: TableFile,
    keys: Arc<KeyFile>,
    residency: Residency,
    /// The table directory, for messages.
    dir: PathBuf,
    row_bytes: usize,
    page_bytes: usize,
    sum: RowSum,
}

impl MappedStore {
    pub(super) fn open(dir: &Path, manifest: &Manifest, keys: Arc<KeyFile>) -> Result<Self> {
        let file = TableFile::open(dir, manifest, &KIND)?;
        if file.facts() != facts(manifest) {
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
            page_bytes: page_bytes(),
            sum: RowSum::new(&manifest.checksum_seed),
        })
    }

    /// Compares the checksum of the whole file with `table.json`.
    pub(super) fn verify(&self, manifest: &Manifest) -> Result<()> {
        self.file.verify(manifest, &KIND)
    }

    /// Where the row is in the file.
    fn place(&self, row: u32) -> Range<usize> {
        let start = ROWS_AT + row as usize * self.row_bytes;
        start..start + self.row_bytes
    }

    fn pages(&self, place: &Range<usize>) -> RangeInclusive<usize> {
        place.start / self.page_bytes..=(place.end - 1) / self.page_bytes
    }
}

impl RowStore for MappedStore {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn count_rows(&self) -> Result<u64> {
        Ok(((self.file.bytes().len() - ROWS_AT) / self.row_bytes) as u64)
    }

    #[inline]
    fn in_memory(&self, row: u32, now: Instant) -> Option<&[u8]> {
        let place = self.place(row);
        let pages = self.pages(&place);
        let resident = self.residency.holds(self.file.map(), pages, now);
        resident.then(|| self.file.bytes().get(place)).flatten()
    }

    fn get_many(&self, rows: &[RowRequest], out: &mut [u8]) -> Result<()> {
        // All reads are under way before the first is waited for: disks like deep queues.
        for request in rows {
            let place = self.place(request.row);
            self.file.map().prefetch(place.start, place.len());
        }
        for request in rows {
            let place = self.place(request.row);
            let key = self.keys.get(request.row)?;
            let stored = self.file.bytes().get(place.clone());
            let start = request.place as usize * self.row_bytes;
            let out = &mut out[start..start + self.row_bytes];
            out.copy_from_slice(stored.ok_or_else(|| self.file.wrong("cut short"))?);
            if self.sum.of(key.as_slice(), out) != self.keys.sum(request.row) {
                let problem = format!("the row of {:?} is damaged", key.as_slice());
                return Err(Error::data_loss(&self.dir, problem));
            }
            self.residency.note(self.pages(&place), Instant::now());
        }
        Ok(())
    }
}
