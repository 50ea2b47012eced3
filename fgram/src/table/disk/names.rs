//! Names in a table directory.

/// The manifest: what the table is. Without it there is no table.
pub const MANIFEST_FILE: &str = "table.json";

/// There while a table is being built.
pub(crate) const BUILD_FILE: &str = "build.json";

/// There while an upsert is unfinished.
pub(crate) const UPSERT_FILE: &str = "upsert.json";

/// The f-grams, and the checksums of rows that stand in [`ROWS_FILE`].
pub(crate) const KEYS_FILE: &str = "keys.bin";

/// Finds the row id of an f-gram.
pub(crate) const INDEX_FILE: &str = "index.bin";

/// The rows of a mapped table.
pub(crate) const ROWS_FILE: &str = "rows.bin";

/// Which rows of [`ROWS_FILE`] are there while it is being written, and their checksums, which end
/// up in [`KEYS_FILE`].
pub(crate) const MARKS_FILE: &str = "rows.crc";

/// The folder of a sled table's rows.
pub(crate) const SLED_FOLDER: &str = "rows.sled";
