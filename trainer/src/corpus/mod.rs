//! A corpus as documents of token ids: read, checked, tokenised once, kept in mapped files.
//!
//! Inputs are streamed (`reader`) and their tokens written to a directory of shards (`store`), two
//! bytes each when the vocabulary has at most 65,536 entries: where the user names one, or in the
//! cache. Documents are tokenised without special tokens, and the border between two of them is kept:
//! no f-gram spans it, and the training loader puts `<|endoftext|>` there.

mod check;
mod decompress;
mod ids;
mod inputs;
mod key;
mod manifest;
mod mapping;
mod mixture;
mod options;
mod parquet_tokens;
mod reader;
mod run;
mod sample;
mod shard;
mod store;
mod tokenize;
mod tokenized;

pub use inputs::{Input, expand};
pub use manifest::{TokenFormat, TokensFile, TokensManifest};
pub use mixture::{Mixture, mix};
pub use options::{
    DEFAULT_IDS_FIELD, DEFAULT_TEXT_FIELD, MAX_DOCUMENT_BYTES, Options, SHARD_TOKENS,
};
pub use sample::Sample;
pub use tokenize::{tokenize, tokenize_to};
pub use tokenized::TokenizedCorpus;

#[cfg(test)]
mod tests;
