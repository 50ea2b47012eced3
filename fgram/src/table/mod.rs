//! A table: one row for each f-gram of a shard, in a directory.
//!
//! ```text
//! table.json   what it is; written last, by rename: without it there is no table
//! keys.bin     the f-grams of this shard, in served order: position = row id
//! index.bin    finds the row id of an f-gram
//! rows.sled/   the rows by f-gram (sled), or
//! rows.bin     the rows by row id (mapped)
//! build.json   only while the table is being built
//! upsert.json  only while an upsert is unfinished
//! ```

mod build;
mod flights;
mod hot_set;
mod key_file;
mod key_index;
mod lookup;
mod manifest;
mod mapped_store;
mod mapping;
mod names;
mod open;
mod prefetch;
mod residency;
mod row_writer;
#[cfg(test)]
mod samples;
mod sled_store;
mod store;
mod sums;
mod table_file;
mod table_keys;
mod upsert;
mod verify;

pub use build::{BuildOptions, build_table};
pub use hot_set::{HOT_ROW_OVERHEAD, HotSetStats};
pub use key_index::KeyIndex;
pub use lookup::{Cold, LookupResult, Span};
pub use manifest::{FORMAT_VERSION, FileEntry, Manifest, StoreKind, table_id};
pub use names::MANIFEST_FILE;
pub use open::{Table, TableOptions};
pub use store::{RowRequest, RowStore};
pub use table_keys::TableKeys;
pub use upsert::{UpsertReport, upsert};
pub use verify::VerifyReport;
