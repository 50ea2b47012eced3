//! The service beside a bare gRPC echo of the same bytes and beside Redis: times of one look-up and
//! rows a second, each server in a process of its own on loopback.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use integration_tests::cluster::Service;
use scone_benchmarks::args::{CommonArgs, Shape};
use scone_benchmarks::batches::{Batch, Served, Skew};
use scone_benchmarks::report::{Report, median, micros, percentile};
use scone_benchmarks::service::redis::{self, Redis};
use scone_benchmarks::service::{
    Connection, Embed, Stream, Timings, check_answer, drive, echo, start_echo,
};
use scone_benchmarks::{disk, fgrams, rows, tables};
use scone_fgram::StoreKind;

/// Windows of one look-up.
const BATCHES: [u32; 4] = [1, 8, 32, 128];

/// Measures embed-service beside an echo server and Redis.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,

    /// Rows and bytes of a row, as ROWSxBYTES; again for more [default: 100000x2048 100000x4096].
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<Shape>,

    /// How the windows are drawn.
    #[arg(long, value_enum, default_value_t = Skew::Uniform)]
    skew: Skew,

    /// Streams at once, each with a connection of its own; again for more [default: 1 4].
    #[arg(long, value_name = "N")]
    streams: Vec<usize>,

    /// Windows of a look-up; again for more [default: 1 8 32 128].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,

    /// How long each case of each round takes, in milliseconds.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    milliseconds: u64,

    /// Be the echo server.
    #[arg(long, hide = true)]
    echo_server: bool,
}

/// Everything that runs while one shape is measured.
struct Servers {
    mapped: Embed,
    sled: Embed,
    echo: Service,
    redis: Option<Redis>,
}

/// Look-ups of one case, as each server wants to be asked.
struct Questions {
    lookup: Vec<Bytes>,
    echo: Vec<Bytes>,
    mget: Vec<Bytes>,
    redis_answer_bytes: usize,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.echo_server {
        return echo::serve();
    }
    let report = Report::begin("service")?;
    if args.shape.is_empty() {
        let full = vec![Shape::new(100_000, 2048), Shape::new(100_000, 4096)];
        args.shape = args.common.size(full, vec![Shape::new(500, 512)]);
    }
    if args.streams.is_empty() {
        args.streams = vec![1, 4];
    }
    if args.batch.is_empty() {
        args.batch = BATCHES.to_vec();
    }
    args.milliseconds = args.common.size(args.milliseconds, 20);
    for shape in &args.shape {
        measure(&args, &report, *shape)?;
    }
    Ok(())
}

fn measure(args: &Args, report: &Report, shape: Shape) -> Result<()> {
    let set = fgrams::synthetic(shape.rows)?;
    let served = Served::of(&set);
    let servers = Servers::start(args, report, &served, shape)?;
    servers.touch_all_rows(&served)?;
    for &streams in &args.streams {
        for batch in args.batch.iter().map(|&batch| batch as usize) {
            // As many rows as the table has: a hot set must not hold all that is ever asked for.
            let drawn = served.draw(args.skew, batch, shape.rows, batch as u64);
            let case = format!(
                "{shape} {} batch {batch}, {streams} streams",
                args.skew.name()
            );
            report.note(&case);
            measure_case(args, report, &servers, &drawn, shape, streams, &case)?;
        }
    }
    Ok(())
}

/// One case on all servers, round by round.
fn measure_case(
    args: &Args,
    report: &Report,
    servers: &Servers,
    drawn: &[Batch],
    shape: Shape,
    streams: usize,
    case: &str,
) -> Result<()> {
    let questions = servers.questions(drawn, shape)?;
    let lookup =
        |name, embed: &Embed| Subject::open(name, &questions.lookup, streams, || embed.connect());
    let echo = || Stream::open(&servers.echo.address, echo::ECHO);
    let mut subjects = vec![
        lookup("mapped", &servers.mapped)?,
        lookup("sled + hot set", &servers.sled)?,
        Subject::open("echo", &questions.echo, streams, echo)?,
    ];
    if let Some(redis) = &servers.redis {
        let connect = || redis.connect(questions.redis_answer_bytes);
        subjects.push(Subject::open("redis", &questions.mget, streams, connect)?);
    }
    let time = Duration::from_millis(args.milliseconds);
    for _ in 0..args.common.rounds() {
        for subject in &mut subjects {
            // Not counted: windows open, allocators and caches settle.
            drive(&mut subject.connections, subject.questions, time / 10)?;
            let timings = drive(&mut subject.connections, subject.questions, time)?;
            subject.rounds.push(timings);
        }
    }
    let batch = drawn[0].rows.len();
    subjects
        .iter()
        .try_for_each(|subject| subject.print(report, case, batch))
}

