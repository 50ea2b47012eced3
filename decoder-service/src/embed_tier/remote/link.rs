//! One open connection to one embed-service: table facts, then look-ups over one stream.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use scone_fgram::RowDtype;
use scone_proto::embed::v1::{
    self as proto, GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    LookupRows, embed_service_client::EmbedServiceClient, lookup_response,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::parts::Limits;
use crate::embed_tier::{TableFacts, TierError};

/// HTTP/2 windows: a prompt's rows are some MiB.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that leaves pings unanswered this long is gone, though its connection looks open.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Look-ups written and not read by the peer yet. When it is full, more are refused at once.
const REQUESTS_IN_FLIGHT: usize = 256;
/// Look-ups handed over and not written yet; as above.
const JOBS: usize = 64;

/// Why one look-up on one connection failed.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) error: TierError,
    /// When the peer would like to be asked again.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self {
            error: TierError::Unavailable(text.into()),
            retry_after: None,
        }
    }

    pub(super) fn bad_answer(text: impl Into<String>) -> Self {
        Self {
            error: TierError::BadAnswer(text.into()),
            retry_after: None,
        }
    }
}

/// What an embed-service says of itself.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) facts: TableFacts,
    pub(super) shard: u32,
    pub(super) limits: Limits,
}

struct Job {
    request: LookupRequest,
    reply: oneshot::Sender<Result<LookupRows, Refusal>>,
}

/// The sending side of an open connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: String,
    pub(super) peer: Peer,
    jobs: mpsc::Sender<Job>,
    in_flight: AtomicUsize,
}

/// Its other side; [`Session::run`] must be polled for the link to work.
pub(super) struct Session {
    client: EmbedServiceClient<Channel>,
    jobs: mpsc::Receiver<Job>,
}

/// Connects and asks for the table's facts, within `limit`.
pub(super) async fn connect(
    address: &str,
    limit: Duration,
) -> Result<(Arc<Link>, Session), String> {
    let attempt = async {
        let endpoint = endpoint(address, limit)?;
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        let mut client = EmbedServiceClient::new(channel);
        let info = client.get_table_info(GetTableInfoRequest::default()).await;
        let info = info.map_err(|status| format!("GetTableInfo: {status}"))?;
        let peer = peer(info.get_ref())?;
        let answer = peer.limits.answers * (info.get_ref().row_bytes as usize + 16) + (64 << 10);
        let client = client.max_decoding_message_size(answer);
        let (sender, jobs) = mpsc::channel(JOBS);
        let link = Link {
            address: address.to_owned(),
            peer,
            jobs: sender,
            in_flight: AtomicUsize::new(0),
        };
        Ok((Arc::new(link), Session { client, jobs }))
    };
    match timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

fn endpoint(address: &str, limit: Duration) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| chain(&error))?;
    Ok(endpoint
        .connect_timeout(limit)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// tonic's transport errors keep the reason in their sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Turns the wire form into facts, refusing what contradicts itself.
fn peer(info: &GetTableInfoResponse) -> Result<Peer, String> {
    let dtype = match info.dtype() {
        proto::RowDtype::F32 => RowDtype::F32,
        proto::RowDtype::F16 => RowDtype::F16,
        proto::RowDtype::Bf16 => RowDtype::Bf16,
        proto::RowDtype::Int8 => RowDtype::Int8,
        proto::RowDtype::Int4 => RowDtype::Int4,
        proto::RowDtype::Unspecified => {
            return Err(format!("its dtype {} is unknown here", info.dtype));
        }
    };
    let row_bytes = dtype.row_bytes(info.dim as usize);
    if info.dim == 0 || info.row_bytes as usize != row_bytes {
        return Err(format!(
            "its row_bytes is {}, but {} elements of {dtype} are {row_bytes}",
            info.row_bytes, info.dim
        ));
    }
    if !(2..=scone_fgram::MAX_N as u32).contains(&info.max_n) {
        return Err(format!("its max_n is {}, allowed is 2 to 8", info.max_n));
    }
    if info.shard_index >= info.shard_count {
        return Err(format!(
            "it is shard {} of {}",
            info.shard_index, info.shard_count
        ));
    }
    Ok(Peer {
        limits: Limits::of(info)?,
        shard: info.shard_index,
        facts: TableFacts {
            table_id: info.table_id.clone(),
            model_hash: info.model_hash.clone(),
            tokenizer_hash: info.tokenizer_hash.clone(),
            fgram_set_hash: info.fgram_set_hash.clone(),
            vocab_size: info.vocab_size,
            max_n: info.max_n,
            dim: info.dim,
            dtype,
            shard_count: info.shard_count,
        },
    })
}

impl Link {
    /// Look-ups not answered yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Sends one look-up and waits for its answer until `deadline`.
    pub(super) async fn call(
        &self,
        request: LookupRequest,
        deadline: Instant,
    ) -> Result<LookupRows, Refusal> {
        let (reply, answer) = oneshot::channel();
        let address = &self.address;
        self.jobs
            .try_send(Job { request, reply })
            .map_err(|error| {
                Refusal::unavailable(match error {
                    mpsc::error::TrySendError::Full(_) => format!("{address} does not keep up"),
                    mpsc::error::TrySendError::Closed(_) => {
                        format!("lost the connection to {address}")
                    }
                })
            })?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let answer = timeout_at(deadline, answer).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Refusal::unavailable(format!(
                "lost the connection to {address}"
            ))),
            Err(_) => Err(Refusal::unavailable(format!(
                "{address} did not answer in time"
            ))),
        }
    }
}

