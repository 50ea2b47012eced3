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
//!
//! The verbs (build, open, lookup, upsert, verify) stand here, over an open table (`state`). Below
//! them are three rooms, and imports only go down:
//!
//! ```text
//! verbs -> stores    what holds rows: sled, a mapped file, behind one trait; the writers of both
//!            -> memory   rows kept because they are asked for often, rows on their way there
//!            -> disk     the files: names, manifest, header, keys, index, rows, sums, mapping
//! ```

mod build;
mod disk;
mod lookup;
mod memory;
mod name;
mod open;
mod state;
mod stores;
mod table_keys;
mod upsert;
mod verify;

pub use build::{BuildOptions, build_table, build_table_encoded};
pub use disk::key_index::KeyIndex;
pub use disk::manifest::{FORMAT_VERSION, FileEntry, Manifest, StoreKind, table_id};
pub use disk::names::MANIFEST_FILE;
pub use lookup::{Cold, LookupResult, Span};
pub use memory::hot_set::{HOT_ROW_OVERHEAD, HotSetStats};
pub use memory::request::RowRequest;
pub use memory::tiny_lfu::{Slot, TinyLfu};
pub use name::{MAX_TABLES, NamedDir, TableName, repeated_name};
pub use open::TableOptions;
pub use state::Table;
pub use stores::row_store::RowStore;
pub use table_keys::TableKeys;
pub use upsert::{UpsertReport, upsert};
pub use verify::VerifyReport;
