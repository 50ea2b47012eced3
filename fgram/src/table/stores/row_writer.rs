//! Where a build puts its rows: one writer for each store.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use scone_files::sha256_file;

use super::sled_store::SledTree;
use crate::error::{Error, Result};
use crate::ngram::TokenId;
use crate::table::disk::manifest::{FileEntry, Manifest, StoreKind};
use crate::table::disk::mapping::preallocate;
use crate::table::disk::names::{MARKS_FILE, ROWS_FILE, SLED_FOLDER};
use crate::table::disk::row_file::{self, ROWS_AT};
use crate::table::disk::sums::RowSum;

/// What holds rows in a table directory.
pub(crate) const FILES: [&str; 2] = [SLED_FOLDER, ROWS_FILE];

/// Takes the rows of a table, once each, in the order of their f-grams' ids.
pub(crate) trait RowWriter {
    /// Whether an earlier run has left a sound row.
    fn has(&mut self, row: u32, ids: &[TokenId]) -> Result<bool>;

    /// Writes an encoded row.
    fn add(&mut self, row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()>;

    /// Makes the rows so far outlive the process.
    fn flush(&mut self) -> Result<()>;

    /// Makes all rows last and closes the store. `keys` are those of all rows, in order.
    fn finish(self: Box<Self>, keys: &mut dyn Iterator<Item = &[TokenId]>) -> Result<WrittenRows>;
}

/// What the rest of the table has to know of its rows.
#[derive(Default)]
pub(crate) struct WrittenRows {
    /// The checksum of each row, when the store does not keep them itself.
    pub(crate) sums: Vec<u32>,
    /// The file of rows, when it never changes.
    pub(crate) file: Option<FileEntry>,
    /// The checksum over all rows otherwise.
    pub(crate) rows_sha256: Option<String>,
}

/// The writer for the store of `manifest`, standing behind what an earlier run has left. sled's
/// page cache gets `store_cache_bytes`.
pub(crate) fn open(
    dir: &Path,
    manifest: &Manifest,
    store_cache_bytes: u64,
) -> Result<Box<dyn RowWriter>> {
    Ok(match manifest.store {
        StoreKind::Sled => {
            let tree = SledTree::open(dir, manifest, store_cache_bytes, true)?;
            Box::new(SledWriter { tree })
        }
        StoreKind::Mapped => Box::new(MappedWriter::open(dir, manifest)?),
    })
}

/// Inserts into the tree; the order of ids is the one for which sled is fastest.
struct SledWriter {
    tree: SledTree,
}

impl RowWriter for SledWriter {
    fn has(&mut self, _row: u32, ids: &[TokenId]) -> Result<bool> {
        Ok(self.tree.get(ids)?.row().is_some())
    }

    fn add(&mut self, _row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()> {
        self.tree.insert(ids, encoded)
    }

    fn flush(&mut self) -> Result<()> {
        self.tree.flush()
    }

    fn finish(self: Box<Self>, keys: &mut dyn Iterator<Item = &[TokenId]>) -> Result<WrittenRows> {
        self.tree.flush()?;
        Ok(WrittenRows {
            rows_sha256: Some(self.tree.rows_sha256(keys)?),
            ..WrittenRows::default()
        })
    }
}

/// Writes each row to its offset in a file of its final size.
///
/// The order of ids, not that of the file, because neighbours then share prefixes, which an f-gram
/// model computes once: on a set of 200,000 f-grams half the work of the order of the file.
struct MappedWriter {
    rows: Output,
    marks: Output,
    /// The checksum of each row that was written, or left by an earlier run.
    sums: Vec<u32>,
    /// The marks of an earlier run, one for each row: 0, or `WRITTEN` and its checksum.
    left: Vec<u64>,
    row_bytes: usize,
    sum: RowSum,
}

/// Set in the mark of a row that was written.
const WRITTEN: u64 = 1 << 32;

/// Bytes of a mark.
const MARK_BYTES: u64 = 8;

impl MappedWriter {
    fn open(dir: &Path, manifest: &Manifest) -> Result<Self> {
        let mut page = vec![0; ROWS_AT];
        let header = row_file::KIND.header(manifest, row_file::facts(manifest));
        page[..header.len()].copy_from_slice(&header);
        let row_bytes = manifest.row_bytes();
        let mut writer = Self {
            rows: Output::open(dir.join(ROWS_FILE))?,
            marks: Output::open(dir.join(MARKS_FILE))?,
            sums: vec![0; manifest.rows as usize],
            left: Vec::new(),
            row_bytes,
            sum: RowSum::new(&manifest.checksum_seed),
        };
        let rows_length = ROWS_AT as u64 + manifest.rows * row_bytes as u64;
        let marks_length = manifest.rows * MARK_BYTES;
        if writer.rows.begins_with(&page, rows_length)? && writer.marks.length()? == marks_length {
            writer.read_marks()?;
        } else {
            // The header comes last: without it none of this is believed.
            writer.marks.reserve(marks_length)?;
            writer.rows.reserve(rows_length)?;
            writer.rows.write(&page, 0)?;
        }
        Ok(writer)
    }

