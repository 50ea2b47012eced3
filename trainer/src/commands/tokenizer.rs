//! `trainer tokenizer`: trains a byte-level BPE.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::builder::BoolishValueParser;
use serde::Serialize;

use super::corpus_args::InputArgs;
use super::output;
use crate::corpus::{self, Sample};
use crate::progress::{Progress, Unit};
use crate::tokenizer::{self, MAX_TRAINING_BYTES, MIN_VOCAB_SIZE};

/// Flags of `trainer tokenizer`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    /// Size of the vocabulary, <|endoftext|> and the 256 bytes included; at least 257.
    #[arg(long, env = "SCONE_VOCAB_SIZE", help_heading = "Tokenizer")]
    vocab_size: usize,
    /// Pairs that occur less often are not merged.
    #[arg(
        long,
        env = "SCONE_MIN_FREQUENCY",
        default_value_t = 2,
        help_heading = "Tokenizer"
    )]
    min_frequency: u64,
    /// Train on at most this much text, bytes; from a larger corpus pieces are taken at an even stride.
    #[arg(long, env = "SCONE_MAX_BYTES", default_value_t = 256 << 20, help_heading = "Tokenizer",
        value_parser = clap::value_parser!(u64).range(1..=MAX_TRAINING_BYTES))]
    max_bytes: u64,
    /// The tokenizer.json to write.
    #[arg(long, env = "SCONE_OUT", help_heading = "Output")]
    out: PathBuf,
    /// Print the summary as one JSON object.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    vocab_size: u32,
    sha256: String,
    text_bytes: u64,
    sample_bytes: u64,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs `trainer tokenizer`.
///
/// # Errors
/// When the input cannot be read, is too small, or the file cannot be written.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    ensure!(
        args.vocab_size >= MIN_VOCAB_SIZE,
        "--vocab-size is {}, the least is {MIN_VOCAB_SIZE}",
        args.vocab_size
    );
    let inputs = corpus::expand(&args.input.input)?;
    let sample = Sample::new(inputs, &args.input.options(), args.max_bytes)?;
    let progress = Progress::new("train", sample.disk_bytes(), Unit::Bytes);
    let documents = sample.documents(&progress);
    let tokenizer = tokenizer::train(documents, args.vocab_size, args.min_frequency)?;
    drop(progress);
    if (tokenizer.vocab_size() as usize) < args.vocab_size {
        tracing::warn!(
            vocab_size = tokenizer.vocab_size(),
            "the text has too few frequent pairs for the vocabulary asked for"
        );
    }
    output::write_file(&args.out, tokenizer.json())?;
    let summary = Summary {
        vocab_size: tokenizer.vocab_size(),
        sha256: scone_files::hex(&tokenizer.sha256()),
        text_bytes: sample.text_bytes(),
        sample_bytes: sample.sample_bytes(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: output::peak_memory_bytes(),
    };
    if args.json {
        return output::line(serde_json::to_string(&summary)?);
    }
    output::line(format_args!(
        "{}: {} tokens, trained on {} of {} text in {:.1} s, peak memory {}",
        args.out.display(),
        summary.vocab_size,
        output::mib(summary.sample_bytes),
        output::mib(summary.text_bytes),
        summary.seconds,
        summary
            .peak_memory_bytes
            .map_or_else(|| "unknown".to_owned(), output::mib),
    ))
}
