//! A small table, a server on a free port, a client, and the answers it should get.

use std::{collections::HashMap, fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use embed_service::{Capacity, Config, Limits, RunError, run_with};
use scone_fgram::{
    FgramSet, Matcher, NGram, RowDtype, SetHeader,
    table::{BuildOptions, StoreKind, TableOptions, build_table, table_id},
};
use scone_proto::embed::v1::{
    LookupRequest, LookupResponse, LookupRows, Span, embed_service_client::EmbedServiceClient,
    lookup_response,
};
use scone_service::{announce::Listening, connections::ConnectionLimits, grpc::Drained};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot},
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
/// All 400 rows of the table, in bytes.
pub(crate) const LARGEST_ANSWER: u64 = 400 * 2 * DIM as u64;
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
    fgram_set_of(VOCAB)
}

/// The same f-grams in a vocabulary that may be larger.
pub(crate) fn fgram_set_of(vocab_size: u32) -> FgramSet {
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
        vocab_size,
        max_n: 4,
        tokenizer_hash: [3; 32],
        min_count: 1,
    };
    FgramSet::new(header, ranked).unwrap()
}

/// A table version: the byte its model hash repeats. Its rows differ from those of others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version(pub(crate) u8);

/// The version a server starts with.
pub(crate) const FIRST: Version = Version(0xab);

impl Version {
    pub(crate) fn table_id(self) -> String {
        table_id(&self.model_hash(), &fgram_set().hash(), DTYPE)
    }

    fn model_hash(self) -> String {
        format!("{:02x}", self.0).repeat(32)
    }

    /// The row of an f-gram: its ids, its length and the version, in numbers f16 holds exactly.
    fn row(self, ids: &[u32]) -> Vec<f32> {
        let mut row: Vec<f32> = ids.iter().map(|&id| id as f32 + 0.5).collect();
        row.resize(DIM - 1, f32::from(self.0));
        row.push(ids.len() as f32);
        row
    }

    /// Builds the whole table.
    pub(crate) fn build(self, dir: &Path) {
        self.build_with(dir, &fgram_set(), |_| {});
    }

    pub(crate) fn build_with(
        self,
        dir: &Path,
        set: &FgramSet,
        change: impl FnOnce(&mut BuildOptions),
    ) {
        let mut options = BuildOptions {
            store: StoreKind::Sled,
            dtype: DTYPE,
            dim: DIM,
            model_hash: self.model_hash(),
            ..BuildOptions::default()
        };
        change(&mut options);
        let dim = options.dim;
        let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
            for ids in batch {
                let mut row = self.row(ids);
                row.resize(dim, 0.0);
                out.extend(row);
            }
            Ok::<(), scone_fgram::Error>(())
        };
        build_table(dir, set, &options, rows, |_, _| {}).unwrap();
    }
}

/// What a right server answers, computed from the set and the row function alone.
pub(crate) struct Oracle {
    pub(crate) version: Version,
    set: FgramSet,
    matcher: Matcher,
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self::of(FIRST)
    }

    pub(crate) fn of(version: Version) -> Self {
        let set = fgram_set();
        let matcher = set.matcher();
        Self {
            version,
            set,
            matcher,
        }
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
                    DTYPE.encode(&self.version.row(ids), &mut encoded).unwrap();
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
        table: String::new(),
        traceparent: String::new(),
    }
}

pub(crate) fn config(table: &Path) -> Config {
    Config {
        tables: vec![scone_fgram::table::NamedDir::default_at(table)],
        folder: None,
        table_options: TableOptions {
            hot_bytes: 4096,
            ..TableOptions::default()
        },
        listen: ([127, 0, 0, 1], 0).into(),
        metrics_listen: Some(([127, 0, 0, 1], 0).into()),
        drain_timeout: Duration::from_secs(60),
        retain_table: Duration::from_secs(600),
        watch_table: None,
        limits: Limits {
            max_request_bytes: 16 << 10,
            max_spans: 16,
            max_positions: 2048,
        },
        capacity: Capacity {
            max_inflight_bytes: 1 << 20,
            max_streams: 64,
            retry_delay: RETRY_DELAY,
        },
        connections: ConnectionLimits::default(),
        tls: None,
        max_connection_streams: 128,
        otlp_endpoint: None,
        stall_time: Duration::from_millis(50),
        max_prompt_wait: Duration::from_secs(60),
        threads: 2,
        read_threads: 4,
    }
}

/// A running server, and the directory of its tables: the one it is given is the link `current`.
pub(crate) struct TestServer {
    pub(crate) listening: Listening,
    pub(crate) dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) reload: Arc<Notify>,
    task: JoinHandle<Result<Drained, RunError>>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Returns when the table is open.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        FIRST.build(&dir.path().join("first"));
        link(dir.path(), "first");
        let mut config = config(&dir.path().join("current"));
        change(&mut config);
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let reload = Arc::new(Notify::new());
        let reloaded = Arc::clone(&reload);
        let ready = |listening: &Listening| ready.send(*listening).unwrap();
        let task = tokio::spawn(run_with(config, listener, shutdown, reloaded, ready));
        Self {
            listening: listening.await.unwrap(),
            dir,
            stop: Some(stop),
            reload,
            task,
        }
    }

    /// Points `current` to another name in the directory and tells the server to look.
    pub(crate) fn switch_to(&self, name: &str) {
        link(self.dir.path(), name);
        self.reload.notify_one();
    }

    /// The value of a metric; labels are part of the name.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let body = scrape(self).await;
        let line = body.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().parse().unwrap())
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

/// Makes `current` in `dir` a link to `name`, in one step.
fn link(dir: &Path, name: &str) {
    let partial = dir.join("current.partial");
    symlink(name, &partial).unwrap();
    fs::rename(partial, dir.join("current")).unwrap();
}

/// The body of GET /metrics.
pub(crate) async fn scrape(server: &TestServer) -> String {
    let address = server.listening.metrics.unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    let get = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    connection.write_all(get.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    answer
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
        let (answered, result) = self.next().await;
        assert_eq!(answered, id);
        result
    }

    /// The next answer, and which request it is for.
    pub(crate) async fn next(&mut self) -> (u64, lookup_response::Result) {
        let answer = self.answers.message().await.unwrap().unwrap();
        (answer.id, answer.result.unwrap())
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
