//! Reading a whole table and checking every byte of it.

use super::disk::sums::RowsHash;
use super::memory::request::RowRequest;
use super::state::Table;
use crate::error::{Error, Result};
use crate::keys::KeyList;

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

impl Table {
    /// Reads every file and row again and compares checksums. `progress` gets rows done and
    /// their total.
    ///
    /// # Errors
    /// [`Error::Format`] for a damaged file. [`Error::DataLoss`] when rows are missing, damaged
    /// or too many; it names the first one and says how many there are.
    /// [`Error::UnfinishedUpsert`] when some rows are those of another table.
    pub fn verify(&self, progress: impl FnMut(u64, u64)) -> Result<VerifyReport> {
        if self.has_unfinished_upsert() {
            return Err(Error::UnfinishedUpsert {
                dir: self.dir().to_owned(),
            });
        }
        let manifest = self.manifest();
        let keys = self.index().keys();
        keys.verify(manifest)?;
        let list = keys.read_all(manifest)?;
        self.index().verify(manifest)?;
        let rows_sha256 = self.verify_rows(&list, progress)?;
        match self.store.mapped() {
            Some(store) => store.verify(manifest)?,
            None if Some(rows_sha256) != manifest.rows_sha256 => {
                let problem = "the checksum over all rows differs from table.json";
                return Err(Error::data_loss(self.dir(), problem));
            }
            None => {}
        }
        let (total, stored) = (list.len() as u64, self.store().count_rows()?);
        if stored != total {
            let problem = format!("{stored} rows stored, but {total} keys");
            return Err(Error::data_loss(self.dir(), problem));
        }
        Ok(VerifyReport {
            rows: total,
            row_bytes: total * self.store().row_bytes() as u64,
            files: manifest.files.len() as u64,
        })
    }

    /// Reads every row, which checks it, in the order of the store; returns the checksum over all
    /// of a sled table.
    fn verify_rows(&self, keys: &KeyList, mut progress: impl FnMut(u64, u64)) -> Result<String> {
        let total = keys.len() as u64;
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        if self.store.mapped().is_none() {
            order.sort_unstable_by_key(|&row| keys.get(row as usize));
        }
        let mut hash = RowsHash::new();
        let mut bytes = vec![0; self.store().row_bytes()];
        let mut first_problem = None;
        let mut bad = 0u64;
        for (&row, done) in order.iter().zip(1..) {
            let request = RowRequest { row, index: 0 };
            match self.store().get_many(&[request], &mut bytes) {
                Ok(()) if self.store.mapped().is_none() => hash.add(keys.get(row as usize), &bytes),
                Ok(()) => {}
                Err(error) => {
                    bad += 1;
                    first_problem.get_or_insert(error);
                }
            }
            progress(done, total);
        }
        match first_problem {
            None => Ok(hash.finish()),
            Some(first) => {
                let problem = format!("{bad} of {total} rows are bad; the first: {first}");
                Err(Error::data_loss(self.dir(), problem))
            }
        }
    }
}