impl Session {
    /// Carries look-ups and answers until the connection breaks; returns why. Look-ups without an
    /// answer fail then.
    pub(super) async fn run(mut self) -> String {
        let (requests, outgoing) = mpsc::channel(REQUESTS_IN_FLIGHT);
        let stream = self.client.lookup(ReceiverStream::new(outgoing)).await;
        let mut responses = match stream {
            Ok(response) => response.into_inner(),
            Err(status) => return format!("Lookup: {status}"),
        };
        let mut waiting = HashMap::new();
        let mut next_id = 0_u64;
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => deliver(response, &mut waiting),
                    Ok(None) => return "the embed-service ended the stream".to_owned(),
                    Err(status) => return status.to_string(),
                },
                job = self.jobs.recv() => {
                    let Some(Job { mut request, reply }) = job else {
                        return "not in use any more".to_owned();
                    };
                    next_id += 1;
                    request.id = next_id;
                    forget_abandoned(&mut waiting);
                    match requests.try_send(request) {
                        Ok(()) => {
                            waiting.insert(next_id, reply);
                        }
                        Err(_) => {
                            let refusal = Refusal::unavailable("the embed-service does not keep up");
                            // The caller may have given up already.
                            let _ = reply.send(Err(refusal));
                        }
                    }
                }
            }
        }
    }
}

type Waiting = HashMap<u64, oneshot::Sender<Result<LookupRows, Refusal>>>;

/// Callers that gave up leave their entry behind; a peer that never answers must not grow the map.
fn forget_abandoned(waiting: &mut Waiting) {
    if waiting.len() > REQUESTS_IN_FLIGHT {
        waiting.retain(|_, reply| !reply.is_closed());
    }
}

fn deliver(response: LookupResponse, waiting: &mut Waiting) {
    // An id that nobody waits for is a late answer.
    let Some(reply) = waiting.remove(&response.id) else {
        return;
    };
    let result = match response.result {
        Some(lookup_response::Result::Rows(rows)) => Ok(rows),
        Some(lookup_response::Result::Error(error)) => Err(refusal(error)),
        None => Err(Refusal::bad_answer("a response without a result")),
    };
    let _ = reply.send(result);
}

fn refusal(error: proto::LookupError) -> Refusal {
    let code = tonic::Code::from(error.code);
    let text = format!("{code:?}: {}", error.message);
    let retry_after = error
        .retry_delay_ms
        .map(|ms| Duration::from_millis(ms.into()));
    let error = match code {
        tonic::Code::ResourceExhausted
        | tonic::Code::Unavailable
        | tonic::Code::DeadlineExceeded => TierError::Unavailable(text),
        _ => TierError::BadAnswer(text),
    };
    Refusal { error, retry_after }
}