    fn read_marks(&mut self) -> Result<()> {
        let mut bytes = vec![0; self.sums.len() * MARK_BYTES as usize];
        self.marks.read(&mut bytes, 0)?;
        let marks = bytes.as_chunks().0.iter();
        self.left = marks.map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok(())
    }

    /// Where the row begins in the file.
    fn offset(&self, row: u32) -> u64 {
        ROWS_AT as u64 + u64::from(row) * self.row_bytes as u64
    }

    fn mark(&self, ids: &[TokenId], encoded: &[u8]) -> u64 {
        WRITTEN | u64::from(self.sum.of(ids, encoded))
    }
}

impl RowWriter for MappedWriter {
    fn has(&mut self, row: u32, ids: &[TokenId]) -> Result<bool> {
        let mark = self.left.get(row as usize).copied().unwrap_or_default();
        if mark == 0 {
            return Ok(false);
        }
        let mut encoded = vec![0; self.row_bytes];
        self.rows.read(&mut encoded, self.offset(row))?;
        let sound = self.mark(ids, &encoded) == mark;
        if sound {
            self.sums[row as usize] = mark as u32;
        }
        Ok(sound)
    }

    fn add(&mut self, row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()> {
        let mark = self.mark(ids, encoded);
        self.rows.write(encoded, self.offset(row))?;
        self.marks
            .write(&mark.to_le_bytes(), u64::from(row) * MARK_BYTES)?;
        self.sums[row as usize] = mark as u32;
        Ok(())
    }

    /// What was written outlives the process already.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, _keys: &mut dyn Iterator<Item = &[TokenId]>) -> Result<WrittenRows> {
        Ok(WrittenRows {
            sums: self.sums,
            file: Some(self.rows.finish(ROWS_FILE)?),
            rows_sha256: None,
        })
    }
}

/// A file that is written at any offset.
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    /// Opens the file, or makes an empty one.
    fn open(path: PathBuf) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::at("open", &path))?;
        Ok(Self { path, file })
    }

    /// Bytes of the file.
    fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(Error::at("read", &self.path))?.len())
    }

    /// Whether it has this length and begins with `bytes`.
    fn begins_with(&self, bytes: &[u8], length: u64) -> Result<bool> {
        if self.length()? != length {
            return Ok(false);
        }
        let mut found = vec![0; bytes.len()];
        self.read(&mut found, 0)?;
        Ok(found == bytes)
    }

    /// Makes the file this long, all zeros, with its blocks on the disk taken: a disk that is too
    /// small is noticed before anything is computed. Leaves nothing there when it is.
    fn reserve(&self, length: u64) -> Result<()> {
        let reserved = self
            .file
            .set_len(0)
            .and_then(|()| preallocate(&self.file, length));
        if reserved.is_err() {
            // The error to report is the first one.
            let _ = self.file.set_len(0);
        }
        reserved.map_err(Error::at("write", &self.path))
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(Error::at("read", &self.path))
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(Error::at("write", &self.path))
    }

    /// Makes the file last; returns its entry for the manifest under `name`.
    fn finish(self, name: &str) -> Result<FileEntry> {
        let synced = self.file.sync_all();
        synced.map_err(Error::at("write", &self.path))?;
        Ok(FileEntry {
            path: name.to_owned(),
            bytes: self.length()?,
            sha256: sha256_file(&self.path)?,
        })
    }
}
