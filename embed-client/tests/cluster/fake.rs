//! An embed-service whose tables are computed: every pair of ids `(a, b)` is an f-gram with the row
//! `[a, b, edition]`. It misbehaves on request.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use scone_embed_client::{Answers, EmbedClient, LookupBatch, Options, TableFacts};
use scone_fgram::{RowDtype, shard_of};
use scone_proto::embed::v1::{
    self as proto, GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    LookupRows,
    embed_service_server::{EmbedService, EmbedServiceServer},
    lookup_response,
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};

/// Longer than anything takes on a busy machine: a time limit that must not be what ends a wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Elements of a row.
const DIM: u32 = 3;

/// One computed table.
#[derive(Clone, Debug)]
pub(crate) struct FakeTable {
    pub(crate) edition: u8,
    pub(crate) model: &'static str,
    pub(crate) dtype: RowDtype,
}

/// The first table.
pub(crate) const OLD: FakeTable = FakeTable {
    edition: 1,
    model: "model",
    dtype: RowDtype::F32,
};
/// Its successor, whose rows are stored otherwise.
pub(crate) const NEW: FakeTable = FakeTable {
    edition: 2,
    model: "model",
    dtype: RowDtype::F16,
};
/// A table of another model.
pub(crate) const FOREIGN: FakeTable = FakeTable {
    edition: 3,
    model: "another model",
    dtype: RowDtype::F32,
};

impl FakeTable {
    pub(crate) fn id(&self) -> String {
        format!("edition-{}", self.edition)
    }

    fn row(&self, a: u32, b: u32) -> Vec<u8> {
        let row = [a as f32, b as f32, f32::from(self.edition)];
        let mut bytes = Vec::new();
        self.dtype.encode(&row, &mut bytes).unwrap();
        bytes
    }
}

/// What a server does with look-ups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Answer,
    /// Reads and never answers.
    Silent,
    /// Answers so many with RESOURCE_EXHAUSTED and this delay, and the rest as usual.
    Exhausted {
        times: u64,
        retry_delay_ms: u32,
    },
}

struct State {
    /// Current one first.
    tables: Vec<FakeTable>,
    mode: Mode,
}

#[derive(Clone)]
struct Service {
    shard: (u32, u32),
    state: Arc<Mutex<State>>,
    lookups: Arc<AtomicU64>,
    polls: Arc<AtomicU64>,
    /// Streams end when this changes.
    streams: watch::Sender<u64>,
}

/// A running server, with threads of its own; dropping it cuts all connections.
pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    service: Service,
    runtime: Option<Runtime>,
}

impl FakeServer {
    pub(crate) fn start(table: FakeTable) -> Self {
        Self::shard(table, (0, 1))
    }

    /// Shard `shard.0` of `shard.1`.
    pub(crate) fn shard(table: FakeTable, shard: (u32, u32)) -> Self {
        Self::over(table, shard, scone_service::grpc::server_builder())
    }

    /// A server that asks connections to end when they are this old, and cuts them soon after.
    pub(crate) fn with_connection_age(table: FakeTable, age: Duration) -> Self {
        let builder = scone_service::grpc::server_builder()
            .max_connection_age(age)
            .max_connection_age_grace(age / 4);
        Self::over(table, (0, 1), builder)
    }

