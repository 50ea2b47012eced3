//! `trainer evaluate`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use clap::builder::BoolishValueParser;
use scone_fgram::{RowDtype, Table, TableOptions};
use scone_model::checkpoint::{LoadedModel, ModelFiles, load_model_dir};
use scone_model::{DeviceChoice, WeightType};
use serde::Serialize;

use super::corpus_args::{CacheArgs, InputArgs};
use super::output;
use crate::evaluation::{
    Evaluator, HeldOut, LiveRows, NoRows, Options, RowSource, TableRows, Totals,
};
use crate::model_dir::{read_fgram_set, read_tokenizer};
use crate::progress::{Progress, Unit};

/// Flags of `trainer evaluate`.
///
/// Every token of every document is scored, given the text before it in the document; the first
/// token of a document is predicted from <|endoftext|>. Documents longer than --context are read
/// in windows that slide by --stride.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long, env = "SCONE_MODEL", help_heading = "Model")]
    model: PathBuf,
    /// Where to compute: cpu or cuda:N.
    #[arg(
        long,
        env = "SCONE_DEVICE",
        default_value = "cpu",
        help_heading = "Model"
    )]
    device: DeviceChoice,
    /// Pack the main model's weights in this type and compute with the kernels that serve them, as
    /// `decoder-service --weights` does: f32, bf16, int8 or int4; absent: as they are stored. On the
    /// CPU only.
    #[arg(long, env = "SCONE_WEIGHTS", help_heading = "Model")]
    weights: Option<WeightType>,
    /// Take f-gram rows from this table, made of this model or of an adapter over it; absent: from the
    /// f-gram model.
    #[arg(long, env = "SCONE_TABLE", help_heading = "Model")]
    table: Option<PathBuf>,
    /// Round the rows of the f-gram model as a table of this type would: f32, f16, bf16, int8 or
    /// int4; absent: not rounded.
    #[arg(
        long,
        env = "SCONE_ROW_DTYPE",
        conflicts_with = "table",
        help_heading = "Model"
    )]
    row_dtype: Option<RowDtype>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Score at most this many tokens: documents at even distances, long ones cut to their middle;
    /// always the same ones. Absent: everything.
    #[arg(long, env = "SCONE_MAX_TOKENS", help_heading = "Measure")]
    max_tokens: Option<u64>,
    /// Positions of a window; absent: all the model has.
    #[arg(long, env = "SCONE_CONTEXT", help_heading = "Measure")]
    context: Option<usize>,
    /// Tokens that a window slides; every token but those of the first window sees at least
    /// context - stride before it. Absent: half the context.
    #[arg(long, env = "SCONE_STRIDE", help_heading = "Measure")]
    stride: Option<usize>,
    /// Positions computed at once; does not change what is measured.
    #[arg(
        long,
        env = "SCONE_BATCH_TOKENS",
        default_value_t = 4096,
        help_heading = "Measure"
    )]
    batch_tokens: usize,
    /// Words to divide by for the perplexity a word; absent: the pieces of the text between white space.
    /// For text that was put back together from words, give their number: 245,569 of WikiText-103's test
    /// set with its line ends. Not with --max-tokens.
    #[arg(
        long,
        env = "SCONE_WORDS",
        conflicts_with = "max_tokens",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Measure"
    )]
    words: Option<u64>,
    /// Print the result as one JSON object.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    input: Vec<PathBuf>,
    /// Type the main model's weights were packed in; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<String>,
    /// `plain`, `live`, `live-<dtype>` or `table-<dtype>`.
    rows: String,
    tokens: u64,
    bytes: u64,
    words: u64,
    nats_per_token: f64,
    perplexity: f64,
    word_perplexity: f64,
    bits_per_byte: f64,
    matched: f64,
    /// Share of tokens by match length; entry 0: no match.
    matched_by_length: Vec<f64>,
    context: usize,
    stride: usize,
    tokens_per_s: f64,
    /// The most memory the process ever had; absent where the system does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

/// Runs `trainer evaluate`.
///
/// # Errors
/// When model, table and text cannot be read or do not fit each other.
pub fn run(args: Args) -> Result<()> {
    let mut model = load_model_dir(&args.model, &args.device.open()?)
        .with_context(|| format!("cannot load the model in {}", args.model.display()))?;
    let tokenizer = read_tokenizer(&model.dir, &model)?;
    let eos = model.config.eos_token_ids().first().copied();
    let context = args.context.unwrap_or(model.config.max_positions());
    let options = Options {
        context,
        stride: args.stride.unwrap_or(context.div_ceil(2)),
        batch_tokens: args.batch_tokens,
        eos: eos.context("config.json names no eos_token_id; the first token needs it")?,
    };
    let table = open_table(&args, &model)?;
    // The f-gram model reads it, in whatever type the main model computes.
    let embedding = model.decoder.token_embedding().clone();
    if let Some(weights) = args.weights {
        model.decoder = model.decoder.pack(weights).context("--weights")?;
    }
    let (rows, source) = row_source(&args, &model, &embedding, table.as_ref())?;
    let mut evaluator = Evaluator::new(&model.decoder, source, options.clone())?;
    let corpus_options = args.cache.options_of(&args.input);
    let inputs = &args.input.input;
    let text = HeldOut::load(
        "input",
        inputs,
        &tokenizer,
        &corpus_options,
        args.max_tokens,
    )?;
    let progress = Progress::new("evaluate", text.scored_tokens(), Unit::Items);
    let mut totals = evaluator.run(&text, |tokens| progress.add(tokens))?;
    totals.words = args.words.unwrap_or(totals.words);
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    print(&args, &report(&args, rows, &totals, &options, seconds))
}

