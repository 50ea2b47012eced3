//! What is on disk: the files of a table, their layout and their checksums. Knows no store, no
//! look-up and no table that is open.

pub(crate) mod key_file;
pub(crate) mod key_index;
#[cfg(target_os = "linux")]
mod lost_pages;
pub(crate) mod manifest;
pub(crate) mod mapping;
pub(crate) mod names;
pub(crate) mod page;
pub(crate) mod prefetch;
pub(crate) mod row_file;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod sums;
pub(crate) mod table_file;
