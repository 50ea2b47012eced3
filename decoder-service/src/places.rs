//! How many sequences may be here at once: in all, of one client, and of clients that do not read.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    client::Client,
    turns::{Turn, Turns},
};

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// All are taken, or kept for those whose turn comes before.
    Full {
        /// When to try again.
        retry_after: Duration,
    },
    /// It would wait longer for its slots than it may, as recent sequences ended.
    TooLong {
        /// When to try again.
        retry_after: Duration,
    },
    /// The client has its share.
    OfClient {
        /// When to try again.
        retry_after: Duration,
    },
    /// Somebody waits until all are free: the service is shutting down.
    Ending,
}

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaceLimits {
    /// Most that run.
    pub(crate) max_batch: usize,
    /// Most that wait.
    pub(crate) max_queue: usize,
    /// Longest time that one may wait.
    pub(crate) max_queue_time: Duration,
    /// Most of one client.
    pub(crate) per_client: usize,
}

impl PlaceLimits {
    /// In all, and as many again for stalled ones.
    pub(crate) fn capacity(&self) -> usize {
        self.max_batch + self.max_queue
    }

    /// Most places of one request.
    pub(crate) fn per_request(&self) -> usize {
        self.capacity().min(self.per_client)
    }
}

/// The places of an engine. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// For those that run and wait.
    taken: Arc<Semaphore>,
    /// For those whose clients do not read: they keep nobody out.
    stalled: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<Client, usize>>>,
    turns: Arc<Mutex<Turns>>,
    /// How many wait until nobody has a place: they get what is given back.
    ending: Arc<AtomicUsize>,
    pace: Arc<Pace>,
    pub(crate) limits: PlaceLimits,
}

/// How fast places come free.
#[derive(Debug, Default)]
struct Pace {
    /// Mean time between two places that come free while a queue stands, in us; 0 while nothing is known.
    place_us: AtomicU64,
    /// Sequences that count for it, [`Pace::RECENT`] at most.
    counted: AtomicU64,
}

impl Pace {
    /// The first sequences count alike, so that one alone does not say for long what all take; then one counts a
    /// part of so many.
    const RECENT: u64 = 16;

    /// A sequence had a slot so long, among so many. Times between ends would not do: sequences that began
    /// together end together, so that most of these times are nothing and some a sequence's whole.
    fn slot_freed(&self, after: Duration, among: usize) {
        let new = (after.as_micros() / among.max(1) as u128).clamp(1, 60_000_000) as u64;
        let old = self.place_us.load(Ordering::Relaxed);
        // The engine's thread alone writes.
        let counted = (self.counted.load(Ordering::Relaxed) + 1).min(Self::RECENT);
        let mean = (old * (counted - 1) + new) / counted;
        self.counted.store(counted, Ordering::Relaxed);
        self.place_us.store(mean, Ordering::Relaxed);
    }