    fn over(table: FakeTable, shard: (u32, u32), mut builder: Server) -> Self {
        let service = Service {
            shard,
            state: Arc::new(Mutex::new(State {
                tables: vec![table],
                mode: Mode::Answer,
            })),
            lookups: Arc::default(),
            polls: Arc::default(),
            streams: watch::Sender::new(0),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = EmbedServiceServer::new(service.clone());
        let any = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        any.set_nonblocking(true).unwrap();
        let address = any.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(any).unwrap();
            builder
                .add_service(server)
                .serve_with_incoming(scone_service::grpc::incoming(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            service,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.service.state.lock().unwrap().mode = mode;
    }

    /// Answers for these tables from now on, the first one by default.
    pub(crate) fn serve(&self, tables: &[FakeTable]) {
        self.service.state.lock().unwrap().tables = tables.to_vec();
    }

    pub(crate) fn lookups(&self) -> u64 {
        self.service.lookups.load(Ordering::Relaxed)
    }

    /// Waits until a poll that began after this call was answered.
    pub(crate) async fn polled(&self) {
        let polls = || self.service.polls.load(Ordering::Relaxed);
        let before = polls();
        // The first answer may have been on its way already.
        eventually("polls", || polls() >= before + 2).await;
    }

    /// Ends the open streams in good order, answered or not.
    pub(crate) fn end_streams(&self) {
        self.service.streams.send_modify(|n| *n += 1);
    }

    /// Cuts everything, as a killed process would.
    pub(crate) fn kill(self) {}
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Service {
    fn answer(&self, request: &LookupRequest) -> Option<lookup_response::Result> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        match &mut state.mode {
            Mode::Silent => return None,
            Mode::Exhausted {
                times,
                retry_delay_ms,
            } if *times > 0 => {
                *times -= 1;
                return Some(lookup_response::Result::Error(proto::LookupError {
                    code: Code::ResourceExhausted.into(),
                    message: "full".into(),
                    retry_delay_ms: Some(*retry_delay_ms),
                }));
            }
            Mode::Answer | Mode::Exhausted { .. } => {}
        }
        let wanted = request.table_id.as_deref();
        let mut tables = state.tables.iter();
        let table = tables.find(|t| wanted.is_none_or(|wanted| wanted == t.id()));
        Some(match table {
            Some(table) => lookup_response::Result::Rows(self.rows(table, request)),
            None => lookup_response::Result::Error(proto::LookupError {
                code: Code::FailedPrecondition.into(),
                message: "table_id is not served".into(),
                retry_delay_ms: None,
            }),
        })
    }

    fn rows(&self, table: &FakeTable, request: &LookupRequest) -> LookupRows {
        let (ids, _) = request.token_ids.as_chunks::<4>();
        let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let (mut lengths, mut rows) = (Vec::new(), Vec::new());
        let mut from = 0;
        for span in &request.spans {
            let first = from + span.context as usize;
            let end = first + span.answers as usize;
            for at in first..end {
                let pair = (at > from).then(|| [ids[at - 1], ids[at]]);
                match pair.filter(|&pair| shard_of(pair, self.shard.1) == self.shard.0) {
                    Some([a, b]) => {
                        lengths.push(2);
                        rows.extend(table.row(a, b));
                    }
                    None => lengths.push(0),
                }
            }
            from = end;
        }
        LookupRows {
            table_id: table.id(),
            match_lengths: lengths.into(),
            row_index: Vec::new(),
            rows: rows.into(),
        }
    }
}

#[tonic::async_trait]
impl EmbedService for Service {
    type LookupStream = Pin<Box<dyn Stream<Item = Result<LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<Streaming<LookupRequest>>,
    ) -> Result<Response<Self::LookupStream>, Status> {
        let mut requests = request.into_inner();
        let service = self.clone();
        let mut end = self.streams.subscribe();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    request = requests.next() => request,
                    _ = end.changed() => break,
                };
                let Some(Ok(request)) = request else { break };
                if let Some(result) = service.answer(&request) {
                    let result = Some(result);
                    let response = LookupResponse {
                        id: request.id,
                        result,
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        break;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lookup_once(
        &self,
        _request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        Err(Status::unimplemented("not used by the client"))
    }

    async fn get_table_info(
        &self,
        request: Request<GetTableInfoRequest>,
    ) -> Result<Response<GetTableInfoResponse>, Status> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let wanted = request.get_ref().table_id.as_deref();
        let mut tables = state.tables.iter();
        let table = tables
            .find(|t| wanted.is_none_or(|wanted| wanted == t.id()))
            .ok_or_else(|| Status::failed_precondition("table_id is not served"))?;
        Ok(Response::new(GetTableInfoResponse {
            table_id: table.id(),
            model_hash: table.model.to_owned(),
            tokenizer_hash: "tokenizer".into(),
            fgram_set_hash: "set".into(),
            vocab_size: 1000,
            max_n: 3,
            dim: DIM,
            dtype: match table.dtype {
                RowDtype::F16 => proto::RowDtype::F16,
                _ => proto::RowDtype::F32,
            }
            .into(),
            row_bytes: table.dtype.row_bytes(DIM as usize) as u32,
            rows: 1000 * 1000,
            shard_index: self.shard.0,
            shard_count: self.shard.1,
            store: "sled".into(),
            max_request_bytes: 1 << 20,
            max_spans: 64,
            max_positions: 2048,
            served_table_ids: state.tables.iter().map(FakeTable::id).collect(),
        }))
    }
}

/// Options for these servers, with short intervals and a time limit that plays no part.
pub(crate) fn options(servers: &[&FakeServer]) -> Options {
    let addresses = servers.iter().map(|server| server.address.to_string());
    Options {
        timeout: PATIENCE,
        start_timeout: PATIENCE,
        resolve_interval: Duration::from_millis(10),
        poll_interval: Duration::from_millis(10),
        hedge: false,
        ..Options::new(addresses.map(|a| a.parse().unwrap()).collect())
    }
}

pub(crate) async fn connect(servers: &[&FakeServer]) -> EmbedClient {
    EmbedClient::connect(options(servers)).await.unwrap()
}

/// Ids whose pairs belong to all shards, as a prompt and two decode steps.
pub(crate) const IDS: [u32; 9] = [5, 17, 4, 300, 2, 999, 5, 17, 8];

/// Looks some ids up.
pub(crate) async fn lookup(client: &EmbedClient, table: &TableFacts) -> Answers {
    let mut batch = LookupBatch::default();
    batch.push(&IDS, 0);
    batch.push(&IDS[2..5], 2);
    batch.push(&IDS[..2], 1);
    let mut out = Answers::default();
    client.lookup(table, &batch, &mut out).await;
    out
}

/// All positions are answered, with the rows of this edition.
pub(crate) fn assert_rows_of(edition: &FakeTable, out: &mut Answers) {
    assert_eq!(out.error(), None);
    let pairs = IDS.windows(2).map(|pair| Some([pair[0], pair[1]]));
    let pairs = [None].into_iter().chain(pairs);
    let pairs = pairs.chain([Some([300, 2]), Some([5, 17])]);
    let mut positions = 0;
    for (position, pair) in pairs.enumerate() {
        positions += 1;
        let length = out.match_lengths()[position];
        assert_eq!(length, if pair.is_some() { 2 } else { 0 });
        if let Some([a, b]) = pair {
            let row = [a as f32, b as f32, f32::from(edition.edition)];
            assert_eq!(out.embedding(position), row);
        }
    }
    assert_eq!(out.match_lengths().len(), positions);
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
