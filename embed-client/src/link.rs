//! One open connection to one embed-service, with one Lookup stream kept open on it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use scone_proto::embed::v1::{
    LookupError as WireError, LookupRequest, LookupResponse, LookupRows,
    embed_service_client::EmbedServiceClient, lookup_response,
};
use scone_tls::ClientTls;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    endpoint::{self, Open},
    error::{LookupError, Unusable},
    parts,
};

/// Look-ups handed over and not written to the connection yet. When it is full, more are refused
/// at once.
const REQUESTS_IN_FLIGHT: usize = 256;
/// How long a replica that did not answer in time is passed over while there are others.
const SUSPECT_FOR: Duration = Duration::from_secs(1);
/// Pause before a replica that is overloaded is asked again, when it names none.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Why one look-up at one replica failed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) error: LookupError,
    /// When this replica may be asked again; another one may at once. `None`: not again for this
    /// look-up.
    pub(crate) again_after: Option<Duration>,
}

impl Refusal {
    /// Nothing is wrong with the look-up: any replica may be asked at once.
    pub(crate) fn lost(text: String) -> Self {
        Self {
            error: LookupError::Unavailable(text),
            again_after: Some(Duration::ZERO),
        }
    }

    pub(crate) fn bad_answer(text: String) -> Self {
        Self {
            error: LookupError::BadAnswer(text),
            again_after: None,
        }
    }

    fn from_wire(address: SocketAddr, error: &WireError) -> Self {
        let code = Code::from(error.code);
        let text = format!("{address}: {code:?}: {}", error.message);
        let delay = error.retry_delay_ms.map(u64::from);
        match code {
            Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded => Self {
                error: LookupError::Unavailable(text),
                again_after: Some(delay.map_or(RETRY_DELAY, Duration::from_millis)),
            },
            // It does not serve this table or version any more; another replica may.
            Code::FailedPrecondition | Code::NotFound => Self {
                error: LookupError::Unavailable(text),
                again_after: None,
            },
            _ => Self::bad_answer(text),
        }
    }
}

type Reply = oneshot::Sender<Result<LookupRows, Refusal>>;

/// Look-ups without an answer.
#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    last_id: u64,
    replies: BTreeMap<u64, Reply>,
}

/// The side of a connection that look-ups are given to.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    requests: mpsc::Sender<LookupRequest>,
    waiting: Mutex<Waiting>,
    /// As many as there are `replies`, readable without the lock.
    in_flight: AtomicUsize,
    /// Told when the last look-up in flight is over.
    idle: Notify,
    opened: Instant,
    /// Until when it is passed over, in microseconds since `opened`.
    suspect_until_us: AtomicU64,
}

/// How a stream of answers ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The server ended it in good order: it drains, or the connection is old enough.
    Gracefully,
    /// The connection broke.
    Broken(String),
}

/// Opens a connection, within `limit`; over TLS to a server of a name, if asked for.
pub(crate) async fn connect(
    address: SocketAddr,
    tls: Option<(&ClientTls, &str)>,
    open: &dyn Open,
    limit: Duration,
) -> Result<EmbedServiceClient<Channel>, String> {
    let host = address.to_string();
    let channel = match tls {
        Some(_) => endpoint::connect(&host, tls, limit).await,
        None => match endpoint::endpoint(&host, limit) {
            Ok(endpoint) => open.open(endpoint, address).await,
            Err(error) => Err(error),
        },
    };
    let channel = channel.map_err(|error| chain(&error))?;
    let client = EmbedServiceClient::new(channel);
    Ok(client.max_decoding_message_size(parts::LARGEST_ANSWER_BYTES))
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

impl Link {
    /// Opens the Lookup stream of a connection. [`Link::read`] must be polled for answers to come.
    pub(crate) async fn open(
        address: SocketAddr,
        client: &mut EmbedServiceClient<Channel>,
    ) -> Result<(Arc<Self>, Streaming<LookupResponse>), Unusable> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_IN_FLIGHT);
        let stream = client.lookup(ReceiverStream::new(outgoing)).await;
        let answers = stream.map_err(|status| Unusable::refused("Lookup", &status))?;
        let link = Self {
            address,
            requests,
            waiting: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            opened: Instant::now(),
            suspect_until_us: AtomicU64::new(0),
        };
        Ok((Arc::new(link), answers.into_inner()))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code panics with the lock held; if it did, the map would still be whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Look-ups not answered yet.
    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It did not answer in time: it may hang, which a broken connection would not tell.
    pub(crate) fn suspect(&self) {
        let until = self.opened.elapsed() + SUSPECT_FOR;
        self.suspect_until_us
            .store(until.as_micros() as u64, Ordering::Relaxed);
    }

    /// The lower, the sooner it should be asked: those that do not hang first, then those with
    /// few look-ups in flight.
    pub(crate) fn burden(&self) -> (bool, usize) {
        let until = self.suspect_until_us.load(Ordering::Relaxed);
        let suspect = until > 0 && until > self.opened.elapsed().as_micros() as u64;
        (suspect, self.in_flight())
    }

    /// Sends one look-up and waits for its answer. Dropping the future gives the look-up up.
    pub(crate) async fn call(&self, mut request: LookupRequest) -> Result<LookupRows, Refusal> {
        let address = self.address;
        let lost = || Refusal::lost(format!("lost the connection to {address}"));
        let (reply, answer) = oneshot::channel();
        let in_flight = InFlight::begin(self, reply).ok_or_else(lost)?;
        request.id = in_flight.id;
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    Refusal::lost(format!("{address} does not keep up"))
                }
                mpsc::error::TrySendError::Closed(_) => lost(),
            })?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Passes answers on until the stream ends.
    pub(crate) async fn read(&self, answers: &mut Streaming<LookupResponse>) -> Ended {
        loop {
            match answers.message().await {
                Ok(Some(response)) => self.deliver(response),
                Ok(None) => return Ended::Gracefully,
                Err(status) => return Ended::Broken(status.to_string()),
            }
        }
    }

    fn deliver(&self, response: LookupResponse) {
        // An id that nobody waits for is a late answer.
        let Some(reply) = self.waiting().replies.remove(&response.id) else {
            return;
        };
        let address = self.address;
        let result = match response.result {
            Some(lookup_response::Result::Rows(rows)) => Ok(rows),
            Some(lookup_response::Result::Error(error)) => Err(Refusal::from_wire(address, &error)),
            None => Err(Refusal::bad_answer(format!(
                "{address}: a response without a result"
            ))),
        };
        // The caller may have given up just now.
        let _ = reply.send(result);
    }

    /// Resolves when no look-up is in flight.
    pub(crate) async fn idle(&self) {
        while self.in_flight() > 0 {
            self.idle.notified().await;
        }
    }

    /// Fails what waits and all that comes later.
    pub(crate) fn close(&self) {
        let replies = {
            let mut waiting = self.waiting();
            waiting.closed = true;
            std::mem::take(&mut waiting.replies)
        };
        drop(replies);
    }
}

/// One look-up waiting at a link; waits no more once this is dropped, however it ended.
struct InFlight<'a> {
    link: &'a Link,
    id: u64,
}

impl<'a> InFlight<'a> {
    /// `None` when the link is closed.
    fn begin(link: &'a Link, reply: Reply) -> Option<Self> {
        let mut waiting = link.waiting();
        if waiting.closed {
            return None;
        }
        waiting.last_id += 1;
        let id = waiting.last_id;
        waiting.replies.insert(id, reply);
        link.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Self { link, id })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.link.waiting().replies.remove(&self.id);
        if self.link.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.link.idle.notify_one();
        }
    }
}