fn open_table(args: &Args, model: &LoadedModel) -> Result<Option<Table>> {
    let Some(dir) = &args.table else {
        return Ok(None);
    };
    // Rows are kept by the evaluation itself.
    let options = TableOptions {
        hot_bytes: 0,
        warm: false,
        ..TableOptions::default()
    };
    let table = Table::open(dir, &options)
        .with_context(|| format!("cannot open the table {}", dir.display()))?;
    let manifest = table.manifest();
    let check = |what, of_table: Option<&String>, of_model: Option<&String>| {
        ensure!(
            of_table == of_model,
            "the table {} was made for the {what} of hash {}, {} has {}",
            dir.display(),
            of_table.map_or("none", String::as_str),
            args.model.display(),
            of_model.map_or("none", String::as_str)
        );
        Ok(())
    };
    let tokenizer = model.tokenizer_hash.as_ref();
    check("tokenizer", Some(&manifest.tokenizer_hash), tokenizer)?;
    // A table of another f-gram model may have been made over this main model.
    match &manifest.base_hash {
        Some(base_hash) if model.model_hash.as_ref() != Some(&manifest.model_hash) => {
            let of_model = ModelFiles::open(&args.model)?.base_hash()?;
            check("base", Some(base_hash), Some(&of_model))?;
        }
        _ => {
            let of_model = model.model_hash.as_ref();
            check("model", Some(&manifest.model_hash), of_model)?;
        }
    }
    Ok(Some(table))
}

/// Where rows come from, and its name.
fn row_source<'a>(
    args: &Args,
    model: &'a LoadedModel,
    token_embedding: &'a Tensor,
    table: Option<&'a Table>,
) -> Result<(String, Box<dyn RowSource + 'a>)> {
    if let Some(table) = table {
        let name = format!("table-{}", table.manifest().dtype);
        return Ok((name, Box::new(TableRows::new(table)?)));
    }
    if model.scone.is_none() {
        ensure!(
            args.row_dtype.is_none(),
            "--row-dtype: a plain model has no rows"
        );
        return Ok(("plain".to_owned(), Box::new(NoRows)));
    }
    let fgram = model.fgram.as_ref();
    let fgram = fgram.context("the model has no fgram_model.safetensors: give a --table")?;
    let set = read_fgram_set(&model.dir, model)?;
    let compute = |fgrams: &[&[u32]]| Ok(fgram.rows(token_embedding, fgrams)?);
    let dim = model.config.hidden_size();
    let name = args
        .row_dtype
        .map_or("live".to_owned(), |dtype| format!("live-{dtype}"));
    Ok((
        name,
        Box::new(LiveRows::new(set.matcher(), dim, args.row_dtype, compute)),
    ))
}

fn report(args: &Args, rows: String, totals: &Totals, options: &Options, seconds: f64) -> Report {
    let share = |&count: &u64| count as f64 / totals.tokens.max(1) as f64;
    Report {
        input: args.input.input.clone(),
        weights: args.weights.map(|weights| weights.to_string()),
        rows,
        tokens: totals.tokens,
        bytes: totals.bytes,
        words: totals.words,
        nats_per_token: totals.nats_per_token(),
        perplexity: totals.perplexity(),
        word_perplexity: totals.word_perplexity(),
        bits_per_byte: totals.bits_per_byte(),
        matched: totals.matched_share(),
        matched_by_length: totals.by_match_length.iter().map(share).collect(),
        context: options.context,
        stride: options.stride,
        tokens_per_s: totals.tokens as f64 / seconds.max(1e-9),
        peak_memory_bytes: output::peak_memory_bytes(),
    }
}

fn print(args: &Args, report: &Report) -> Result<()> {
    if args.json {
        return output::line(serde_json::to_string(report)?);
    }
    let lengths = report.matched_by_length.iter().enumerate().skip(2);
    let lengths: Vec<String> = lengths
        .map(|(n, share)| format!("{n}: {:.1}%", 100.0 * share))
        .collect();
    let weights = report.weights.as_ref().map(|of| format!("weights {of}, "));
    let weights = weights.unwrap_or_default();
    output::line(format_args!(
        "{} tokens, {}rows {}: {:.5} nats/token, perplexity {:.3} (a word: {:.2}), {:.4} bits/byte\n\
         matched {:.1}% ({}); context {}, stride {}; {:.0} tokens/s",
        report.tokens,
        weights,
        report.rows,
        report.nats_per_token,
        report.perplexity,
        report.word_perplexity,
        report.bits_per_byte,
        100.0 * report.matched,
        lengths.join(", "),
        report.context,
        report.stride,
        report.tokens_per_s
    ))
}
