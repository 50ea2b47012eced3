//! A small table, a server on a free port, a client, and the answers it should get.

use std::{collections::HashMap, path::Path, time::Duration};

use embed_service::{Capacity, Config, Limits, RunError, run_with};
use scone_fgram::{
    FgramSet, Matcher, NGram, RowDtype, SetHeader,
    table::{BuildOptions, StoreKind, TableOptions, build_table},
};
use scone_proto::embed::v1::{
    LookupRequest, LookupResponse, LookupRows, Span, embed_service_client::EmbedServiceClient,
    lookup_response,
};
use scone_service::{announce::Listening, grpc::Drained};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) const VOCAB: u32 = 9;
pub(crate) const DIM: usize = 6;
pub(crate) const DTYPE: RowDtype = RowDtype::F16;
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(7);

/// Ids of a document, the same on every machine.
pub(crate) fn document(seed: u64, len: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 33) % u64::from(VOCAB)) as u32
    };
    (0..len).map(|_| next()).collect()
}

/// The 400 most frequent n-grams of a document, up to 4 ids.
pub(crate) fn fgram_set() -> FgramSet {
    let ids = document(1, 3000);
    let mut counts: HashMap<&[u32], u64> = HashMap::new();
    for n in 2..=4 {
        ids.windows(n)
            .for_each(|window| *counts.entry(window).or_default() += 1);
    }
    let mut ranked: Vec<_> = counts
        .into_iter()
        .map(|(ids, count)| (NGram::from_slice(ids).unwrap(), count))
        .collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(400);
    let header = SetHeader {
        vocab_size: VOCAB,
        max_n: 4,
        tokenizer_hash: [3; 32],
        min_count: 1,
    };
    FgramSet::new(header, ranked).unwrap()
}

/// The row of an f-gram: its ids and its length, in numbers f16 holds exactly.
fn row(ids: &[u32]) -> Vec<f32> {
    let mut row: Vec<f32> = ids.iter().map(|&id| id as f32 + 0.5).collect();
    row.resize(DIM - 1, -1.0);
    row.push(ids.len() as f32);
    row
}

pub(crate) fn build(dir: &Path) {
    let options = BuildOptions {
        store: StoreKind::Sled,
        dtype: DTYPE,
        dim: DIM,
        model_hash: "ab".repeat(32),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch.iter().for_each(|ids| out.extend(row(ids)));
        Ok::<(), scone_fgram::Error>(())
    };
    build_table(dir, &fgram_set(), &options, rows, |_, _| {}).unwrap();
}

/// What a right server answers, computed from the set and the row function alone.
pub(crate) struct Oracle {
    set: FgramSet,
    matcher: Matcher,
}

impl Oracle {
    pub(crate) fn new() -> Self {
        let set = fgram_set();
        let matcher = set.matcher();
        Self { set, matcher }
    }

    /// Match length and encoded row of each answered position.
    fn expected(&self, spans: &[(&[u32], usize)]) -> Vec<(u8, Vec<u8>)> {
        let mut expected = Vec::new();
        for (ids, context) in spans {
            for end in *context + 1..=ids.len() {
                let found = self.matcher.longest(&ids[..end]);
                expected.push(found.map_or((0, Vec::new()), |found| {
                    let ids = self.set.get(found.row as usize).ids;
                    let mut encoded = Vec::new();
                    DTYPE.encode(&row(ids), &mut encoded).unwrap();
                    (found.len, encoded)
                }));
            }
        }
        expected
    }

    pub(crate) fn check(&self, spans: &[(&[u32], usize)], rows: &LookupRows) {
        assert_eq!(unpack(rows), self.expected(spans));
    }
}

