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
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    places::{NoPlace, Places, Share},
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
    share: Option<Share>,
    span: Span,
}

/// The door to the engine. Cloning is cheap; the engine ends when all are dropped and all running
/// sequences are done.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: std_mpsc::SyncSender<Submission>,
    places: Places,
    config: EngineConfig,
    pace: Arc<Pace>,
    gave_up: Arc<AtomicBool>,
    metrics: Metrics,
}

/// How fast permits come free, for the retry hint of refused requests.
#[derive(Debug, Default)]
struct Pace {
    /// Recent mean time between two ends of sequences while the queue was not empty, in us.
    permit_us: AtomicU64,
}

impl Pace {
    fn permit_freed(&self, since_last: Duration) {
        let new = since_last.as_micros().min(60_000_000) as u64;
        let old = self.permit_us.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.permit_us.store(mean, Ordering::Relaxed);
    }

    /// When a permit is likely to be free.
    fn retry_after(&self) -> Duration {
        self.after(1)
            .clamp(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// How long so many sequences take to end.
    fn after(&self, sequences: usize) -> Duration {
        let each = Duration::from_micros(self.permit_us.load(Ordering::Relaxed));
        each.saturating_mul(sequences.try_into().unwrap_or(u32::MAX))
    }
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
    let places = Places::new(capacity, config.max_per_client);
    let pace = Arc::new(Pace::default());
    let gave_up = Arc::new(AtomicBool::new(false));
    let handle = EngineHandle {
        submissions,
        places: places.clone(),
        config,
        pace: pace.clone(),
        gave_up: gave_up.clone(),
        metrics: parts.metrics.clone(),
    };
    let (alive, ended) = oneshot::channel::<()>();
    thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Dropped when the thread ends, by a panic too.
            let _alive = alive;
            Worker::new(config, parts, incoming, (places, pace), gave_up).run();
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
    /// At once, when there are not places for all its completions, when its client has its share of
    /// them, or when it would wait longer than it may.
    pub fn submit(&self, request: Request) -> Result<mpsc::Receiver<Message>, Error> {
        let n = request.n;
        let most = self.places.capacity.min(self.places.per_client);
        if n as usize > most {
            return Err(Error::InvalidField {
                field: "n",
                problem: format!("is {n}; this server takes {most} sequences of a client in all"),
            });
        }
        self.check_wait(n as usize)?;
        let (permits, share) = self
            .places
            .take(n, request.client)
            .map_err(|why| self.refused(why))?;
        // One more, for the reason why a client that does not read hears no more.
        let (sender, receiver) = mpsc::channel(MESSAGES_BEHIND + 1);
        let submission = Submission {
            request: Arc::new(request),
            sender,
            permits,
            share,
            span: Span::current(),
        };
        self.metrics.queue_depth.inc_by(i64::from(n));
        match self.submissions.try_send(submission) {
            Ok(()) => Ok(receiver),
            Err(error) => {
                self.metrics.queue_depth.dec_by(i64::from(n));
                Err(match error {
                    std_mpsc::TrySendError::Full(_) => self.refused(NoPlace::Full),
                    std_mpsc::TrySendError::Disconnected(_) => Error::Internal,
                })
            }
        }
    }

    /// Refuses what would wait longer for its slots than it may, as recent sequences ended.
    fn check_wait(&self, n: usize) -> Result<(), Error> {
        let ahead = (self.places.taken() + n).saturating_sub(self.config.limits.max_batch);
        let (wait, most) = (self.pace.after(ahead), self.config.max_queue_time);
        if wait <= most {
            return Ok(());
        }
        Err(Error::QueueTooLong {
            most,
            retry_after: (wait - most).max(self.pace.retry_after()),
        })
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
        let retry_after = self.pace.retry_after();
        match why {
            NoPlace::Full => Error::QueueFull {
                running_and_waiting: self.places.capacity,
                retry_after,
            },
            NoPlace::Ending => Error::Draining,
            NoPlace::OfClient => Error::ClientBusy {
                most: self.places.per_client,
                retry_after,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_hint_follows_the_pace_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.retry_after(), Duration::from_millis(100));
        for _ in 0..100 {
            pace.permit_freed(Duration::from_secs(2));
        }
        assert!(pace.retry_after() > Duration::from_millis(1900));
        for _ in 0..100 {
            pace.permit_freed(Duration::from_secs(3600));
        }
        assert_eq!(pace.retry_after(), Duration::from_secs(10));
    }
}
