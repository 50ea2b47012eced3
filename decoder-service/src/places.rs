//! How many sequences may be here at once: in all, of one client, and of clients that do not read.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who asks, for its share of the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// All that comes over one connection, by its far end.
    Connection(SocketAddr),
    /// One request with several prompts.
    Request(u64),
    /// All calls with one API key.
    Key(u64),
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// All are taken.
    Full,
    /// The client has its share.
    OfClient,
    /// Somebody waits until all are free: the service is shutting down.
    Ending,
}

/// The places of an engine. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// For those that run and wait.
    taken: Arc<Semaphore>,
    /// For those whose clients do not read: they keep nobody out.
    stalled: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<Client, usize>>>,
    /// How many wait until nobody has a place: they get what is given back.
    ending: Arc<AtomicUsize>,
    /// In all, and as many again for stalled ones.
    pub(crate) capacity: usize,
    pub(crate) per_client: usize,
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
    pub(crate) fn new(capacity: usize, per_client: usize) -> Self {
        Self {
            taken: Arc::new(Semaphore::new(capacity)),
            stalled: Arc::new(Semaphore::new(capacity)),
            clients: Arc::default(),
            ending: Arc::default(),
            capacity,
            per_client,
        }
    }

    /// Places for `n` sequences of a client.
    pub(crate) fn take(
        &self,
        n: u32,
        client: Option<Client>,
    ) -> Result<(OwnedSemaphorePermit, Option<Share>), NoPlace> {
        let share = match client {
            Some(client) => Some(self.share(n as usize, client)?),
            None if n as usize > self.per_client => return Err(NoPlace::OfClient),
            None => None,
        };
        let permits = self.taken.clone().try_acquire_many_owned(n);
        let permits = permits.map_err(|_| match self.ending.load(Ordering::Acquire) {
            0 => NoPlace::Full,
            _ => NoPlace::Ending,
        });
        Ok((permits?, share))
    }

    fn share(&self, n: usize, client: Client) -> Result<Share, NoPlace> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = clients.get(&client).copied().unwrap_or(0);
        if taken + n > self.per_client {
            return Err(NoPlace::OfClient);
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
    pub(crate) fn taken(&self) -> usize {
        self.capacity - self.taken.available_permits()
    }

    /// Resolves when nobody has a place; nobody gets one meanwhile.
    pub(crate) async fn empty(&self) {
        let _ending = Ending::new(&self.ending);
        // Never closed, so these cannot fail; and if they could, there would be nothing to wait for.
        let all = self.capacity as u32;
        let _taken = self.taken.acquire_many(all).await;
        let _stalled = self.stalled.acquire_many(all).await;
    }
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
    use super::*;

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let places = Places::new(8, 3);
        let (one, two) = (Some(Client::Request(1)), Some(Client::Request(2)));
        let first = places.take(2, one).unwrap();
        assert_eq!(places.take(2, one).unwrap_err(), NoPlace::OfClient);
        let second = places.take(1, one).unwrap();
        let _other = places.take(3, two).unwrap();
        let _nobody = places.take(2, None).unwrap();
        assert_eq!(places.take(4, None).unwrap_err(), NoPlace::OfClient);
        assert_eq!(places.take(1, None).unwrap_err(), NoPlace::Full);
        drop(first);
        let _again = places.take(2, one).unwrap();
        drop(second);
        assert_eq!(places.clients.lock().unwrap()[&Client::Request(1)], 2);
    }

    #[test]
    fn a_share_that_finds_no_place_is_given_back() {
        let places = Places::new(2, 2);
        let _full = places.take(2, None).unwrap();
        let one = Some(Client::Request(1));
        assert_eq!(places.take(1, one).unwrap_err(), NoPlace::Full);
        assert!(places.clients.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn while_somebody_waits_for_the_end_it_is_not_the_queue_that_is_full() {
        let places = Places::new(4, 4);
        let held = places.take(1, None).unwrap();
        {
            let end = std::pin::pin!(places.empty());
            assert!(futures_util::poll!(end).is_pending());
            assert!(matches!(places.take(1, None), Err(NoPlace::Ending)));
        }
        // Who no longer waits keeps nobody out.
        let all = places.take(3, None).unwrap();
        assert!(matches!(places.take(1, None), Err(NoPlace::Full)));
        drop((held, all));
        places.empty().await;
    }
}
