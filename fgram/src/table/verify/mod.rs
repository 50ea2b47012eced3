//! Reading a whole table and checking every byte of it.
//!
//! Pieces of the table are read in order and checked by all processors: each row by its checksum,
//! which covers its key, each key by finding it in the index, the index by the checksum it had when it
//! was opened. That is as fast as disks are; SHA-256 is not on processors without instructions for it,
//! and one file's is not shared between processors, so it is asked for apart
//! ([`Table::verify_sha256`]).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::disk::sums::RowsHash;
use super::memory::request::RowRequest;
use super::state::Table;
use crate::error::{Error, Result};
use crate::keys::KeyList;

/// Bytes of rows that are read at once.
const PIECE_BYTES: usize = 4 << 20;

/// Most rows of a piece.
const PIECE_ROWS: usize = 1 << 16;

/// Pieces that the disk is asked for before they are read: with fewer it waits for the processor.
const AHEAD: u32 = 4;

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
            mapped.read_soon(rows);
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

fn bad_rows(bad: u64, total: u64, first: &Error) -> String {
    format!("{bad} of {total} rows are bad; the first: {first}")
}

/// The pieces of a table, taken one after the other by several threads.
struct Pieces {
    total: u32,
    in_piece: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first row that nobody has taken yet.
    next: u32,
    done: u32,
    bad: u64,
    /// The first damaged row's error, and the first row of its piece.
    first_bad: Option<(u32, Error)>,
    /// What ends it all, likewise.
    failed: Option<(u32, Error)>,
}

impl Pieces {
    fn of(total: u32, in_piece: u32) -> Self {
        Self {
            total,
            in_piece,
            state: Mutex::default(),
        }
    }

    /// No code that can panic runs while the lock is held, so a poisoned one is sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of the next piece. `read_soon` gets those of one or more that come later.
    fn take(&self, read_soon: impl FnOnce(Range<u32>)) -> Option<Range<u32>> {
        let rows = {
            let mut state = self.state();
            if state.failed.is_some() || state.next >= self.total {
                return None;
            }
            let rows = state.next..self.piece_end(state.next, 1);
            state.next = rows.end;
            rows
        };
        // At the start all that is ahead, then one piece more each time.
        let ahead = match rows.start {
            0 => 0..self.piece_end(0, AHEAD + 1),
            start => self.piece_end(start, AHEAD)..self.piece_end(start, AHEAD + 1),
        };
        if !ahead.is_empty() {
            read_soon(ahead);
        }
        Some(rows)
    }

    /// The end of so many pieces from `start` on.
    fn piece_end(&self, start: u32, pieces: u32) -> u32 {
        start
            .saturating_add(pieces.saturating_mul(self.in_piece))
            .min(self.total)
    }

    /// Notes what came of a piece; returns the rows done so far.
    fn checked(&self, rows: Range<u32>, checked: Result<Option<(u64, Error)>>) -> u32 {
        let mut state = self.state();
        state.done += rows.end - rows.start;
        let earliest = |first: &mut Option<(u32, Error)>, error| {
            if first.as_ref().is_none_or(|(row, _)| rows.start < *row) {
                *first = Some((rows.start, error));
            }
        };
        match checked {
            Ok(None) => {}
            Ok(Some((bad, error))) => {
                state.bad += bad;
                earliest(&mut state.first_bad, error);
            }
            Err(error) => earliest(&mut state.failed, error),
        }
        state.done
    }

    /// What came of all; `data_loss` makes an error about rows.
    fn result(self, data_loss: impl FnOnce(String) -> Error) -> Result<()> {
        let state = self.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = state.failed {
            return Err(error);
        }
        match state.first_bad {
            None => Ok(()),
            Some((_, first)) => {
                let total = u64::from(self.total);
                Err(data_loss(bad_rows(state.bad, total, &first)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn error(text: &str) -> Error {
        Error::argument("row", text)
    }

    #[test]
    fn pieces_come_once_each_and_are_asked_for_before() {
        let pieces = Pieces::of(103, 10);
        let (mut asked, mut taken) = (0, 0);
        while let Some(rows) = pieces.take(|ahead| {
            assert_eq!(ahead.start, asked);
            asked = ahead.end;
        }) {
            assert_eq!(rows.start, taken);
            taken = rows.end;
            assert!(asked == (taken + 40).min(103), "{asked} at {taken}");
            assert_eq!(pieces.checked(rows, Ok(None)), taken);
        }
        assert_eq!((asked, taken), (103, 103));
        assert!(pieces.result(|_| unreachable!()).is_ok());
        assert!(Pieces::of(0, 10).take(|_| unreachable!()).is_none());
    }

    #[test]
    fn the_first_error_is_told_whichever_comes_first_and_damaged_keys_end_it() {
        let pieces = Pieces::of(100, 10);
        let [first, second] = [(); 2].map(|()| pieces.take(|_| {}).unwrap());
        pieces.checked(second, Ok(Some((2, error("second")))));
        pieces.checked(first.clone(), Ok(Some((1, error("first")))));
        let result = pieces.result(|problem| error(&problem)).unwrap_err();
        assert!(result.to_string().contains("3 of 100 rows are bad"));
        assert!(result.to_string().contains("first"), "{result}");

        let pieces = Pieces::of(100, 10);
        pieces.checked(first, Err(error("a key")));
        assert!(pieces.take(|_| {}).is_none());
        let result = pieces.result(|_| unreachable!()).unwrap_err();
        assert!(result.to_string().contains("a key"));
    }
}
