//! `rows.bin`: the rows of a mapped table by row id, one of fixed width each (`docs/formats.md`,
//! "rows.bin").

use super::manifest::Manifest;
use super::names::ROWS_FILE;
use super::table_file::{FACTS, FileKind};

/// Magic, version and name.
pub(crate) const KIND: FileKind = FileKind {
    name: ROWS_FILE,
    magic: *b"SCONEROW",
    version: 1,
};

/// Where the rows begin: at a page border, so that rows of whole pages share none.
pub(crate) const ROWS_AT: usize = 4096;

/// The facts in the header of the file.
pub(crate) fn facts(manifest: &Manifest) -> [u64; FACTS] {
    [manifest.row_bytes() as u64, ROWS_AT as u64, 0, 0, 0, 0]
}
