//! Where a build puts its rows: one writer for each store.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::build::BuildOptions;
use super::manifest::{FileEntry, Manifest, StoreKind};
use super::mapped_store::{self, ROWS_AT};
use super::row_sum::RowSum;
use super::sled_store::{self, SledTree};
use crate::error::{Error, Result};
use crate::files::{self, io_error};
use crate::keys::KeyList;
use crate::ngram::TokenId;

/// Checksums of the rows in `rows.bin` while it is being written; they end up in `keys.bin`.
pub(super) const SUMS_FILE: &str = "rows.crc";

/// What holds rows in a table directory.
pub(super) const FILES: [&str; 2] = [sled_store::DIRECTORY, mapped_store::KIND.name];

/// Takes the rows of a table, once each, in its own order.
pub(super) trait RowWriter {
    /// Row ids in the order in which rows are to be added.
    fn order(&self) -> Vec<u32>;

    /// Whether an earlier run has left a sound row.
    fn has(&mut self, row: u32, ids: &[TokenId]) -> Result<bool>;

    /// Writes an encoded row.
    fn add(&mut self, row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()>;

    /// Makes the rows so far outlive the process.
    fn flush(&mut self) -> Result<()>;

    /// Makes all rows last and closes the store.
    fn finish(self: Box<Self>, keys: &KeyList) -> Result<WrittenRows>;
}

/// What the rest of the table has to know of its rows.
#[derive(Default)]
pub(super) struct WrittenRows {
    /// The checksum of each row, when the store does not keep them itself.
    pub(super) sums: Vec<u32>,
    /// The file of rows, when it never changes.
    pub(super) file: Option<FileEntry>,
    /// The checksum over all rows otherwise.
    pub(super) rows_sha256: Option<String>,
}

/// The writer for the store of `manifest`, standing behind what an earlier run has left.
pub(super) fn open(
    dir: &Path,
    manifest: &Manifest,
    options: &BuildOptions,
    keys: &KeyList,
) -> Result<Box<dyn RowWriter>> {
    Ok(match manifest.store {
        StoreKind::Sled => {
            let cache = options.store_cache_bytes;
            let tree = SledTree::open(dir, manifest, cache, true)?;
            let mut order: Vec<u32> = (0..keys.len() as u32).collect();
            order.sort_unstable_by_key(|&row| keys.get(row as usize));
            Box::new(SledWriter { tree, order })
        }
        StoreKind::Mapped => Box::new(MappedWriter::open(dir, manifest, keys)?),
    })
}

/// Inserts in the order of keys, for which sled is fastest.
struct SledWriter {
    tree: SledTree,
    order: Vec<u32>,
}

impl RowWriter for SledWriter {
    fn order(&self) -> Vec<u32> {
        self.order.clone()
    }

    fn has(&mut self, _row: u32, ids: &[TokenId]) -> Result<bool> {
        Ok(self.tree.get(ids)?.row().is_some())
    }