    /// When so many places are likely to have come free, as clients are told.
    fn retry_after(&self, places: usize) -> Duration {
        self.after(places)
            .clamp(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// How long so many sequences take to end.
    fn after(&self, sequences: usize) -> Duration {
        let each = Duration::from_micros(self.place_us.load(Ordering::Relaxed));
        each.saturating_mul(sequences.try_into().unwrap_or(u32::MAX))
    }

    /// How many sequences end within a time; any number while nothing is known.
    fn within(&self, time: Duration) -> usize {
        let each = u128::from(self.place_us.load(Ordering::Relaxed));
        match time.as_micros().checked_div(each) {
            Some(sequences) => sequences.try_into().unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }
}

/// A client's places, until all sequences of a request have ended.
#[derive(Debug)]
pub(crate) struct Share {
    clients: Arc<Mutex<HashMap<Client, usize>>>,
    client: Client,
    places: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut taken) = clients.entry(self.client) {
            *taken.get_mut() = taken.get().saturating_sub(self.places);
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

impl Places {
    pub(crate) fn new(limits: PlaceLimits) -> Self {
        Self {
            taken: Arc::new(Semaphore::new(limits.capacity())),
            stalled: Arc::new(Semaphore::new(limits.capacity())),
            clients: Arc::default(),
            turns: Arc::new(Mutex::new(Turns::new(limits.per_client))),
            ending: Arc::default(),
            pace: Arc::default(),
            limits,
        }
    }

    /// Places for `n` sequences of a client, beside those that are kept for others whose turn comes before.
    /// A request that is refused because there are none has a turn from then on, if it can be known again.
    pub(crate) fn take(
        &self,
        n: u32,
        client: Option<Client>,
        turn: Option<&Turn>,
    ) -> Result<(OwnedSemaphorePermit, Option<Share>), NoPlace> {
        let wanted = n as usize;
        let share = match client {
            Some(client) => Some(self.share(wanted, client)?),
            None if wanted > self.limits.per_client => return Err(self.of_client()),
            None => None,
        };
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        turns.forget_late(now);
        let in_time = self.pace.within(self.limits.max_queue_time);
        let taken = self.taken();
        // Where nobody waits nothing is kept: those in line may have left for good, and everybody who comes
        // would be refused for their sake while places lie idle.
        let kept = match taken > self.limits.max_batch {
            true => turns.kept_from(turn, in_time.min(self.limits.max_queue)),
            false => 0,
        };
        let all = taken + wanted + kept;
        let late = all.saturating_sub(self.limits.max_batch.saturating_add(in_time));
        if late == 0
            && all <= self.limits.capacity()
            && let Ok(permits) = self.taken.clone().try_acquire_many_owned(n)
        {
            if let Some(turn) = turn {
                turns.served(turn);
            }
            return Ok((permits, share));
        }
        if self.ending.load(Ordering::Acquire) > 0 {
            return Err(NoPlace::Ending);
        }
        let before = turns.wanted_before(turn) + wanted;
        let retry_after = self.pace.retry_after(before.max(late));
        if let Some(turn) = turn {
            turns.refused(turn, client, wanted, now + patience(retry_after));
        }
        Err(match late {
            0 => NoPlace::Full { retry_after },
            _ => NoPlace::TooLong { retry_after },
        })
    }

    /// A request that had its places waited longer than it may, and is told to come back: it has a turn.
    pub(crate) fn waited_too_long(
        &self,
        n: u32,
        client: Option<Client>,
        turn: &Turn,
        retry_after: Duration,
    ) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + patience(retry_after);
        turns.refused(turn, client, n as usize, until);
    }

    /// A sequence ended that had a slot so long, among so many as can have one.
    pub(crate) fn slot_freed(&self, after: Duration, among: usize) {
        self.pace.slot_freed(after, among);
    }

    fn of_client(&self) -> NoPlace {
        let retry_after = self.pace.retry_after(1);
        NoPlace::OfClient { retry_after }
    }

    fn share(&self, n: usize, client: Client) -> Result<Share, NoPlace> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = clients.get(&client).copied().unwrap_or(0);
        if taken + n > self.limits.per_client {
            return Err(self.of_client());
        }
        clients.insert(client, taken + n);
        Ok(Share {
            clients: self.clients.clone(),
            client,
            places: n,
        })
    }

    /// A place beside the others for a sequence whose client does not read; `None` when there are too
    /// many of these.
    pub(crate) fn beside(&self) -> Option<OwnedSemaphorePermit> {
        self.stalled.clone().try_acquire_owned().ok()
    }

    /// Places taken now.
    fn taken(&self) -> usize {
        self.limits.capacity() - self.taken.available_permits()
    }

    /// Resolves when nobody has a place; nobody gets one meanwhile.
    pub(crate) async fn empty(&self) {
        let _ending = Ending::new(&self.ending);
        // Never closed, so these cannot fail; and if they could, there would be nothing to wait for.
        let all = self.limits.capacity() as u32;
        let _taken = self.taken.acquire_many(all).await;
        let _stalled = self.stalled.acquire_many(all).await;
    }
}

/// How long after a refusal a request may come back and still have its turn: clients add something to what
/// they are told, and HTTP tells whole seconds.
fn patience(retry_after: Duration) -> Duration {
    2 * retry_after.max(Duration::from_secs(1))
}

/// One who waits, until it is dropped.
struct Ending<'a>(&'a AtomicUsize);

impl<'a> Ending<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::SocketAddr;

    use super::*;

    fn places(max_batch: usize, max_queue: usize, per_client: usize) -> Places {
        Places::new(PlaceLimits {
            max_batch,
            max_queue,
            max_queue_time: Duration::from_secs(10),
            per_client,
        })
    }

    /// A connection by its number, and its turn.
    fn somebody(number: u16) -> (Option<Client>, Option<Turn>) {
        let far_end = SocketAddr::from(([127, 0, 0, 1], number));
        let turn = Turn::of(None, "", Some(far_end));
        (Some(Client::Connection(far_end)), turn)
    }

    type Taken = Result<(OwnedSemaphorePermit, Option<Share>), NoPlace>;

