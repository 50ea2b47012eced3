//! How a corpus is read and where its tokens are kept.

use std::path::PathBuf;

/// Field of a .jsonl line, or column of a .parquet file, that holds the text, unless said otherwise.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Column of a .parquet file that holds lists of token ids, unless said otherwise.
pub const DEFAULT_IDS_FIELD: &str = "ids";

/// Default for the longest document, bytes of UTF-8.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// Default for the tokens of one file; those of one file are in memory while it is written.
pub const SHARD_TOKENS: u64 = 1 << 24;

/// How a corpus is read and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Field of a .jsonl line, or column of a .parquet file, that holds the text.
    pub text_field: String,
    /// Column of a .parquet file without a text column that holds lists of token ids.
    pub ids_field: String,
    /// A longer document becomes several, split at a line end; bytes.
    pub max_document_bytes: usize,
    /// A file of tokens ends with the document that brings it to this many.
    pub shard_tokens: u64,
    /// Directory of tokens that can be made again; `None` keeps them in memory alone.
    pub cache_dir: Option<PathBuf>,
}

impl Default for Options {
    /// Fields `text` and `ids`, documents of up to 8 MiB, files of 16 Mi tokens, the user's cache
    /// directory.
    fn default() -> Self {
        Self {
            text_field: DEFAULT_TEXT_FIELD.to_owned(),
            ids_field: DEFAULT_IDS_FIELD.to_owned(),
            max_document_bytes: MAX_DOCUMENT_BYTES,
            shard_tokens: SHARD_TOKENS,
            cache_dir: scone_files::cache_dir(),
        }
    }
}
