//! What tokens depend on, as one hash.

use std::os::unix::fs::MetadataExt as _;

use sha2::{Digest as _, Sha256};

use super::inputs::Input;
use super::options::Options;
use crate::tokenizer::TextTokenizer;

/// Raised when the same tokenizer file begins to give other ids, or the same text other documents:
/// 2 since a tokenizer's dropout is ignored.
const VERSION: u32 = 2;

/// Names the tokens of `inputs` as they are now. Contents stand in by size and modification time.
pub(super) fn of(inputs: &[Input], tokenizer: &TextTokenizer, options: &Options) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"tokens");
    hash.update(VERSION.to_le_bytes());
    hash.update(tokenizer.sha256());
    for field in [&options.text_field, &options.ids_field] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hash.update((options.max_document_bytes as u64).to_le_bytes());
    hash.update(options.shard_tokens.to_le_bytes());
    for input in inputs {
        let path = std::fs::canonicalize(&input.path).unwrap_or_else(|_| input.path.clone());
        let path = path.as_os_str().as_encoded_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(input.bytes.to_le_bytes());
        if let Ok(metadata) = std::fs::metadata(&input.path) {
            hash.update(metadata.mtime().to_le_bytes());
            hash.update(metadata.mtime_nsec().to_le_bytes());
        }
    }
    hash.finalize().into()
}
