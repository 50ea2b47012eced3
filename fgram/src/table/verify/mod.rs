//! Reading a whole table and checking every byte of it.
//!
//! Pieces of the table are read in order and checked by all processors: each row by its checksum,
//! which covers its key, each key by finding it in the index, the index by the checksum it had when it
//! was opened. That is as fast as disks are; SHA-256 is not on processors without instructions for it,
//! and one file's is not shared between processors, so it is asked for apart
//! ([`Table::verify_sha256`]).

mod pieces;

use std::ops::Range;
use std::thread;

use pieces::{Pieces, bad_rows};

use super::disk::sums::RowsHash;
use super::memory::request::RowRequest;
use super::state::Table;
use crate::error::{Error, Result};
use crate::keys::KeyList;

/// Bytes of rows that are read at once.
const PIECE_BYTES: usize = 4 << 20;

/// Most rows of a piece.
const PIECE_ROWS: usize = 1 << 16;

/// What [`Table::verify`] has read and found sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyReport {
    /// Rows read and checked.
    pub rows: u64,
    /// Their bytes, without checksums.
    pub row_bytes: u64,
    /// Bytes of all that was read: the files listed in `table.json`, and rows of sled.
    pub bytes: u64,
    /// Files listed in `table.json`.
    pub files: u64,
}

impl Table {
    /// Reads every file and row again and checks each byte by a checksum. `progress` gets rows done
    /// and their total.
    ///
    /// # Errors
    /// [`Error::Format`] for a damaged file. [`Error::DataLoss`] when rows are missing, damaged
    /// or too many; it names the first one and says how many there are.
    /// [`Error::UnfinishedUpsert`] when some rows are those of another table.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport> {
        if self.has_unfinished_upsert() {
            return Err(Error::UnfinishedUpsert {
                dir: self.dir().to_owned(),
            });
        }
        let manifest = self.manifest();
        self.index().check_same()?;
        self.index().keys().verify_header(manifest)?;
        match self.store.mapped() {
            Some(mapped) => {
                mapped.verify_header(manifest)?;
                self.verify_pieces(progress)?;
            }
            None => {
                self.verify_pieces(|_, _| {})?;
                let keys = self.index().keys().read_all(manifest)?;
                self.verify_in_key_order(&keys, &mut progress)?;
            }
        }
        self.check_not_lost()?;
        let (total, stored) = (self.index().len() as u64, self.store().count_rows()?);
        if stored != total {
            let problem = format!("{stored} rows stored, but {total} keys");
            return Err(Error::data_loss(self.dir(), problem));
        }
        let row_bytes = total * self.store().row_bytes() as u64;
        let files: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        let in_sled = self.store.mapped().map_or(row_bytes, |_| 0);
        Ok(VerifyReport {
            rows: total,
            row_bytes,
            bytes: files + in_sled,
            files: manifest.files.len() as u64,
        })
    }

    /// Compares the SHA-256 of every file with `table.json`, which tells what the table was built as
    /// from what somebody made of it. One processor a file.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that differs.
    pub fn verify_sha256(&self) -> Result<()> {
        let manifest = self.manifest();
        thread::scope(|scope| {
            let keys = scope.spawn(|| self.index().keys().verify_sha256(manifest));
            let index = scope.spawn(|| self.index().verify_sha256(manifest));
            let mapped = self.store.mapped();
            let rows = mapped.map_or(Ok(()), |mapped| mapped.verify_sha256(manifest));
            let others = [keys, index].map(|other| match other.join() {
                Ok(checked) => checked,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            others.into_iter().chain([rows]).collect()
        })
    }

    /// Checks keys, index and, of a mapped table, rows.
    fn verify_pieces(&self, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let total = self.index().len() as u32;
        let in_piece = PIECE_BYTES / self.store().row_bytes();
        let pieces = Pieces::of(total, in_piece.clamp(1, PIECE_ROWS) as u32);
        let work = |tell: &mut dyn FnMut(u64)| {
            let mut buffer = Vec::new();
            while let Some(rows) = pieces.take(|ahead| self.read_soon(ahead)) {
                let checked = self.verify_piece(rows.clone(), &mut buffer);
                tell(u64::from(pieces.checked(rows, checked)));
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| work(&mut |_| {}));
            }
            work(&mut |done| progress(done, u64::from(total)));
        });
        progress(u64::from(total), u64::from(total));
        pieces.result(|problem| Error::data_loss(self.dir(), problem))
    }

    fn read_soon(&self, rows: Range<u32>) {
        if let Some(mapped) = self.store.mapped() {
            mapped.read_run_soon(rows);
        }
    }

    /// Checks some rows; returns how many of them are damaged, and the first error.
    fn verify_piece(&self, rows: Range<u32>, buffer: &mut Vec<u8>) -> Result<Option<(u64, Error)>> {
        let (index, manifest) = (self.index(), self.manifest());
        let checked = rows.clone().map(|row| index.keys().checked(row, manifest));
        let keys: Vec<_> = checked.collect::<Result<_>>()?;
        index.check_finds(rows.start, &keys)?;
        match self.store.mapped() {
            Some(mapped) => mapped.verify_rows(rows, buffer),
            None => {
                let mut rows = rows;
                rows.try_for_each(|row| index.keys().check_no_sum(row))?;
                Ok(None)
            }
        }
    }

    /// Reads every row of sled, which checks it, in its order, and compares the checksum over all.
    fn verify_in_key_order(
        &self,
        keys: &KeyList,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        let total = keys.len() as u64;
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        order.sort_unstable_by_key(|&row| keys.get(row as usize));
        let mut hash = RowsHash::new();
        let mut bytes = vec![0; self.store().row_bytes()];
        let mut bad: Option<(u64, Error)> = None;
        for (&row, done) in order.iter().zip(1..) {
            let request = RowRequest { row, index: 0 };
            match self.store().get_many(&[request], &mut bytes) {
                Ok(()) => hash.add(keys.get(row as usize), &bytes),
                Err(error) => bad.get_or_insert((0, error)).0 += 1,
            }
            progress(done, total);
        }
        if let Some((bad, first)) = bad {
            return Err(Error::data_loss(self.dir(), bad_rows(bad, total, &first)));
        }
        if Some(hash.finish()) != self.manifest().rows_sha256 {
            let problem = "the checksum over all rows differs from table.json";
            return Err(Error::data_loss(self.dir(), problem));
        }
        Ok(())
    }
}
