//! How a corpus is read and where its tokens are kept.

use std::path::PathBuf;

/// Field of a .jsonl line that holds the text, unless said otherwise.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Default for the longest document, bytes of UTF-8.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// How a corpus is read and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Field of a .jsonl line that holds the text.
    pub text_field: String,
    /// A longer document becomes several, split at a line end; bytes.
    pub max_document_bytes: usize,
    /// Directory of cache files; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
}

impl Default for Options {
    /// Field `text`, documents of up to 8 MiB, the user's cache directory.
    fn default() -> Self {
        Self {
            text_field: DEFAULT_TEXT_FIELD.to_owned(),
            max_document_bytes: MAX_DOCUMENT_BYTES,
            cache_dir: scone_files::cache_dir(),
        }
    }
}
