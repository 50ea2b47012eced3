//! A table: one row for each f-gram of a shard, in a directory.
//!
//! ```text
//! table.json   what it is; written last, by rename: without it there is no table
//! keys.bin     the f-grams of this shard, in served order: position = row id
//! rows.sled/   the rows, by f-gram
//! build.json   only while the table is being built
//! ```

mod build;
mod hot_set;
mod key_file;
mod lookup;
mod manifest;
mod open;
mod sled_store;
mod store;
mod table_keys;
mod verify;

pub use build::{BuildOptions, build_table};
pub use hot_set::{HOT_ROW_OVERHEAD, HotSetStats};
pub use lookup::{LookupResult, Span};
pub use manifest::{FileEntry, MANIFEST_FILE, Manifest, StoreKind, table_id};
pub use open::{Table, TableOptions};
pub use store::{RowKey, RowStore};
pub use table_keys::TableKeys;
pub use verify::VerifyReport;
