//! Inputs are read once before long work, so that what is wrong with them is said at its start.

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::inputs::{Input, Layout};
use super::options::Options;
use super::reader::{Content, Documents, TOKENIZER_PROPERTY};
use crate::columns::ParquetFile;
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
    let mistakes: Vec<String> = inputs
        .par_iter()
        .with_max_len(1)
        .filter_map(|input| file(input, tokenizer, options, &progress).err())
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

fn file(
    input: &Input,
    tokenizer: &TextTokenizer,
    options: &Options,
    progress: &Progress,
) -> Result<()> {
    let path = input.path.display();
    if input.layout == Layout::Parquet {
        let own = scone_files::hex(&tokenizer.sha256());
        let file = ParquetFile::open(&input.path)?;
        let of = file.property(TOKENIZER_PROPERTY).unwrap_or(&own);
        ensure!(
            of == own,
            "{path}: its ids were made by the tokenizer of hash {of}, this one is {own}"
        );
    }
    let vocab_size = tokenizer.vocab_size();
    let mut documents = 0u64;
    for document in Documents::new(vec![input.clone()], options, progress) {
        documents += 1;
        if let Content::Ids { ids, row, .. } = document?.content {
            let unknown = ids.iter().find(|&&id| id >= vocab_size);
            if let Some(id) = unknown {
                bail!("{path}, row {row}: token id {id}, the vocabulary has {vocab_size}");
            }
        }
    }
    ensure!(documents > 0, "{path}: holds no text");
    Ok(())
}
