//! A prompt of 2,048 positions in one go: the first time and again, in the process and over gRPC,
//! beside a bare gRPC echo of the same bytes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use clap::Parser;
use integration_tests::cluster::Service;
use scone_benchmarks::args::CommonArgs;
use scone_benchmarks::report::{Report, median};
use scone_benchmarks::service::{Embed, Stream, check_complete, echo, start_echo};
use scone_benchmarks::trace::CorpusArgs;
use scone_benchmarks::{disk, fgrams, tables};
use scone_fgram::table::{HOT_ROW_OVERHEAD, LookupResult, Span};
use scone_fgram::{FgramSet, StoreKind, Table, TableOptions, TokenId};

/// Rows of about this many bytes come in one message, as the decoder asks for them.
const MESSAGE_BYTES: usize = 1 << 20;

/// Measures the look-up of whole prompts.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,

    #[command(flatten)]
    corpus: CorpusArgs,

    /// Be the echo server.
    #[arg(long, hide = true)]
    echo_server: bool,

    /// Bytes of a row, multiples of 4.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "2048,4096",
        value_name = "BYTES"
    )]
    row_bytes: Vec<usize>,

    /// Positions of a prompt.
    #[arg(long, default_value_t = 2048, value_name = "N")]
    positions: usize,

    /// Different prompts.
    #[arg(long, default_value_t = 16, value_name = "N")]
    prompts: usize,
}

/// What is asked.
struct Prompts {
    ids: Vec<Vec<TokenId>>,
    max_n: usize,
    row_bytes: usize,
}

/// What a prompt took.
struct Took {
    time: Duration,
    /// The same bytes over a connection to the echo server, where there is a connection.
    echo: Option<Duration>,
}

/// Answers whole prompts.
trait Answers {
    /// Answers one.
    fn answer(&mut self, prompts: &Prompts, prompt: &[TokenId]) -> Result<Took>;
}

/// Milliseconds of a prompt, one figure for each round.
#[derive(Default, Clone)]
struct Figures {
    cold: Vec<f64>,
    first: Vec<f64>,
    repeated: Vec<f64>,
    echo: Vec<f64>,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.echo_server {
        return echo::serve();
    }
    if !args.common.bench {
        args.row_bytes = vec![512];
        args.prompts = 2;
    }
    let report = Report::begin("prefill")?;
    let mut set = args.corpus.fgram_set()?;
    let trace = args.corpus.trace(&set)?;
    if !args.common.bench {
        set = fgrams::top(&set, 2000)?;
    }
    for &row_bytes in &args.row_bytes {
        let ids = trace.prompts(args.positions).into_iter().take(args.prompts);
        let prompts = Prompts {
            ids: ids.collect(),
            max_n: usize::from(set.header().max_n),
            row_bytes,
        };
        measure(&args, &report, &set, &prompts)?;
    }
    Ok(())
}

fn measure(args: &Args, report: &Report, set: &FgramSet, prompts: &Prompts) -> Result<()> {
    let row_bytes = prompts.row_bytes;
    let case = format!(
        "{} positions, {} f-grams of {row_bytes} bytes",
        args.positions,
        set.len()
    );
    let folder = args.common.folder(env!("CARGO_TARGET_TMPDIR"), "tables")?;
    for store in [StoreKind::Mapped, StoreKind::Sled] {
        let name = format!("{store}-{row_bytes}-{}", &set.hash()[..16]);
        report.note(format_args!("{case}: building {store}"));
        let built = tables::once(&folder, &name, |dir| {
            tables::build(dir, set, store, row_bytes)
        })?;
        // A fifth of the rows in the hot set of sled; none of a mapped table that is to be cold.
        let hot_rows = match store {
            StoreKind::Sled => set.len() / 5,
            StoreKind::Mapped => 0,
        };
        let open = |dir: &Path| -> Result<Box<dyn Answers>> { embedded(dir, hot_rows, row_bytes) };
        let start = |dir: &Path| -> Result<Box<dyn Answers>> { remote(dir, hot_rows) };
        let mut figures = [Figures::default(), Figures::default()];
        for round in 0..args.common.rounds() {
            report.note(format_args!("{case}: {store}, round {round}"));
            figures[0].round(&built.dir, prompts, open)?;
            figures[1].round(&built.dir, prompts, start)?;
        }
        let distinct = distinct_rows(&built.dir, prompts)?;
        report.line(&case, "prompt", "distinct rows", distinct, "rows")?;
        for (figures, way) in figures.iter().zip(["embedded", "gRPC"]) {
            let subject = format!("{store}, {way}");
            let print =
                |metric, times: &[f64]| report.line(&case, &subject, metric, median(times), "ms");
            print("first use, cold", &figures.cold)?;
            print("first use", &figures.first)?;
            print("repeated", &figures.repeated)?;
            if !figures.echo.is_empty() {
                let echo = median(&figures.echo);
                report.line(&case, &format!("echo, {way}"), "repeated", echo, "ms")?;
            }
        }
    }
    Ok(())
}

