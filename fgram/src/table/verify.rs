//! Reading a whole table and checking every byte of it.

use sha2::{Digest as _, Sha256};

use super::key_file;
use super::open::Table;
use super::sled_store::key_bytes;
use super::store::RowKey;
use crate::error::{Error, Result};
use crate::files;
use crate::ngram::TokenId;

/// What [`Table::verify`] has read and found sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyReport {
    /// Rows read and checked.
    pub rows: u64,
    /// Their bytes, without checksums.
    pub row_bytes: u64,
    /// Files whose checksum was compared.
    pub files: u64,
}

/// SHA-256 of all rows with their keys, in the order of keys.
pub(super) struct RowsHash(Sha256);

impl RowsHash {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds one row: length of the f-gram, its ids as in the store's keys, the encoded row.
    pub(super) fn add(&mut self, ids: &[TokenId], row: &[u8]) {
        self.0.update([ids.len() as u8]);
        self.0.update(key_bytes(ids));
        self.0.update(row);
    }

    pub(super) fn finish(self) -> String {
        files::hex(&self.0.finalize())
    }
}

impl Table {
    /// Reads every file and row again and compares checksums. `progress` gets rows done and
    /// their total.
    ///
    /// # Errors
    /// [`Error::Format`] for a damaged file. [`Error::DataLoss`] when rows are missing, damaged
    /// or too many; it names the first one and says how many there are.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport> {
        let manifest = self.manifest();
        let keys = key_file::read(self.dir(), manifest)?;
        let total = keys.len() as u64;
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        order.sort_unstable_by_key(|&id| keys.get(id as usize));
        let mut hash = RowsHash::new();
        let mut row = vec![0; self.store().row_bytes()];
        let mut first_problem = None;
        let mut bad = 0u64;
        for (done, &id) in order.iter().enumerate() {
            let ids = keys.get(id as usize);
            match self.store().get_many(
                &[RowKey {
                    row: id,
                    ids,
                    place: 0,
                }],
                &mut row,
            ) {
                Ok(()) => hash.add(ids, &row),
                Err(error) => {
                    bad += 1;
                    first_problem.get_or_insert(error);
                }
            }
            progress(done as u64 + 1, total);
        }
        if let Some(first) = first_problem {
            return Err(self.damaged(format!("{bad} of {total} rows are bad; the first: {first}")));
        }
        if hash.finish() != manifest.rows_sha256 {
            return Err(self.damaged("the checksum over all rows differs from table.json".into()));
        }
        let stored = self.store().count_rows()?;
        if stored != total {
            return Err(self.damaged(format!("{stored} rows stored, but {total} keys")));
        }
        let row_bytes = total * row.len() as u64;
        Ok(VerifyReport {
            rows: total,
            row_bytes,
            files: manifest.files.len() as u64,
        })
    }

    fn damaged(&self, problem: String) -> Error {
        Error::DataLoss {
            dir: self.dir().to_owned(),
            problem,
        }
    }
}
