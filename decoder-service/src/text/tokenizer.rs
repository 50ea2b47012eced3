//! tokenizer.json as people have it, made fit to serve.

use std::path::Path;

use tokenizers::{ModelWrapper, Result, Tokenizer};

/// Reads a tokenizer.json and switches off what belongs to training: truncation, which would cut a
/// prompt silently; padding, which would add tokens to it; and the dropout of merges, which would
/// give one text different ids each time.
///
/// # Errors
/// When the file cannot be read or is no tokenizer.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(path)?;
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}
