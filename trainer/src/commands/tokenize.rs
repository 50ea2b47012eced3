//! `trainer tokenize`: a corpus as token ids, once for all commands.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use super::corpus_args::InputArgs;
use super::output;
use crate::corpus::{self, Options, TokenFormat, TokensManifest};
use crate::tokenizer::TextTokenizer;

/// Flags of `trainer tokenize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    /// The tokenizer.json to cut the text with.
    #[arg(long, env = "SCONE_TOKENIZER", help_heading = "Input")]
    tokenizer: PathBuf,
    /// Directory to write, an input for all other commands; an interrupted one is finished.
    #[arg(long, env = "SCONE_OUT", help_heading = "Output")]
    out: PathBuf,
    /// How tokens are stored.
    #[arg(
        long,
        env = "SCONE_FORMAT",
        value_enum,
        default_value = "shards",
        help_heading = "Output"
    )]
    format: TokenFormat,
    /// A file ends with the document that brings it to this many tokens; those of one file are in
    /// memory while it is written.
    #[arg(long, env = "SCONE_SHARD_TOKENS", default_value_t = corpus::SHARD_TOKENS, help_heading = "Output",
          value_parser = clap::value_parser!(u64).range(1..))]
    shard_tokens: u64,
    /// Print the summary as one JSON object.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    manifest: TokensManifest,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs `trainer tokenize`.
///
/// # Errors
/// When an input cannot be used, or `--out` holds other tokens or cannot be written.
pub fn run(args: Args) -> Result<()> {
    let tokenizer = TextTokenizer::load(&args.tokenizer)?;
    let options = Options {
        shard_tokens: args.shard_tokens,
        ..args.input.options()
    };
    let started = Instant::now();
    let inputs = &args.input.input;
    let manifest = corpus::tokenize_to(&args.out, args.format, inputs, &tokenizer, &options)?;
    let summary = Summary {
        manifest,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: output::peak_memory_bytes(),
    };
    if args.json {
        return output::line(serde_json::to_string(&summary)?);
    }
    output::line(format_args!(
        "{}: {} tokens of {} bytes of text in {} documents, {} files, in {:.1} s",
        args.out.display(),
        summary.manifest.tokens,
        summary.manifest.text_bytes,
        summary.manifest.documents,
        summary.manifest.files.len(),
        summary.seconds
    ))
}
