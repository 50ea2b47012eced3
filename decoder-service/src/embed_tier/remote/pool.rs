//! The replicas of every shard: who is connected, who gets the next look-up, who is called again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use scone_proto::embed::v1::LookupRows;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{debug, error, info, warn};

use super::{
    link::{self, Link, Peer, Refusal},
    parts::{self, Limits, Part},
};
use crate::embed_tier::{Incompatible, ModelFacts, TableFacts, TierError};

/// First and longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections that are open now, by shard.
#[derive(Debug)]
pub(super) struct Pool {
    model: ModelFacts,
    /// Facts of the table in use: those of the first embed-service that answered.
    facts: OnceLock<TableFacts>,
    shards: Mutex<Vec<Shard>>,
    /// Counts changes of `shards`.
    changed: watch::Sender<u64>,
    /// Turns among replicas with equally much to do.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    links: Vec<Arc<Link>>,
    /// Since when it has no link.
    down_since: Option<Instant>,
}

/// How the first attempt to reach an address ended.
#[derive(Debug)]
pub(super) enum FirstContact {
    Joined,
    Refused(Incompatible),
    Failed(String),
}

impl Pool {
    pub(super) fn new(model: ModelFacts) -> Arc<Self> {
        Arc::new(Self {
            model,
            facts: OnceLock::new(),
            shards: Mutex::default(),
            changed: watch::Sender::new(0),
            turn: AtomicUsize::new(0),
        })
    }

    /// Facts of the table, once an embed-service answered.
    pub(super) fn facts(&self) -> Option<&TableFacts> {
        self.facts.get()
    }

    /// Shards without a connection; `None` before the first embed-service answered.
    pub(super) fn missing(&self) -> Option<Vec<u32>> {
        self.facts.get()?;
        let shards = self.shards();
        let missing = shards
            .iter()
            .enumerate()
            .filter(|(_, s)| s.links.is_empty());
        Some(missing.map(|(index, _)| index as u32).collect())
    }

    /// Message limits that all connected replicas accept.
    pub(super) fn limits(&self) -> Option<Limits> {
        let shards = self.shards();
        let limits = shards.iter().flat_map(|s| &s.links).map(|l| l.peer.limits);
        limits.reduce(Limits::and)
    }

    fn shards(&self) -> MutexGuard<'_, Vec<Shard>> {
        // No code panics with the lock held; if it did, the list would still be whole.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one address connected for ever; tells `first` how the first attempt went.
    pub(super) async fn keep_connected(
        self: Arc<Self>,
        address: String,
        first: mpsc::Sender<(String, FirstContact)>,
    ) {
        let mut first = Some(first);
        let mut pause = BACKOFF.0;
        loop {
            let contact = match link::connect(&address, CONNECT_TIMEOUT).await {
                Err(problem) => {
                    warn!(address, problem, "cannot use embed-service");
                    FirstContact::Failed(problem)
                }
                Ok((link, session)) => match self.admit(&address, &link.peer) {
                    Err(refused) => {
                        error!(address, error = %refused, "embed-service refused");
                        FirstContact::Refused(refused)
                    }
                    Ok(()) => {
                        self.add(&link);
                        info!(address, shard = link.peer.shard, "embed-service connected");
                        report(&mut first, &address, FirstContact::Joined).await;
                        let began = Instant::now();
                        let reason = session.run().await;
                        self.remove(&link);
                        warn!(address, reason, "embed-service lost");
                        if began.elapsed() > BACKOFF.1 {
                            pause = BACKOFF.0;
                        }
                        FirstContact::Joined
                    }
                },
            };
            report(&mut first, &address, contact).await;
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Whether this peer serves the model's table, the same as all others.
    fn admit(&self, address: &str, peer: &Peer) -> Result<(), Incompatible> {
        peer.facts.check(address, &self.model)?;
        let facts = self.facts.get_or_init(|| peer.facts.clone());
        if *facts == peer.facts {
            return Ok(());
        }
        // The one table_id covers f-gram set and dtype; shard counts can still differ.
        let (what, found, expected) = if facts.table_id == peer.facts.table_id {
            (
                "shard_count",
                peer.facts.shard_count.to_string(),
                facts.shard_count.to_string(),
            )
        } else {
            (
                "table_id",
                peer.facts.table_id.clone(),
                facts.table_id.clone(),
            )
        };
        Err(Incompatible {
            table: address.to_owned(),
            what,
            found,
            expected,
        })
    }

    fn add(&self, link: &Arc<Link>) {
        let mut shards = self.shards();
        shards.resize_with(link.peer.facts.shard_count as usize, Shard::default);
        let shard = &mut shards[link.peer.shard as usize];
        shard.links.push(link.clone());
        shard.down_since = None;
        drop(shards);
        self.changed.send_modify(|version| *version += 1);
    }

    fn remove(&self, link: &Arc<Link>) {
        let mut shards = self.shards();
        let shard = &mut shards[link.peer.shard as usize];
        shard.links.retain(|other| !Arc::ptr_eq(other, link));
        if shard.links.is_empty() {
            shard.down_since = Some(Instant::now());
        }
        drop(shards);
        self.changed.send_modify(|version| *version += 1);
    }

    /// The replica with the least to do, and how many there are. Not `avoid`, if another is there.
    fn pick(&self, shard: u32, avoid: Option<&Arc<Link>>) -> Option<(Arc<Link>, usize)> {
        let shards = self.shards();
        let links = &shards.get(shard as usize)?.links;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let best = (0..links.len())
            .map(|i| &links[(i + turn) % links.len()])
            .min_by_key(|link| {
                let avoided = avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, link));
                (avoided, link.in_flight())
            })?;
        Some((best.clone(), links.len()))
    }

