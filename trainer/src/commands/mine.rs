//! `trainer mine`: finds the f-grams of a corpus.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::builder::BoolishValueParser;
use scone_fgram::{FgramSet, MAX_N};
use serde::Serialize;

use super::corpus_args::{CacheArgs, InputArgs};
use super::output;
use crate::corpus::{self, TokenizedCorpus};
use crate::mining::{self, MatchCounts, MiningOptions};
use crate::tokenizer::TextTokenizer;

/// Flags of `trainer mine`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The tokenizer.json to cut the text with.
    #[arg(long, env = "SCONE_TOKENIZER", help_heading = "Input")]
    tokenizer: PathBuf,
    /// K: the longest f-gram, tokens; 2 to 8.
    #[arg(
        long,
        env = "SCONE_MAX_N",
        default_value_t = 5,
        help_heading = "Mining"
    )]
    max_n: u8,
    /// n-grams of three and more tokens that occur less often are dropped.
    #[arg(
        long,
        env = "SCONE_MIN_COUNT",
        default_value_t = 5,
        help_heading = "Mining"
    )]
    min_count: u64,
    /// S: how many f-grams to keep, the most frequent of all lengths together.
    #[arg(long, env = "SCONE_MAX_FGRAMS", help_heading = "Mining")]
    max_fgrams: usize,
    /// Count this many f-grams of the result again, one by one, and fail on a difference.
    #[arg(
        long,
        env = "SCONE_VERIFY",
        default_value_t = 0,
        help_heading = "Mining"
    )]
    verify: usize,
    /// The fgrams.bin to write.
    #[arg(long, env = "SCONE_OUT", help_heading = "Output")]
    out: PathBuf,
    /// Print the summary as one JSON object.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

/// What a run found and took.
#[derive(Debug, Serialize)]
struct Summary {
    documents: usize,
    text_bytes: u64,
    tokens: u64,
    /// Reading and tokenising, or reading the cache.
    tokenize_seconds: f64,
    mine_seconds: f64,
    tokens_per_second: f64,
    tag_seconds: f64,
    fgrams: usize,
    fgram_set_hash: String,
    cut_count: u64,
    fgrams_by_length: BTreeMap<usize, u64>,
    matched_share: f64,
    matched_share_by_length: BTreeMap<usize, f64>,
    mean_match_length: f64,
    never_matched: u64,
    verified: usize,
    peak_memory_bytes: Option<u64>,
}

/// Runs `trainer mine`.
///
/// # Errors
/// When the input cannot be read, a limit is broken, the recount differs, or the file cannot be
/// written.
pub fn run(args: Args) -> Result<()> {
    let options = MiningOptions {
        max_n: args.max_n,
        min_count: args.min_count,
        max_fgrams: args.max_fgrams,
    };
    options.validate()?;
    let tokenizer = TextTokenizer::load(&args.tokenizer)?;
    let started = Instant::now();
    let corpus_options = args.cache.options(&args.input.text_field);
    let corpus = corpus::tokenize(&args.input.input, &tokenizer, &corpus_options)?;
    let tokenize_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut set = mining::mine(
        &corpus,
        tokenizer.vocab_size(),
        tokenizer.sha256(),
        &options,
    )?;
    let mine_seconds = started.elapsed().as_secs_f64();
    ensure!(
        !set.is_empty(),
        "no document has two tokens: there are no f-grams"
    );

    let started = Instant::now();
    let matches = mining::count_matches(&corpus, &set);
    set.set_match_counts(matches.by_rank.clone())?;
    let tag_seconds = started.elapsed().as_secs_f64();

    let verified = verify(&corpus, &set, args.verify)?;
    output::write_file(&args.out, &set.to_bytes())?;
    let summary = Summary {
        documents: corpus.document_count(),
        text_bytes: corpus.text_bytes(),
        tokens: corpus.total_tokens(),
        tokenize_seconds,
        mine_seconds,
        tokens_per_second: corpus.total_tokens() as f64 / mine_seconds,
        tag_seconds,
        verified,
        ..Summary::of_set(&set, &matches)
    };
    if args.json {
        output::line(serde_json::to_string(&summary)?)
    } else {
        summary.print(&args.out)
    }
}

fn verify(corpus: &TokenizedCorpus, set: &FgramSet, samples: usize) -> Result<usize> {
    if samples == 0 {
        return Ok(0);
    }
    let started = Instant::now();
    let recount = mining::recount(corpus, set, samples);
    if let Some(wrong) = recount.mismatches.first() {
        bail!(
            "{} of {} recounted f-grams differ; rank {}, ids {:?}: {} in the set, {} in the corpus",
            recount.mismatches.len(),
            recount.checked,
            wrong.rank,
            wrong.ids,
            wrong.stored,
            wrong.found
        );
    }
    let seconds = format_args!("{:.1}", started.elapsed().as_secs_f64());
    tracing::info!(
        fgrams = recount.checked,
        seconds,
        "a recount gave the same counts"
    );
    Ok(recount.checked)
}

impl Summary {
    fn of_set(set: &FgramSet, matches: &MatchCounts) -> Self {
        let lengths = 2..=usize::from(set.header().max_n).min(MAX_N);
        let by_length = set.count_by_length();
        Self {
            documents: 0,
            text_bytes: 0,
            tokens: 0,
            tokenize_seconds: 0.0,
            mine_seconds: 0.0,
            tokens_per_second: 0.0,
            tag_seconds: 0.0,
            fgrams: set.len(),
            fgram_set_hash: set.hash(),
            cut_count: set.get(set.len() - 1).count,
            fgrams_by_length: lengths.clone().map(|n| (n, by_length[n])).collect(),
            matched_share: matches.matched_share(),
            matched_share_by_length: lengths.map(|n| (n, matches.share_of_length(n))).collect(),
            mean_match_length: matches.mean_length(),
            never_matched: matches.by_rank.iter().filter(|&&count| count == 0).count() as u64,
            verified: 0,
            peak_memory_bytes: output::peak_memory_bytes(),
        }
    }

    fn print(&self, out: &Path) -> Result<()> {
        output::line(format_args!(
            "{}: {} f-grams, the rarest occurs {} times",
            out.display(),
            self.fgrams,
            self.cut_count
        ))?;
        output::line(format_args!(
            "{} tokens in {} documents, mined in {:.1} s ({:.0} tokens/s), tagged in {:.1} s, peak memory {}",
            self.tokens,
            self.documents,
            self.mine_seconds,
            self.tokens_per_second,
            self.tag_seconds,
            self.peak_memory_bytes
                .map_or_else(|| "unknown".to_owned(), output::mib),
        ))?;
        output::line("length     f-grams  longest match at")?;
        for (n, fgrams) in &self.fgrams_by_length {
            let share = 100.0 * self.matched_share_by_length[n];
            output::line(format_args!("{n:>6} {fgrams:>11} {share:>15.1} %"))?;
        }
        output::line(format_args!(
            "   all {:>11} {:>15.1} %  mean length {:.2}; {} f-grams are never the longest match",
            self.fgrams,
            100.0 * self.matched_share,
            self.mean_match_length,
            self.never_matched
        ))?;
        if self.verified > 0 {
            output::line(format_args!(
                "{} f-grams recounted: all equal",
                self.verified
            ))?;
        }
        Ok(())
    }
}
