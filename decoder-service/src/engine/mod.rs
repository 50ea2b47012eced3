//! The thread that owns the model: requests in over a bounded channel, tokens out over one bounded
//! channel for each request.
//!
//! ```text
//! submit ──permit──> channel ──> engine thread: admit · plan · look up · step · sample · look up · send
//! ```
//!
//! At most `max_batch` sequences run and `max_queue` wait; a permit at the door counts both, so a
//! request beyond that is refused at once and nothing behind the door can overflow. A client that
//! goes away or whose deadline passes loses its slot before the next step. A client that does not
//! read makes its own sequence pause. After `stall_time` it counts no more among those that run and
//! wait, and its slot and KV blocks go to whoever waits for them; when it reads again it goes on,
//! before those that came later, and `client_timeout` ends it.

mod ahead;
mod compute;
mod live;
mod lookups;
mod mailbox;
mod traces;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread,
    time::Duration,
};

use scone_model::{Decoder, KvPool};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::Span;

pub use mailbox::{CAPACITY as MESSAGES_BEHIND, Message};

use self::worker::Worker;
use crate::{
    embed_tier::EmbedTier,
    error::Error,
    metrics::Metrics,
    model::ModelInfo,
    places::{NoPlace, PlaceLimits, Places, Share},
    request::Request,
    scheduler::Limits,
};

/// What to do with a position that the embed tier does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnLookupFailure {
    /// End the generation with UNAVAILABLE.
    Fail,
    /// Use the token embedding, and count it.
    TokenEmbedding,
}

/// How the engine works.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// What bounds the batch, the queue and a step.
    pub limits: Limits,
    /// What to do without an answer of the embed tier.
    pub on_lookup_failure: OnLookupFailure,
    /// Whether texts that begin alike share what is computed of them.
    pub prefix_cache: bool,
    /// Upper limit of the time that prompts may add to a step in which streams decode.
    pub step_target: Duration,
    /// How long a client may leave messages unread before its generation ends.
    pub client_timeout: Duration,
    /// How long it may before its place, and its slot if others wait for one, are given to others.
    pub stall_time: Duration,
    /// Longest time that a sequence may wait for a slot in the batch.
    pub max_queue_time: Duration,
    /// Most sequences of one client that run and wait.
    pub max_per_client: usize,
}

/// What the engine thread gets to work on.
pub struct EngineParts {
    /// Facts of the model.
    pub info: Arc<ModelInfo>,
    /// The main model.
    pub decoder: Decoder,
    /// Memory of its keys and values.
    pub pool: KvPool,
    /// Where rows come from; `None` for a plain model.
    pub tier: Option<Box<dyn EmbedTier>>,
    /// What is counted.
    pub metrics: Metrics,
}

/// One request on its way to the engine.
struct Submission {
    request: Arc<Request>,
    sender: mpsc::Sender<Message>,
    /// One for each completion, which gives it back when it ends.
    permits: OwnedSemaphorePermit,
    share: Option<Arc<Share>>,
    span: Span,
}

/// The door to the engine. Cloning is cheap; the engine ends when all are dropped and all running
/// sequences are done.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: std_mpsc::SyncSender<Submission>,
    places: Places,
    config: EngineConfig,
    gave_up: Arc<AtomicBool>,
    metrics: Metrics,
}

/// Starts the engine thread. The receiver resolves when the thread ends, for whatever reason.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    config: EngineConfig,
    parts: EngineParts,
) -> Result<(EngineHandle, oneshot::Receiver<()>), Error> {
    let capacity = config.limits.max_batch + config.limits.max_queue;
    let (submissions, incoming) = std_mpsc::sync_channel(capacity);
    let places = Places::new(PlaceLimits {
        max_batch: config.limits.max_batch,
        max_queue: config.limits.max_queue,
        max_queue_time: config.max_queue_time,
        per_client: config.max_per_client,
    });
    let gave_up = Arc::new(AtomicBool::new(false));
    let handle = EngineHandle {
        submissions,
        places: places.clone(),
        config,
        gave_up: gave_up.clone(),
        metrics: parts.metrics.clone(),
    };
    let (alive, ended) = oneshot::channel::<()>();
    thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Dropped when the thread ends, by a panic too.
            let _alive = alive;
            Worker::new(config, parts, incoming, places, gave_up).run();
        })
        .map_err(|source| Error::Thread {
            name: "engine",
            source,
        })?;
    Ok((handle, ended))
}

impl EngineHandle {
    /// Puts a request into the queue. Its messages come over the receiver; dropping that cancels
    /// the request within one step.
    ///
    /// # Errors
    /// As [`submit_all`](Self::submit_all).
    pub fn submit(&self, request: Request) -> Result<mpsc::Receiver<Message>, Error> {
        let mut all = self.submit_all(vec![request])?;
        all.pop().ok_or(Error::Internal)
    }

    /// Puts the requests of one call into the queue, all or none.
    ///
    /// # Errors
    /// At once, when there are not places for all their completions, when their client has its share
    /// of them, when they would wait longer than they may, or when it is the turn of others.
    pub fn submit_all(
        &self,
        requests: Vec<Request>,
    ) -> Result<Vec<mpsc::Receiver<Message>>, Error> {
        let Some(first) = requests.first() else {
            return Ok(Vec::new());
        };
        let n: u32 = requests.iter().map(|request| request.n).sum();
        let most = self.places.limits.per_request();
        if n as usize > most {
            return Err(Error::InvalidField {
                field: "n",
                problem: format!(
                    "asks for {n} sequences; this server takes {most} of a client in all"
                ),
            });
        }
        let taken = self.places.take(n, first.client, first.turn.as_ref());
        let (mut permits, share) = taken.map_err(|why| self.refused(why))?;
        let share = share.map(Arc::new);
        let mut receivers = Vec::with_capacity(requests.len());
        for request in requests {
            let permits = permits.split(request.n as usize).ok_or(Error::Internal)?;
            receivers.push(self.send(request, permits, share.clone())?);
        }
        Ok(receivers)
    }

    /// Hands a request that has its places to the engine.
    fn send(
        &self,
        request: Request,
        permits: OwnedSemaphorePermit,
        share: Option<Arc<Share>>,
    ) -> Result<mpsc::Receiver<Message>, Error> {
        let n = i64::from(request.n);
        // One more, for the reason why a client that does not read hears no more.
        let (sender, receiver) = mpsc::channel(MESSAGES_BEHIND + 1);
        let submission = Submission {
            request: Arc::new(request),
            sender,
            permits,
            share,
            span: Span::current(),
        };
        self.metrics.queue_depth.inc_by(n);
        match self.submissions.try_send(submission) {
            Ok(()) => Ok(receiver),
            Err(_) => {
                self.metrics.queue_depth.dec_by(n);
                // It has room for as many as there are places: the engine ended.
                Err(Error::Internal)
            }
        }
    }

    /// Resolves when no sequence runs or waits. Requests that come meanwhile are refused.
    pub async fn idle(&self) {
        self.places.empty().await;
    }

    /// Ends all that runs and waits with UNAVAILABLE, within one step.
    pub fn give_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    fn refused(&self, why: NoPlace) -> Error {
        match why {
            NoPlace::Full { retry_after } => Error::QueueFull {
                running_and_waiting: self.places.limits.capacity(),
                retry_after,
            },
            NoPlace::TooLong { retry_after } => Error::QueueTooLong {
                most: self.config.max_queue_time,
                retry_after,
            },
            NoPlace::OfClient { retry_after } => Error::ClientBusy {
                most: self.places.limits.per_client,
                retry_after,
            },
            NoPlace::Ending => Error::Draining,
        }
    }
}