    fn take(places: &Places, n: u32, client: Option<Client>) -> Taken {
        places.take(n, client, None)
    }

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let places = places(4, 4, 3);
        let (one, two) = (Some(Client::Key(1)), Some(Client::Key(2)));
        let has_its_share = |taken: Taken| matches!(taken, Err(NoPlace::OfClient { .. }));
        let first = take(&places, 2, one).unwrap();
        assert!(has_its_share(take(&places, 2, one)));
        let second = take(&places, 1, one).unwrap();
        let _other = take(&places, 3, two).unwrap();
        let _nobody = take(&places, 2, None).unwrap();
        assert!(has_its_share(take(&places, 4, None)));
        let full = take(&places, 1, None);
        assert!(matches!(full, Err(NoPlace::Full { .. })));
        drop(first);
        let _again = take(&places, 2, one).unwrap();
        drop(second);
        assert_eq!(places.clients.lock().unwrap()[&Client::Key(1)], 2);
    }

    #[test]
    fn a_share_that_finds_no_place_is_given_back() {
        let places = places(1, 1, 2);
        let _full = take(&places, 2, None).unwrap();
        let full = take(&places, 1, Some(Client::Key(1)));
        assert!(matches!(full, Err(NoPlace::Full { .. })));
        assert!(places.clients.lock().unwrap().is_empty());
    }

    /// Each is quicker than the one before it, which has been told to come back.
    #[test]
    fn who_was_refused_goes_before_those_who_come_later() {
        let places = places(1, 4, 5);
        let ask = |number: u16| {
            let (client, turn) = somebody(number);
            places.take(1, client, turn.as_ref())
        };
        let mut held: Vec<_> = (0..5).map(|number| ask(number).unwrap()).collect();
        for waits in 10..14 {
            ask(waits).unwrap_err();
        }
        for waits in 10..14 {
            drop(held.remove(0));
            for quick in 0..5 {
                ask(quick).unwrap_err();
            }
            if waits < 12 {
                ask(waits + 1).unwrap_err();
            }
            held.push(ask(waits).unwrap());
        }
        // Then it is the turn of the quick ones, who were refused meanwhile.
        drop(held.remove(0));
        ask(20).unwrap_err();
        held.push(ask(0).unwrap());
    }

    #[test]
    fn who_never_comes_back_does_not_leave_the_batch_empty() {
        let places = places(2, 4, 6);
        let held = take(&places, 6, None).unwrap();
        for waits in 10..20 {
            let (client, turn) = somebody(waits);
            places.take(1, client, turn.as_ref()).unwrap_err();
        }
        drop(held);
        // Three of the four that may wait are kept.
        let _held: Vec<_> = (0..3).map(|_| take(&places, 1, None).unwrap()).collect();
        take(&places, 1, None).unwrap_err();
    }

    /// As a client that opens a connection for each try: it does not come back as who it was.
    #[test]
    fn who_left_keeps_nobody_from_places_for_which_nobody_waits() {
        let places = places(2, 4, 6);
        let held = take(&places, 6, None).unwrap();
        let (client, turn) = somebody(10);
        places.take(4, client, turn.as_ref()).unwrap_err();
        drop(held);
        let _batch = take(&places, 2, None).unwrap();
        let (client, turn) = somebody(11);
        let _waiting = places.take(4, client, turn.as_ref()).unwrap();
    }

    #[test]
    fn a_request_that_would_wait_too_long_is_told_when_it_would_not() {
        let places = places(1, 100, 101);
        places.slot_freed(Duration::from_secs(1), 1);
        let _ten = take(&places, 11, None).unwrap();
        let (client, turn) = somebody(1);
        let refused = places.take(3, client, turn.as_ref()).unwrap_err();
        let retry_after = Duration::from_secs(3);
        assert_eq!(refused, NoPlace::TooLong { retry_after });
        let refused = take(&places, 1, None).unwrap_err();
        let retry_after = Duration::from_secs(4);
        assert_eq!(refused, NoPlace::TooLong { retry_after }, "behind it");
    }

    #[tokio::test]
    async fn while_somebody_waits_for_the_end_it_is_not_the_queue_that_is_full() {
        let places = places(2, 2, 4);
        let held = take(&places, 1, None).unwrap();
        {
            let end = std::pin::pin!(places.empty());
            assert!(futures_util::poll!(end).is_pending());
            assert!(matches!(take(&places, 1, None), Err(NoPlace::Ending)));
        }
        // Who no longer waits keeps nobody out.
        let all = take(&places, 3, None).unwrap();
        assert!(matches!(take(&places, 1, None), Err(NoPlace::Full { .. })));
        drop((held, all));
        places.empty().await;
    }

    #[test]
    fn the_retry_hint_follows_the_pace_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.retry_after(1), Duration::from_millis(100));
        assert_eq!(pace.within(Duration::from_secs(1)), usize::MAX);
        pace.slot_freed(Duration::from_secs(60), 1);
        assert_eq!(pace.within(Duration::from_secs(60)), 1);
        pace.slot_freed(Duration::ZERO, 1);
        assert_eq!(pace.within(Duration::from_secs(60)), 2, "count alike");
        for _ in 0..200 {
            pace.slot_freed(Duration::from_secs(2), 1);
        }
        assert!(pace.retry_after(1) > Duration::from_millis(1900));
        assert_eq!(pace.within(Duration::from_secs(9)), 4);
        for _ in 0..200 {
            pace.slot_freed(Duration::from_secs(2), 16);
        }
        assert_eq!(pace.within(Duration::from_secs(9)), 72, "sixteen at a time");
        for _ in 0..200 {
            pace.slot_freed(Duration::from_secs(3600), 1);
        }
        assert_eq!(pace.retry_after(1), Duration::from_secs(10));
    }
}
