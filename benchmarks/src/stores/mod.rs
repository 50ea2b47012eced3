//! The stores compared: ours and their peers, behind one small trait.
//!
//! Every subject finds a row by its whole f-gram, and copies it to where the caller wants it. Peers
//! get their best case: keys loaded in order, one read transaction kept open for all reads.

mod flat;
mod lmdb;
mod ours;
mod redb;
mod store;

use std::path::Path;

use anyhow::{Result, ensure};
use scone_fgram::{FgramSet, StoreKind};

use crate::args::Shape;
use crate::batches::{Batch, Served};
use crate::{disk, rows, tables};
pub use store::Store;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// The limit: the same bytes copied out of one buffer in memory, offsets known.
    Memcpy,
    /// A table of immutable files, all of it read when it is opened (`--hot-bytes`).
    Mapped,
    /// The same, its rows brought into memory one by one.
    MappedScattered,
    /// A table in sled, without a hot set.
    Sled,
    /// The same with a hot set for a fifth of its rows.
    SledHot,
    /// LMDB through heed, its file read from end to end first.
    Lmdb,
    /// The same, its pages brought into memory one by one, as random reads do.
    LmdbScattered,
    /// redb.
    Redb,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Memcpy,
        Self::Mapped,
        Self::MappedScattered,
        Self::Sled,
        Self::SledHot,
        Self::Lmdb,
        Self::LmdbScattered,
        Self::Redb,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memcpy => "memcpy",
            Self::Mapped => "mapped",
            Self::MappedScattered => "mapped, scattered",
            Self::Sled => "sled",
            Self::SledHot => "sled + hot set",
            Self::Lmdb => "lmdb",
            Self::LmdbScattered => "lmdb, scattered",
            Self::Redb => "redb",
        }
    }

    /// The folder of its files; none for what is only in memory.
    pub fn folder(self) -> Option<&'static str> {
        match self {
            Self::Memcpy => None,
            Self::Mapped | Self::MappedScattered => Some("mapped"),
            Self::Sled | Self::SledHot => Some("sled"),
            Self::Lmdb | Self::LmdbScattered => Some("lmdb"),
            Self::Redb => Some("redb"),
        }
    }

    /// Writes its files into an empty folder, so that they last.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn build(self, dir: &Path, set: &FgramSet, row_bytes: usize) -> Result<()> {
        match self {
            Self::Memcpy => Ok(()),
            Self::Mapped | Self::MappedScattered => {
                tables::build(dir, set, StoreKind::Mapped, row_bytes)
            }
            Self::Sled | Self::SledHot => tables::build(dir, set, StoreKind::Sled, row_bytes),
            Self::Lmdb | Self::LmdbScattered => lmdb::build(dir, set, row_bytes),
            Self::Redb => redb::build(dir, set, row_bytes),
        }
    }

    /// Brings the pages of its files into memory, before it is opened for a warm measurement.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_pages(self, dir: &Path) -> Result<()> {
        disk::drop_pages(dir)?;
        match self {
            // Reads them itself.
            Self::Mapped => Ok(()),
            Self::MappedScattered | Self::LmdbScattered => disk::read_scattered(dir),
            _ => disk::read_pages(dir),
        }
    }

    /// Whether it is measured cold: those are that differ from the others then.
    pub fn is_measured_cold(self) -> bool {
        matches!(self, Self::Mapped | Self::Sled | Self::Lmdb | Self::Redb)
    }

    /// Opens it to be measured warm; `dir` is the folder that `build` filled.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_warm(
        self,
        dir: &Path,
        served: &Served<'_>,
        shape: Shape,
    ) -> Result<Box<dyn Store>> {
        match self {
            Self::Mapped => Ok(Box::new(ours::Ours::open(dir, shape.rows)?)),
            _ => self.open(dir, served, shape),
        }
    }

    /// Opens it so that it reads no more than it must; `dir` is the folder that `build` filled.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(self, dir: &Path, served: &Served<'_>, shape: Shape) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Memcpy => Box::new(flat::Flat::new(served, shape.row_bytes)),
            Self::Mapped | Self::MappedScattered | Self::Sled => {
                Box::new(ours::Ours::open(dir, 0)?)
            }
            Self::SledHot => Box::new(ours::Ours::open(dir, shape.rows / 5)?),
            Self::Lmdb | Self::LmdbScattered => Box::new(lmdb::Lmdb::open(dir)?),
            Self::Redb => Box::new(redb::Redb::open(dir)?),
        })
    }
}

/// Checks that a store has the right rows for a batch.
///
/// # Errors
/// When it has not.
pub fn check(store: &mut dyn Store, batch: &Batch, row_bytes: usize) -> Result<()> {
    let mut expected = Vec::with_capacity(batch.rows.len() * row_bytes);
    batch
        .fgrams()
        .for_each(|ids| rows::encoded(ids, row_bytes, &mut expected));
    ensure!(store.read(batch)? == expected, "a store read a wrong row");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batches::Skew;
    use crate::fgrams;

    #[test]
    fn every_store_reads_what_was_written() {
        let set = fgrams::synthetic(500).expect("a set");
        let served = Served::of(&set);
        let shape = Shape {
            rows: 500,
            row_bytes: 64,
        };
        for subject in Subject::ALL {
            let dir = tempfile::tempdir().expect("a temporary folder");
            subject
                .build(dir.path(), &set, shape.row_bytes)
                .expect("built");
            let mut store = subject.open(dir.path(), &served, shape).expect("opened");
            for batch in served.draw(Skew::Uniform, 32, 320, 1) {
                check(&mut *store, &batch, shape.row_bytes).expect("the right rows");
            }
        }
    }
}
