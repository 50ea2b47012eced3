//! A corpus as documents of token ids: read, tokenised once, kept in a cache file.
//!
//! Inputs are streamed (`reader`); what stays in memory is the token ids, two bytes each when the
//! vocabulary has at most 65,536 entries. Documents are tokenised without special tokens, and the
//! border between two of them is kept: no f-gram spans it, and the training loader puts
//! `<|endoftext|>` there.

mod cache;
mod decompress;
mod ids;
mod inputs;
mod options;
mod reader;
mod sample;
mod tokenize;
mod tokenized;

pub use ids::TokenIds;
pub use inputs::{Input, expand};
pub use options::{DEFAULT_TEXT_FIELD, MAX_DOCUMENT_BYTES, Options};
pub use sample::Sample;
pub use tokenize::tokenize;
pub use tokenized::TokenizedCorpus;

#[cfg(test)]
mod tests;
