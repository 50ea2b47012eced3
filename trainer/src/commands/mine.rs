//! `trainer mine`: finds the f-grams of a corpus.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use scone_fgram::{FgramSet, MAX_N};
use serde::Serialize;

use super::corpus_args::{CacheArgs, InputArgs};
use super::output;
use crate::corpus::{self, TokenizedCorpus};
use crate::mining::{self, Bounded, MatchCounts, MinedWith, MiningOptions, ScanReport};
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
    /// The most memory to use, such as 2GiB; what does not fit goes to disk, into OUT.work beside the
    /// result, where a run that was killed is gone on with. The set itself has to fit (200 bytes for
    /// each f-gram). Absent: all in memory, 12 bytes a token.
    #[arg(long, env = "SCONE_MEMORY", help_heading = "Mining")]
    memory: Option<ByteSize>,
    /// Counts that another engine made of the tokens that --input names (see trainer/spark): they are
    /// not counted again.
    #[arg(
        long,
        env = "SCONE_COUNTS",
        help_heading = "Mining",
        conflicts_with = "memory"
    )]
    counts: Option<PathBuf>,
    /// Held-out text, in the forms of --input: how much of it the set matches.
    #[arg(long, env = "SCONE_VALID", num_args = 1.., value_delimiter = ':', help_heading = "Input")]
    valid: Vec<PathBuf>,
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
    /// The lowest count of an f-gram of each length; lengths without any are absent.
    cut_count_by_length: BTreeMap<usize, u64>,
    /// Different n-grams and those above the cut, by length; none when they were counted elsewhere.
    scans: Vec<ScanReport>,
    #[serde(flatten)]
    matched: Matched,
    never_matched: u64,
    /// The same on held-out text.
    valid: Option<Matched>,
    verified: usize,
    peak_memory_bytes: Option<u64>,
}

/// How much of a text the set matches.
#[derive(Debug, Serialize)]
struct Matched {
    matched_share: f64,
    matched_share_by_length: BTreeMap<usize, f64>,
    mean_match_length: f64,
}

impl Matched {
    fn of(matches: &MatchCounts, max_n: u8) -> Self {
        let lengths = 2..=usize::from(max_n).min(MAX_N);
        Self {
            matched_share: matches.matched_share(),
            matched_share_by_length: lengths.map(|n| (n, matches.share_of_length(n))).collect(),
            mean_match_length: matches.mean_length(),
        }
    }
}

/// Runs `trainer mine`.
///
/// # Errors
/// When the input cannot be read, a limit is broken, the recount differs, or the file cannot be
/// written.
pub fn run(args: Args) -> Result<()> {
    let options = args.options();
    options.validate()?;
    // Before long work, not after it.
    let names_a_file = args.out.file_name().is_some() && !args.out.is_dir();
    ensure!(
        names_a_file,
        "--out {} is no file's name",
        args.out.display()
    );
    let tokenizer = TextTokenizer::load(&args.tokenizer)?;
    let started = Instant::now();
    let corpus_options = args.cache.options_of(&args.input);
    let corpus = corpus::tokenize(&args.input.input, &tokenizer, &corpus_options)?;
    let tokenize_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let work_dir = work_dir(&args.out);
    let (mut set, scans) = mined(&args, &corpus, &tokenizer, &work_dir)?;
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
    write_set(&args.out, &set, &work_dir)?;
    remove_work_dir(&work_dir)?;
    let valid = match &args.valid[..] {
        [] => None,
        paths => {
            let held_out = corpus::tokenize(paths, &tokenizer, &corpus_options)?;
            let matches = mining::count_matches(&held_out, &set);
            Some(Matched::of(&matches, options.max_n))
        }
    };
    let summary = Summary {
        documents: corpus.document_count(),
        text_bytes: corpus.text_bytes(),
        tokens: corpus.total_tokens(),
        tokenize_seconds,
        mine_seconds,
        tokens_per_second: corpus.total_tokens() as f64 / mine_seconds,
        tag_seconds,
        verified,
        valid,
        scans,
        ..Summary::of_set(&set, &matches)
    };
    if args.json {
        output::line(serde_json::to_string(&summary)?)
    } else {
        summary.print(&args.out)
    }
}

