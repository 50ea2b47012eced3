//! `trainer fgrams`: shows an f-gram set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::builder::BoolishValueParser;
use scone_fgram::FgramSet;
use serde::Serialize;

use super::output;
use crate::tokenizer::TextTokenizer;

/// Flags of `trainer fgrams`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The fgrams.bin to show.
    #[arg(long, env = "SCONE_FGRAMS", help_heading = "Input")]
    fgrams: PathBuf,
    /// The tokenizer.json of the set, to show f-grams as text.
    #[arg(long, env = "SCONE_TOKENIZER", help_heading = "Input")]
    tokenizer: Option<PathBuf>,
    /// How many f-grams to list, from the most frequent on; 0 lists none.
    #[arg(
        long,
        env = "SCONE_LIMIT",
        default_value_t = 20,
        help_heading = "Output"
    )]
    limit: usize,
    /// Print JSON: one object per f-gram, the summary as the last.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    rank: usize,
    ids: &'a [u32],
    text: Option<String>,
    count: u64,
    match_count: u64,
}

#[derive(Debug, Serialize)]
struct Summary {
    fgrams: usize,
    fgram_set_hash: String,
    tokenizer_hash: String,
    vocab_size: u32,
    max_n: u8,
    min_count: u64,
    cut_count: u64,
    fgrams_by_length: BTreeMap<usize, u64>,
    matches_by_length: BTreeMap<usize, u64>,
}

/// Runs `trainer fgrams`.
///
/// # Errors
/// When a file cannot be read, or the tokenizer is not the one the set was mined with.
pub fn run(args: Args) -> Result<()> {
    let set = FgramSet::read(&args.fgrams)?;
    let tokenizer = args
        .tokenizer
        .as_deref()
        .map(TextTokenizer::load)
        .transpose()?;
    if let Some(tokenizer) = &tokenizer {
        ensure!(
            tokenizer.sha256() == set.header().tokenizer_hash,
            "{} was mined with another tokenizer (sha256 {}, given {})",
            args.fgrams.display(),
            scone_files::hex(&set.header().tokenizer_hash),
            scone_files::hex(&tokenizer.sha256())
        );
    }
    if !args.json && args.limit > 0 {
        output::line("    rank      count    matches  f-gram")?;
    }
    for (rank, fgram) in set.iter().enumerate().take(args.limit) {
        let text = tokenizer
            .as_ref()
            .map(|t| t.decode(fgram.ids))
            .transpose()?;
        let row = Row {
            rank,
            ids: fgram.ids,
            text,
            count: fgram.count,
            match_count: fgram.match_count,
        };
        row.print(args.json)?;
    }
    Summary::of(&set).print(args.json)
}

impl Row<'_> {
    fn print(&self, json: bool) -> Result<()> {
        if json {
            return output::line(serde_json::to_string(self)?);
        }
        let Self {
            rank,
            ids,
            text,
            count,
            match_count,
        } = self;
        match text {
            // Quoted, so that spaces and line ends show.
            Some(text) => output::line(format_args!(
                "{rank:>8} {count:>10} {match_count:>10}  {ids:?} {text:?}"
            )),
            None => output::line(format_args!(
                "{rank:>8} {count:>10} {match_count:>10}  {ids:?}"
            )),
        }
    }
}

impl Summary {
    fn of(set: &FgramSet) -> Self {
        let header = set.header();
        let lengths = 2..=usize::from(header.max_n);
        let fgrams_by_length = set.count_by_length();
        let mut matches_by_length: BTreeMap<usize, u64> = lengths.clone().map(|n| (n, 0)).collect();
        for fgram in set.iter() {
            *matches_by_length.entry(fgram.ids.len()).or_default() += fgram.match_count;
        }
        Self {
            fgrams: set.len(),
            fgram_set_hash: set.hash(),
            tokenizer_hash: scone_files::hex(&header.tokenizer_hash),
            vocab_size: header.vocab_size,
            max_n: header.max_n,
            min_count: header.min_count,
            cut_count: set
                .len()
                .checked_sub(1)
                .map_or(0, |last| set.get(last).count),
            fgrams_by_length: lengths.map(|n| (n, fgrams_by_length[n])).collect(),
            matches_by_length,
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            return output::line(serde_json::to_string(self)?);
        }
        output::line(format_args!(
            "{} f-grams of up to {} tokens, vocabulary {}, min_count {}, the rarest occurs {} times",
            self.fgrams, self.max_n, self.vocab_size, self.min_count, self.cut_count
        ))?;
        output::line("length     f-grams     matches")?;
        for (n, fgrams) in &self.fgrams_by_length {
            output::line(format_args!(
                "{n:>6} {fgrams:>11} {:>11}",
                self.matches_by_length[n]
            ))?;
        }
        output::line(format_args!("set {}", self.fgram_set_hash))?;
        output::line(format_args!("tokenizer {}", self.tokenizer_hash))
    }
}
