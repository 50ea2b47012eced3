//! `embed-service load`: asks servers as decoders would, and says how fast they answer.

mod args;
mod draw;
mod report;

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use scone_embed_client::Tls;
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    embed_service_client::EmbedServiceClient,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};
use tracing::info;

pub use self::args::{Draw, LoadArgs, TlsNames};
use self::{
    args::Shape,
    draw::{Drawer, Source},
    report::{Measured, Report},
};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks until the time is up, then prints what it measured.
///
/// # Errors
/// When a server cannot be reached, the table or file cannot be read, the servers cannot answer
/// requests of this shape, or a stream breaks.
pub async fn run(args: LoadArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let shape = args.shape();
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
    let client = args.tls.open()?;
    let name = args.tls.tls_name.clone();
    let tls = client.map(|client| Tls { client, name });
    for address in args.addr.iter().cycle().take(args.streams as usize) {
        let mut client = connect_one(address, tls.as_ref())
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

async fn connect_one(
    address: &str,
    tls: Option<&Tls>,
) -> anyhow::Result<EmbedServiceClient<Channel>> {
    let address = address.trim_start_matches("http://");
    let address = address.trim_start_matches("https://");
    let name = tls.map(|tls| tls.name_of(address));
    let tls = tls.map(|tls| &tls.client).zip(name.as_deref());
    let channel = scone_embed_client::connect(address, tls, CONNECT_TIMEOUT).await?;
    Ok(EmbedServiceClient::new(channel).max_decoding_message_size(1 << 30))
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