impl Figures {
    /// Opens twice: once with no page in memory, for the first prompt; once with all pages there, for
    /// all prompts, and all of them again.
    fn round(
        &mut self,
        dir: &Path,
        prompts: &Prompts,
        open: impl Fn(&Path) -> Result<Box<dyn Answers>>,
    ) -> Result<()> {
        disk::drop_pages(dir)?;
        let mut answers = open(dir)?;
        let cold = answers.answer(prompts, &prompts.ids[0])?;
        self.cold.push(ms(cold.time));
        drop(answers);

        disk::read_pages(dir)?;
        let mut answers = open(dir)?;
        let mut echoes = Vec::new();
        for times in [&mut self.first, &mut self.repeated] {
            let mut all = Vec::new();
            for prompt in &prompts.ids {
                let took = answers.answer(prompts, prompt)?;
                all.push(ms(took.time));
                echoes.extend(took.echo.map(ms));
            }
            times.push(median(&all));
        }
        if !echoes.is_empty() {
            self.echo.push(median(&echoes));
        }
        Ok(())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Embedded {
    table: Table,
    result: LookupResult,
}

fn embedded(dir: &Path, hot_rows: usize, row_bytes: usize) -> Result<Box<dyn Answers>> {
    let options = TableOptions {
        hot_bytes: hot_rows as u64 * (row_bytes as u64 + HOT_ROW_OVERHEAD),
        ..TableOptions::default()
    };
    Ok(Box::new(Embedded {
        table: Table::open(dir, &options)?,
        result: LookupResult::default(),
    }))
}

impl Answers for Embedded {
    fn answer(&mut self, _: &Prompts, prompt: &[TokenId]) -> Result<Took> {
        let start = Instant::now();
        self.table
            .lookup(prompt, &whole(prompt), &mut self.result)?;
        let time = start.elapsed();
        Ok(Took { time, echo: None })
    }
}

struct Remote {
    embed: Embed,
    stream: Stream,
    echo: Stream,
    _echo_server: Service,
}

fn remote(dir: &Path, hot_rows: usize) -> Result<Box<dyn Answers>> {
    let embed = Embed::start(dir, hot_rows)?;
    let echo_server = start_echo()?;
    Ok(Box::new(Remote {
        stream: embed.connect()?,
        embed,
        echo: Stream::open(&echo_server.address, echo::ECHO)?,
        _echo_server: echo_server,
    }))
}

impl Answers for Remote {
    fn answer(&mut self, prompts: &Prompts, prompt: &[TokenId]) -> Result<Took> {
        let questions = self.questions(prompts, prompt);
        let start = Instant::now();
        let answers = self.stream.ask_all(&questions)?;
        let time = start.elapsed();
        answers.iter().try_for_each(check_complete)?;

        let same = questions.iter().zip(&answers);
        let same: Vec<Bytes> = same
            .map(|(question, answer)| echo::question(question, answer.len()))
            .collect();
        let start = Instant::now();
        self.echo.ask_all(&same)?;
        let echo = Some(start.elapsed());
        Ok(Took { time, echo })
    }
}

impl Remote {
    /// Pieces of a prompt, each with the ids before it that it needs for context.
    fn questions(&self, prompts: &Prompts, prompt: &[TokenId]) -> Vec<Bytes> {
        let piece = (MESSAGE_BYTES / prompts.row_bytes).max(16);
        let starts = (0..prompt.len()).step_by(piece);
        let question = |start: usize| {
            let from = start.saturating_sub(prompts.max_n - 1);
            let end = (start + piece).min(prompt.len());
            let span = Span {
                context: (start - from) as u32,
                answers: (end - start) as u32,
            };
            self.embed.question(&prompt[from..end], &[span])
        };
        starts.map(question).collect()
    }
}

fn whole(prompt: &[TokenId]) -> [Span; 1] {
    [Span {
        context: 0,
        answers: prompt.len() as u32,
    }]
}

/// Rows that a prompt needs, each once, on average.
fn distinct_rows(dir: &Path, prompts: &Prompts) -> Result<f64> {
    let table = Table::open(dir, &TableOptions::default())?;
    let mut result = LookupResult::default();
    let mut rows = 0;
    for prompt in &prompts.ids {
        table.lookup(prompt, &whole(prompt), &mut result)?;
        rows += result.rows.len() / prompts.row_bytes;
    }
    Ok(rows as f64 / prompts.ids.len().max(1) as f64)
}