/// The answer position by position, as a client reads it.
fn unpack(answer: &LookupRows) -> Vec<(u8, Vec<u8>)> {
    let rows: Vec<_> = answer.rows.chunks_exact(DTYPE.row_bytes(DIM)).collect();
    let mut matched = 0;
    let position = |&length: &u8| {
        if length == 0 {
            return (0, Vec::new());
        }
        let row = match answer.row_index.get(matched) {
            Some(&row) => row as usize,
            None => matched,
        };
        matched += 1;
        (length, rows[row].to_vec())
    };
    answer.match_lengths.iter().map(position).collect()
}

/// A request for spans of (ids, how many of them are context).
pub(crate) fn request(id: u64, spans: &[(&[u32], usize)]) -> LookupRequest {
    let ids = spans.iter().flat_map(|(ids, _)| ids.iter());
    LookupRequest {
        id,
        token_ids: ids.flat_map(|id| id.to_le_bytes()).collect(),
        spans: spans
            .iter()
            .map(|(ids, context)| Span {
                context: *context as u32,
                answers: (ids.len() - context) as u32,
            })
            .collect(),
        table_id: None,
    }
}

pub(crate) fn config(table: &Path) -> Config {
    Config {
        table: table.to_owned(),
        table_options: TableOptions {
            hot_bytes: 4096,
            ..TableOptions::default()
        },
        listen: ([127, 0, 0, 1], 0).into(),
        metrics_listen: Some(([127, 0, 0, 1], 0).into()),
        drain_timeout: Duration::from_secs(60),
        limits: Limits {
            max_request_bytes: 16 << 10,
            max_spans: 16,
            max_positions: 2048,
        },
        capacity: Capacity {
            max_inflight_positions: 1 << 16,
            max_streams: 64,
            retry_delay: RETRY_DELAY,
        },
        threads: 2,
        read_threads: 4,
    }
}

/// A running server with its table.
pub(crate) struct TestServer {
    pub(crate) listening: Listening,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Drained, RunError>>,
    _dir: TempDir,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Returns when the table is open.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        build(dir.path());
        let mut config = config(dir.path());
        change(&mut config);
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(run_with(config, listener, shutdown, |listening| {
            ready.send(*listening).unwrap();
        }));
        Self {
            listening: listening.await.unwrap(),
            stop: Some(stop),
            task,
            _dir: dir,
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.listening.address)).unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> EmbedServiceClient<Channel> {
        EmbedServiceClient::new(self.channel().await)
    }

    pub(crate) async fn stream(&self) -> TestStream {
        TestStream::open(&mut self.client().await).await.unwrap()
    }

    pub(crate) fn tell_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) async fn stopped(self) -> Drained {
        self.task.await.unwrap().unwrap()
    }
}

/// An open Lookup stream.
pub(crate) struct TestStream {
    pub(crate) requests: mpsc::Sender<LookupRequest>,
    pub(crate) answers: Streaming<LookupResponse>,
}

impl TestStream {
    pub(crate) async fn open(client: &mut EmbedServiceClient<Channel>) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(256);
        let answers = client.lookup(ReceiverStream::new(sent)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    pub(crate) async fn ask(&mut self, request: LookupRequest) -> lookup_response::Result {
        let id = request.id;
        self.requests.send(request).await.unwrap();
        let answer = self.answers.message().await.unwrap().unwrap();
        assert_eq!(answer.id, id);
        answer.result.unwrap()
    }

    pub(crate) async fn rows(&mut self, request: LookupRequest) -> LookupRows {
        match self.ask(request).await {
            lookup_response::Result::Rows(rows) => rows,
            lookup_response::Result::Error(error) => panic!("{error:?}"),
        }
    }

    /// The code and message of a refusal.
    pub(crate) async fn refusal(&mut self, request: LookupRequest) -> (tonic::Code, String) {
        match self.ask(request).await {
            lookup_response::Result::Rows(_) => panic!("was answered"),
            lookup_response::Result::Error(error) => (error.code.into(), error.message),
        }
    }
}

/// Asks again until the answer is good; the test fails after a minute, not at a speed.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(60);
    match tokio::time::timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within a minute: {what}"),
    }
}