/// One server as its clients see it.
struct Subject<'a> {
    name: &'static str,
    questions: &'a [Bytes],
    /// One for each stream.
    connections: Vec<Box<dyn Connection>>,
    rounds: Vec<Timings>,
}

impl<'a> Subject<'a> {
    fn open<C: Connection + 'static>(
        name: &'static str,
        questions: &'a [Bytes],
        streams: usize,
        connect: impl Fn() -> Result<C>,
    ) -> Result<Self> {
        let boxed = |_| Ok(Box::new(connect()?) as Box<dyn Connection>);
        Ok(Self {
            name,
            questions,
            connections: (0..streams).map(boxed).collect::<Result<_>>()?,
            rounds: Vec::new(),
        })
    }

    /// Medians over the rounds; `batch` rows a look-up.
    fn print(&self, report: &Report, case: &str, batch: usize) -> Result<()> {
        let over = |figure: &dyn Fn(&Timings) -> f64| {
            median(&self.rounds.iter().map(figure).collect::<Vec<f64>>())
        };
        let p50 = over(&|round| micros(percentile(&round.times, 0.5)));
        let p99 = over(&|round| micros(percentile(&round.times, 0.99)));
        let rate = over(&|round| round.rate * batch as f64);
        report.line(case, self.name, "p50", p50, "us")?;
        report.line(case, self.name, "p99", p99, "us")?;
        report.line(case, self.name, "rate", rate, "rows/s")
    }
}

impl Servers {
    fn start(args: &Args, report: &Report, served: &Served<'_>, shape: Shape) -> Result<Self> {
        let folder = args.common.folder(env!("CARGO_TARGET_TMPDIR"), "service")?;
        let table = |store: StoreKind| {
            report.note(format_args!("{shape}: building {store}"));
            let built = tables::once(&folder, &format!("{store}-{shape}"), |dir| {
                tables::build(dir, served.set(), store, shape.row_bytes)
            })?;
            disk::read_pages(&built.dir)?;
            anyhow::Ok(built.dir)
        };
        let redis = Redis::start()?;
        match &redis {
            Some(redis) => redis.load(served, shape.row_bytes)?,
            None => report.note("redis-server is not installed (Debian: redis-server); left out"),
        }
        Ok(Self {
            mapped: Embed::start(&table(StoreKind::Mapped)?, 0)?,
            sled: Embed::start(&table(StoreKind::Sled)?, shape.rows / 5)?,
            echo: start_echo()?,
            redis,
        })
    }

    /// Everything is measured warm: each row is read once, those served most last.
    fn touch_all_rows(&self, served: &Served<'_>) -> Result<()> {
        for embed in [&self.mapped, &self.sled] {
            let mut connection = embed.connect()?;
            for batch in served.sweep(128) {
                connection.ask(&embed.question(&batch.ids, &batch.spans))?;
            }
        }
        Ok(())
    }

    /// Encodes the questions of a case, and checks that each server answers the first one rightly.
    fn questions(&self, drawn: &[Batch], shape: Shape) -> Result<Questions> {
        let lookup = |batch: &Batch| self.mapped.question(&batch.ids, &batch.spans);
        let lookup: Vec<Bytes> = drawn.iter().map(lookup).collect();
        let mut expected = Vec::new();
        let first = drawn.first().context("no look-ups")?;
        first
            .fgrams()
            .for_each(|ids| rows::encoded(ids, shape.row_bytes, &mut expected));
        let mut answer_bytes = 0;
        for embed in [&self.mapped, &self.sled] {
            let mut connection = embed.connect()?;
            connection.ask(&lookup[0])?;
            check_answer(connection.answer(), &expected)?;
            answer_bytes = connection.answer().len();
        }
        let redis_answer = redis::answer(expected.chunks_exact(shape.row_bytes));
        let mget: Vec<Bytes> = drawn.iter().map(redis::question).collect();
        if let Some(redis) = &self.redis {
            let mut connection = redis.connect(redis_answer.len())?;
            connection.ask(&mget[0])?;
            ensure!(
                connection.answer() == redis_answer,
                "redis sent a wrong row"
            );
        }
        Ok(Questions {
            echo: lookup
                .iter()
                .map(|like| echo::question(like, answer_bytes))
                .collect(),
            lookup,
            mget,
            redis_answer_bytes: redis_answer.len(),
        })
    }
}
