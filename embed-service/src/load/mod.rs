//! `embed-service load`: asks servers as decoders would, and says how fast they answer.

mod draw;
mod report;

use std::{
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use scone_embed_client::endpoint;
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse, Span,
    embed_service_client::EmbedServiceClient, lookup_response,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming, transport::Channel};
use tracing::info;

use self::{
    draw::{Drawer, Source},
    report::{Measured, Report},
};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The flags of `embed-service load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Addresses to ask, with commas between; streams are spread over them in turn.
    #[arg(
        long,
        env = "SCONE_LOAD_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7300"
    )]
    pub addr: Vec<String>,

    /// Ask for f-grams of this table directory, which may be the one that is being served.
    #[arg(
        long,
        env = "SCONE_EMBED_TABLE",
        value_name = "DIR",
        required_unless_present = "ids"
    )]
    pub table: Option<PathBuf>,

    /// Ask for the text in this file, not for single f-grams: token ids, unsigned 32-bit
    /// little-endian.
    #[arg(long, env = "SCONE_LOAD_IDS", value_name = "FILE")]
    pub ids: Option<PathBuf>,

    /// How f-grams of --table are drawn: `zipf` takes the row at place r with a weight of 1/r, as
    /// in text; `uniform` takes all alike.
    #[arg(long, env = "SCONE_LOAD_DRAW", value_enum, default_value_t = Draw::Zipf)]
    pub draw: Draw,

    /// Streams, each on a connection of its own, with one request on its way at a time.
    #[arg(
        long,
        env = "SCONE_LOAD_STREAMS",
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub streams: u32,

    /// Windows of a request: sequences of one decode step.
    #[arg(
        long,
        env = "SCONE_LOAD_WINDOWS",
        value_name = "B",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub windows: u32,

    /// Ask for prompts instead: one span of so many positions a request.
    #[arg(
        long,
        env = "SCONE_LOAD_PROMPT_POSITIONS",
        value_name = "P",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub prompt_positions: Option<u32>,

    /// How long to measure, in seconds.
    #[arg(
        long,
        env = "SCONE_LOAD_SECONDS",
        value_name = "S",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub seconds: u64,

    /// How long to ask before that without measuring, in seconds.
    #[arg(
        long,
        env = "SCONE_LOAD_WARM_UP_SECONDS",
        value_name = "S",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(0..=600)
    )]
    pub warm_up_seconds: u64,

    /// Most requests to measure, over all streams.
    #[arg(
        long,
        env = "SCONE_LOAD_MAX_REQUESTS",
        value_name = "N",
        default_value_t = 5_000_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    pub max_requests: u64,

    /// Where the drawing of f-grams begins; the same seed asks the same.
    #[arg(long, env = "SCONE_LOAD_SEED", value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Print one JSON object for each result instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How f-grams are drawn from a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Draw {
    /// The row at place r with a weight of 1/r.
    Zipf,
    /// All rows alike.
    Uniform,
}

/// What one request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    /// A decode step of so many sequences.
    Windows(u32),
    /// A prompt of so many positions.
    Prompt(u32),
}

/// Asks until the time is up, then prints what it measured.
///
/// # Errors
/// When a server cannot be reached, the table or file cannot be read, the servers cannot answer
/// requests of this shape, or a stream breaks.
pub async fn run(args: LoadArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let shape = match args.prompt_positions {
        Some(positions) => Shape::Prompt(positions),
        None => Shape::Windows(args.windows),
    };
    let (clients, info) = connect(&args).await?;
    check_limits(shape, &info)?;
    let read = (args.clone(), info.clone());
    let source = tokio::task::spawn_blocking(move || Source::read(&read.0, &read.1)).await?;
    let source = Arc::new(source?);
    info!(addresses = ?args.addr, ?shape, streams = args.streams, "asking");
    let measured = ask_all(&args, shape, &source, clients).await?;
    let report = Report::new(&args, shape, &info, measured);
    if args.json {
        report.write_json(out)
    } else {
        report.write_text(out)
    }
    .context("cannot write the report")
}

/// A client for each stream, and the facts of the table, which all must share.
async fn connect(
    args: &LoadArgs,
) -> anyhow::Result<(Vec<EmbedServiceClient<Channel>>, GetTableInfoResponse)> {
    let mut clients = Vec::new();
    let mut facts: Option<GetTableInfoResponse> = None;
    for address in args.addr.iter().cycle().take(args.streams as usize) {
        let mut client = connect_one(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        let info = client.get_table_info(GetTableInfoRequest::default()).await;
        let info = info
            .with_context(|| format!("{address} does not tell its table"))?
            .into_inner();
        match &facts {
            Some(first) if first.table_id != info.table_id => bail!(
                "{address} serves table {}, the first address {}",
                info.table_id,
                first.table_id
            ),
            Some(_) => {}
            None => facts = Some(info),
        }
        clients.push(client);
    }
    Ok((clients, facts.context("--addr is empty")?))
}

async fn connect_one(address: &str) -> anyhow::Result<EmbedServiceClient<Channel>> {
    let address = address.trim_start_matches("http://");
    let endpoint = endpoint(address, CONNECT_TIMEOUT)?;
    Ok(EmbedServiceClient::new(endpoint.connect().await?).max_decoding_message_size(1 << 30))
}

fn check_limits(shape: Shape, info: &GetTableInfoResponse) -> anyhow::Result<()> {
    let (positions, spans) = match shape {
        Shape::Windows(windows) => (windows.saturating_mul(info.max_n), windows),
        Shape::Prompt(positions) => (positions, 1),
    };
    ensure!(
        positions <= info.max_positions && spans <= info.max_spans,
        "a request would have {positions} ids in {spans} spans, the server's limits are {} and {}",
        info.max_positions,
        info.max_spans
    );
    Ok(())
}

/// Runs all streams to the end.
async fn ask_all(
    args: &LoadArgs,
    shape: Shape,
    source: &Arc<Source>,
    clients: Vec<EmbedServiceClient<Channel>>,
) -> anyhow::Result<Measured> {
    let begin = Instant::now() + Duration::from_secs(args.warm_up_seconds);
    let end = begin + Duration::from_secs(args.seconds);
    let most = args.max_requests.div_ceil(u64::from(args.streams));
    let stop = CancellationToken::new();
    let _stopped_on_error = stop.clone().drop_guard();
    let mut streams = JoinSet::new();
    for (client, number) in clients.into_iter().zip(args.seed..) {
        let drawer = Drawer::new(Arc::clone(source), shape, number);
        let period = Period { begin, end, most };
        streams.spawn(ask(client, drawer, period, stop.clone()));
    }
    let mut measured = Measured::default();
    while let Some(stream) = streams.join_next().await {
        measured.add(stream??);
    }
    measured.seconds = begin.elapsed().as_secs_f64();
    Ok(measured)
}

/// When one stream measures.
struct Period {
    begin: Instant,
    end: Instant,
    /// Most requests.
    most: u64,
}

/// One stream: the next request is sent when the last one is answered.
async fn ask(
    mut client: EmbedServiceClient<Channel>,
    mut drawer: Drawer,
    period: Period,
    stop: CancellationToken,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let mut open = OpenStream::open(&mut client).await?;
    let mut id = 0;
    while Instant::now() < period.end && measured.requests() < period.most && !stop.is_cancelled() {
        id += 1;
        let request = drawer.next_request(id);
        let sent = Instant::now();
        match open.ask(request).await? {
            Some(response) if sent >= period.begin => measured.count(sent.elapsed(), response),
            Some(_) => {}
            // The server asks its clients to come back over another connection now and then.
            None => open = OpenStream::open(&mut client).await?,
        }
    }
    Ok(measured)
}

/// An open Lookup stream.
struct OpenStream {
    requests: mpsc::Sender<LookupRequest>,
    answers: Streaming<LookupResponse>,
}

impl OpenStream {
    async fn open(client: &mut EmbedServiceClient<Channel>) -> anyhow::Result<Self> {
        let (requests, mut receive) = mpsc::channel(1);
        let sent = futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx));
        let answers = client.lookup(sent).await.context("cannot open a stream")?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
        })
    }

    /// The answer, or `None` when the server has ended the stream.
    async fn ask(&mut self, request: LookupRequest) -> anyhow::Result<Option<LookupResponse>> {
        if self.requests.send(request).await.is_err() {
            return Ok(None);
        }
        self.answers.message().await.context("a stream broke")
    }
}

/// The code of an answer; an answer without a result is a fault of the server.
fn outcome(response: &LookupResponse) -> Code {
    match &response.result {
        Some(lookup_response::Result::Rows(_)) => Code::Ok,
        Some(lookup_response::Result::Error(error)) => error.code.into(),
        None => Code::Internal,
    }
}

/// A request for `spans`, which cover `ids`.
fn request(id: u64, ids: &[u32], spans: Vec<Span>) -> LookupRequest {
    LookupRequest {
        id,
        token_ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        spans,
        table_id: None,
    }
}