    fn add(&mut self, _row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()> {
        self.tree.insert(ids, encoded)
    }

    fn flush(&mut self) -> Result<()> {
        self.tree.flush()
    }

    fn finish(self: Box<Self>, keys: &KeyList) -> Result<WrittenRows> {
        self.tree.flush()?;
        let sorted: Vec<&[TokenId]> = self
            .order
            .iter()
            .map(|&row| keys.get(row as usize))
            .collect();
        Ok(WrittenRows {
            rows_sha256: Some(self.tree.rows_sha256(&sorted)?),
            ..WrittenRows::default()
        })
    }
}

/// Appends rows to one file, and their checksums to another.
struct MappedWriter {
    rows: Output,
    sums: Output,
    /// Of each row written.
    written: Vec<u32>,
    sum: RowSum,
    hash: Sha256,
    /// Rows of the table.
    total: u32,
}

/// A file that is appended to.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MappedWriter {
    fn open(dir: &Path, manifest: &Manifest, keys: &KeyList) -> Result<Self> {
        let mut page = vec![0; ROWS_AT];
        let header = mapped_store::KIND.header(manifest, mapped_store::facts(manifest));
        page[..header.len()].copy_from_slice(&header);
        let mut rows = Output::open(dir.join(mapped_store::KIND.name))?;
        let mut sums = Output::open(dir.join(SUMS_FILE))?;
        let sum = RowSum::new(&manifest.checksum_seed);
        let mut hash = Sha256::new();
        hash.update(&page);
        let mut written = Vec::with_capacity(keys.len());
        if rows.starts_with(&page)? {
            keep(&mut rows, &mut sums, manifest, keys, |ids, row, stored| {
                let sound = sum.of(ids, row) == stored;
                if sound {
                    hash.update(row);
                    written.push(stored);
                }
                sound
            })?;
        }
        let kept = written.len() as u64;
        rows.cut(ROWS_AT as u64 + kept * manifest.row_bytes() as u64)?;
        sums.cut(4 * kept)?;
        if kept == 0 {
            rows.cut(0)?;
            rows.write(&page)?;
        }
        Ok(Self {
            rows,
            sums,
            written,
            sum,
            hash,
            total: keys.len() as u32,
        })
    }
}

/// Reads the rows behind the header with their checksums, until one is missing or not `sound`.
fn keep(
    rows: &mut Output,
    sums: &mut Output,
    manifest: &Manifest,
    keys: &KeyList,
    mut sound: impl FnMut(&[TokenId], &[u8], u32) -> bool,
) -> Result<()> {
    let mut row = vec![0; manifest.row_bytes()];
    let mut stored = [0; 4];
    let (rows_file, sums_file) = (rows.file.get_mut(), sums.file.get_mut());
    let (mut rows_in, mut sums_in) = (BufReader::new(rows_file), BufReader::new(sums_file));
    for ids in keys.iter() {
        let complete = read_full(&mut rows_in, &mut row).map_err(io_error("read", &rows.path))?
            && read_full(&mut sums_in, &mut stored).map_err(io_error("read", &sums.path))?;
        if !complete || !sound(ids, &row, u32::from_le_bytes(stored)) {
            break;
        }
    }
    Ok(())
}

/// Fills `out`; false when the file ends before.
fn read_full(from: &mut impl Read, out: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(out) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

impl Output {
    /// Opens the file, or makes an empty one.
    fn open(path: PathBuf) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(io_error("open", &path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Whether the file begins with `bytes`; leaves off behind them.
    fn starts_with(&mut self, bytes: &[u8]) -> Result<bool> {
        let mut found = vec![0; bytes.len()];
        let read = read_full(self.file.get_mut(), &mut found);
        Ok(read.map_err(io_error("read", &self.path))? && found == bytes)
    }

    /// Leaves the first `length` bytes, and goes on behind them.
    fn cut(&mut self, length: u64) -> Result<()> {
        let file = self.file.get_mut();
        let cut = file
            .set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)));
        cut.map(|_| ()).map_err(io_error("write", &self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(io_error("write", &self.path))
    }

    fn flush(&mut self) -> Result<()> {
        let flushed = self.file.flush();
        flushed.map_err(io_error("write", &self.path))
    }
}

impl RowWriter for MappedWriter {
    fn order(&self) -> Vec<u32> {
        (0..self.total).collect()
    }

    fn has(&mut self, row: u32, _ids: &[TokenId]) -> Result<bool> {
        Ok((row as usize) < self.written.len())
    }

    fn add(&mut self, row: u32, ids: &[TokenId], encoded: &[u8]) -> Result<()> {
        if row as usize != self.written.len() {
            return Err(Error::argument(
                "rows",
                format!("row {row} is out of order"),
            ));
        }
        let sum = self.sum.of(ids, encoded);
        self.rows.write(encoded)?;
        self.sums.write(&sum.to_le_bytes())?;
        self.hash.update(encoded);
        self.written.push(sum);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.rows.flush()?;
        self.sums.flush()
    }

    fn finish(mut self: Box<Self>, _keys: &KeyList) -> Result<WrittenRows> {
        self.flush()?;
        let file = self.rows.file.get_ref();
        file.sync_all()
            .map_err(io_error("write", &self.rows.path))?;
        let metadata = fs::metadata(&self.rows.path);
        let bytes = metadata.map_err(io_error("read", &self.rows.path))?.len();
        Ok(WrittenRows {
            sums: self.written,
            file: Some(FileEntry {
                path: mapped_store::KIND.name.to_owned(),
                bytes,
                sha256: files::hex(&self.hash.finalize()),
            }),
            rows_sha256: None,
        })
    }
}