    /// A replica of a shard; waits for one to come back until `deadline`, but no longer than
    /// `patience` after the last one went: a shard that stays away fails look-ups at once.
    async fn replica(
        &self,
        shard: u32,
        avoid: Option<&Arc<Link>>,
        deadline: Instant,
        patience: Duration,
    ) -> Option<(Arc<Link>, usize)> {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(found) = self.pick(shard, avoid) {
                return Some(found);
            }
            let down_since = self.shards().get(shard as usize)?.down_since;
            let until = down_since.map_or(deadline, |since| deadline.min(since + patience));
            timeout_at(until, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Answers one part within `limit`: on a failure once more, on another replica if there is one.
    /// The first replica gets half of the time when there is another.
    pub(super) async fn answer(
        &self,
        part: &Part,
        limit: Duration,
    ) -> Result<LookupRows, TierError> {
        let Some(facts) = self.facts.get() else {
            return Err(TierError::Unavailable(
                "no embed-service is connected".into(),
            ));
        };
        let request = part.request(&facts.table_id);
        let deadline = Instant::now() + limit;
        let mut failed: Option<(Arc<Link>, Refusal)> = None;
        for attempt in 0..2 {
            let avoid = failed.as_ref().map(|(link, _)| link);
            let Some((link, replicas)) = self.replica(part.shard, avoid, deadline, limit).await
            else {
                break;
            };
            if let Some((before, refusal)) = &failed
                && Arc::ptr_eq(before, &link)
            {
                let pause = refusal.retry_after.unwrap_or_default();
                sleep_until(deadline.min(Instant::now() + pause)).await;
            }
            let until = if attempt == 0 && replicas > 1 {
                Instant::now() + limit / 2
            } else {
                deadline
            };
            let answer = link.call(request.clone(), until).await.and_then(|rows| {
                let checked = parts::check(part, &rows, facts);
                checked.map_err(|problem| {
                    Refusal::bad_answer(format!("{}: {problem}", link.address))
                })?;
                Ok(rows)
            });
            match answer {
                Ok(rows) => return Ok(rows),
                Err(refusal) => {
                    debug!(address = link.address, error = %refusal.error, attempt, "look-up failed");
                    failed = Some((link, refusal));
                }
            }
        }
        Err(failed.map_or_else(
            || {
                let shard = part.shard;
                TierError::Unavailable(format!("no embed-service of shard {shard} is connected"))
            },
            |(_, refusal)| refusal.error,
        ))
    }
}

async fn report(
    first: &mut Option<mpsc::Sender<(String, FirstContact)>>,
    address: &str,
    contact: FirstContact,
) {
    if let Some(sender) = first.take() {
        // Nobody listens once the start is over.
        let _ = sender.send((address.to_owned(), contact)).await;
    }
}