impl Args {
    fn options(&self) -> MiningOptions {
        MiningOptions {
            max_n: self.max_n,
            min_count: self.min_count,
            max_fgrams: self.max_fgrams,
        }
    }
}

/// The f-grams with their counts, and what each scan for them found.
fn mined(
    args: &Args,
    corpus: &TokenizedCorpus,
    tokenizer: &TextTokenizer,
    work_dir: &Path,
) -> Result<(FgramSet, Vec<ScanReport>)> {
    let options = args.options();
    let tokenizer = MinedWith {
        vocab_size: tokenizer.vocab_size(),
        tokenizer_hash: tokenizer.sha256(),
    };
    if let Some(dir) = &args.counts {
        let set = mining::from_counts(dir, corpus.total_tokens(), &tokenizer, &options)?;
        return Ok((set, Vec::new()));
    }
    let bounded = args.memory.map(|memory| Bounded {
        memory_bytes: memory.0,
        work_dir,
    });
    let mined = mining::mine_within(corpus, &tokenizer, &options, bounded.as_ref())?;
    Ok((mined.set, mined.scans))
}

/// Where a run in bounded memory works, and where the set is written before it is moved.
fn work_dir(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".work");
    PathBuf::from(name)
}

/// Writes the set in the working directory and moves it from there, so that what a run that is killed
/// meanwhile leaves is removed by the next one.
fn write_set(out: &Path, set: &FgramSet, work_dir: &Path) -> Result<()> {
    let whole = work_dir.join(out.file_name().unwrap_or_default());
    let written = output::write_file(&whole, &set.to_bytes())
        .and_then(|()| Ok(scone_files::publish(&whole, out)?));
    if written.is_err() {
        // Only when it is empty: scans that a later run goes on with stay.
        let _ = std::fs::remove_dir(work_dir);
    }
    written
}

/// Removes what this run or a killed one before left to work with: the result is safe.
fn remove_work_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The lowest count of each length that the set has.
fn cut_by_length(set: &FgramSet) -> BTreeMap<usize, u64> {
    let mut cuts = BTreeMap::new();
    for fgram in set.iter() {
        // By rank, so the last of a length is its rarest.
        cuts.insert(fgram.ids.len(), fgram.count);
    }
    cuts
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
            fgrams_by_length: lengths.map(|n| (n, by_length[n])).collect(),
            cut_count_by_length: cut_by_length(set),
            scans: Vec::new(),
            matched: Matched::of(matches, set.header().max_n),
            never_matched: matches.by_rank.iter().filter(|&&count| count == 0).count() as u64,
            valid: None,
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
        output::line(
            "length     distinct    survivors      f-grams        cut  longest match at  in held-out text",
        )?;
        let valid = |of: &dyn Fn(&Matched) -> f64| match &self.valid {
            None => "-".to_owned(),
            Some(valid) => format!("{:.1} %", 100.0 * of(valid)),
        };
        for (&n, fgrams) in &self.fgrams_by_length {
            let scan = self.scans.iter().find(|scan| usize::from(scan.n) == n);
            let counted = |of: fn(&ScanReport) -> u64| {
                scan.map_or_else(|| "-".to_owned(), |scan| of(scan).to_string())
            };
            let share = |matched: &Matched| matched.matched_share_by_length.get(&n).copied();
            let cut = self.cut_count_by_length.get(&n);
            output::line(format_args!(
                "{n:>6} {:>12} {:>12} {fgrams:>12} {:>10} {:>15.1} % {:>17}",
                counted(|scan| scan.distinct),
                counted(|scan| scan.survivors),
                cut.map_or_else(|| "-".to_owned(), u64::to_string),
                100.0 * share(&self.matched).unwrap_or(0.0),
                valid(&|matched| share(matched).unwrap_or(0.0)),
            ))?;
        }
        output::line(format_args!(
            "   all {:>38} {:>10} {:>15.1} % {:>17}",
            self.fgrams,
            self.cut_count,
            100.0 * self.matched.matched_share,
            valid(&|matched| matched.matched_share),
        ))?;
        let mean = |matched: &Matched| format!("{:.2}", matched.mean_match_length);
        output::line(format_args!(
            "mean length of a match {}, in held-out text {}; {} f-grams are never the longest match",
            mean(&self.matched),
            self.valid.as_ref().map_or_else(|| "-".to_owned(), mean),
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
