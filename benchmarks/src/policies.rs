//! Which rows to keep in memory: simulated hit rates of the policies one might choose from.
//!
//! Rows are numbered in served order, so row 0 is the one that was the longest match most often in
//! training. Each policy keeps a number of rows; nothing is measured here but hits.

use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroUsize;

use lru::LruCache;

/// Keeps some rows of those that are asked for.
pub trait Policy {
    /// A row is asked for; whether it was there. It may be kept from now on.
    fn access(&mut self, row: u32) -> bool;
}

/// Always the rows served most in training, whatever is asked for.
#[derive(Debug)]
pub struct Static {
    capacity: u32,
}

impl Static {
    /// Keeps the first `capacity` rows.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let capacity = u32::try_from(capacity.get()).unwrap_or(u32::MAX);
        Self { capacity }
    }
}

impl Policy for Static {
    fn access(&mut self, row: u32) -> bool {
        row < self.capacity
    }
}

/// The row that was asked for least recently makes place.
#[derive(Debug)]
pub struct Lru {
    rows: LruCache<u32, ()>,
}

impl Lru {
    /// Keeps `capacity` rows.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let rows = LruCache::new(capacity);
        Self { rows }
    }
}

impl Policy for Lru {
    fn access(&mut self, row: u32) -> bool {
        self.rows.put(row, ()).is_some()
    }
}

/// Second chance: a hand goes round, and takes the first row that was not asked for since its last
/// visit. What LRU costs without its lists.
#[derive(Debug)]
pub struct Clock {
    /// For each place, its row and whether it was asked for.
    places: Vec<(u32, bool)>,
    /// For each row of the table, its place.
    place_of: Vec<Option<u32>>,
    capacity: usize,
    hand: usize,
}

impl Clock {
    /// Keeps `capacity` of `table_rows` rows.
    pub fn new(capacity: NonZeroUsize, table_rows: usize) -> Self {
        Self {
            places: Vec::new(),
            place_of: vec![None; table_rows],
            capacity: capacity.get(),
            hand: 0,
        }
    }
}

impl Policy for Clock {
    fn access(&mut self, row: u32) -> bool {
        if let Some(place) = self.place_of[row as usize] {
            self.places[place as usize].1 = true;
            return true;
        }
        if self.places.len() < self.capacity {
            self.place_of[row as usize] = Some(self.places.len() as u32);
            self.places.push((row, false));
            return false;
        }
        while std::mem::take(&mut self.places[self.hand].1) {
            self.hand = (self.hand + 1) % self.capacity;
        }
        let (gone, _) = std::mem::replace(&mut self.places[self.hand], (row, false));
        self.place_of[gone as usize] = None;
        self.place_of[row as usize] = Some(self.hand as u32);
        self.hand = (self.hand + 1) % self.capacity;
        false
    }
}

/// Where [`S3Fifo`] has a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Nowhere,
    Small,
    Main,
    Ghost,
}

/// Three queues (Yang et al., SOSP 2023): new rows wait in a small one, and reach the main one only
/// if they are asked for again, there or soon after they have left.
#[derive(Debug)]
pub struct S3Fifo {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    /// For each row of the table, where it is and how often it was asked for there, up to 3.
    state: Vec<(Queue, u8)>,
    capacity: usize,
    small_capacity: usize,
}

impl S3Fifo {
    /// Keeps `capacity` of `table_rows` rows, a tenth of them in the small queue.
    pub fn new(capacity: NonZeroUsize, table_rows: usize) -> Self {
        Self {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            state: vec![(Queue::Nowhere, 0); table_rows],
            capacity: capacity.get(),
            small_capacity: (capacity.get() / 10).max(1),
        }
    }

    fn make_place(&mut self) {
        while self.small.len() + self.main.len() >= self.capacity {
            if self.small.len() >= self.small_capacity || self.main.is_empty() {
                self.leave_small();
            } else {
                self.leave_main();
            }
        }
    }

    fn leave_small(&mut self) {
        let Some(row) = self.small.pop_front() else {
            return;
        };
        let state = &mut self.state[row as usize];
        if state.1 > 1 {
            *state = (Queue::Main, 0);
            self.main.push_back(row);
            return;
        }
        *state = (Queue::Ghost, 0);
        self.ghost.push_back(row);
        if self.ghost.len() > self.capacity - self.small_capacity
            && let Some(forgotten) = self.ghost.pop_front()
        {
            let state = &mut self.state[forgotten as usize];
            // It may have come back to a queue since.
            if state.0 == Queue::Ghost {
                *state = (Queue::Nowhere, 0);
            }
        }
    }

    fn leave_main(&mut self) {
        let Some(row) = self.main.pop_front() else {
            return;
        };
        let state = &mut self.state[row as usize];
        if state.1 > 0 {
            state.1 -= 1;
            self.main.push_back(row);
        } else {
            *state = (Queue::Nowhere, 0);
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, row: u32) -> bool {
        let state = &mut self.state[row as usize];
        if matches!(state.0, Queue::Small | Queue::Main) {
            state.1 = (state.1 + 1).min(3);
            return true;
        }
        self.make_place();
        // Making place may have forgotten the ghost.
        let queue = match self.state[row as usize].0 {
            Queue::Ghost => Queue::Main,
            _ => Queue::Small,
        };
        self.state[row as usize] = (queue, 0);
        match queue {
            Queue::Main => self.main.push_back(row),
            _ => self.small.push_back(row),
        }
        false
    }
}

/// LRU with a door (W-TinyLFU; Einziger et al., ACM TOS 2017): a row that leaves a small window
/// replaces the least recently used one only if it is asked for more often. Counts are exact and
/// halved from time to time.
#[derive(Debug)]
pub struct TinyLfu {
    window: LruCache<u32, ()>,
    main: LruCache<u32, ()>,
    counts: Vec<f32>,
    period: usize,
    until_halved: usize,
}

impl TinyLfu {
    /// Keeps `capacity` rows, a hundredth of them in the window. Counts begin at what the shares of
    /// look-ups in training, one for each row of the table, let expect of one period.
    pub fn new(capacity: NonZeroUsize, shares: &[f64]) -> Self {
        let window = NonZeroUsize::new(capacity.get() / 100).unwrap_or(NonZeroUsize::MIN);
        let main = NonZeroUsize::new(capacity.get() - window.get()).unwrap_or(NonZeroUsize::MIN);
        let period = 10 * capacity.get();
        Self {
            window: LruCache::new(window),
            main: LruCache::new(main),
            counts: shares.iter().map(|s| (s * period as f64) as f32).collect(),
            period,
            until_halved: period,
        }
    }

    fn count(&mut self, row: u32) {
        self.counts[row as usize] += 1.0;
        self.until_halved -= 1;
        if self.until_halved == 0 {
            self.counts.iter_mut().for_each(|count| *count /= 2.0);
            self.until_halved = self.period;
        }
    }

    fn admit(&mut self, row: u32) {
        let full = self.main.len() == self.main.cap().get();
        if full && let Some((&victim, ())) = self.main.peek_lru() {
            if self.counts[row as usize] <= self.counts[victim as usize] {
                return;
            }
            self.main.pop_lru();
        }
        self.main.put(row, ());
    }
}

impl Policy for TinyLfu {
    fn access(&mut self, row: u32) -> bool {
        self.count(row);
        if self.main.get(&row).is_some() || self.window.get(&row).is_some() {
            return true;
        }
        if let Some((candidate, ())) = self.window.push(row, ()) {
            self.admit(candidate);
        }
        false
    }
}

/// The share of hits among the accesses from `first` on; those before it only prepare.
pub fn hit_rate(policy: &mut dyn Policy, accesses: &[u32], first: usize) -> f64 {
    let (before, counted) = accesses.split_at(first);
    for &row in before {
        policy.access(row);
    }
    let hits = counted.iter().filter(|&&row| policy.access(row)).count();
    hits as f64 / counted.len().max(1) as f64
}

/// The most hits that any policy could have, knowing the future (Belady's rule, rows may be passed
/// by): the bound for all others. Counted as in [`hit_rate`], from an empty start.
pub fn best_hit_rate(
    capacity: NonZeroUsize,
    table_rows: usize,
    accesses: &[u32],
    first: usize,
) -> f64 {
    let next = next_uses(accesses, table_rows);
    // For each row of the table, its next use while it is kept.
    let mut kept: Vec<Option<usize>> = vec![None; table_rows];
    let mut latest: BinaryHeap<(usize, u32)> = BinaryHeap::new();
    let (mut held, mut hits) = (0, 0);
    for (place, (&row, &next)) in accesses.iter().zip(&next).enumerate() {
        if kept[row as usize].is_some() {
            hits += usize::from(place >= first);
        } else if held < capacity.get() {
            held += 1;
        } else {
            // Entries of rows that were used since, or are gone, are stale.
            while latest
                .peek()
                .is_some_and(|&(at, row)| kept[row as usize] != Some(at))
            {
                latest.pop();
            }
            match latest.peek() {
                Some(&(at, gone)) if at > next => kept[gone as usize] = None,
                _ => continue,
            }
        }
        kept[row as usize] = Some(next);
        latest.push((next, row));
    }
    hits as f64 / accesses.len().saturating_sub(first).max(1) as f64
}

/// For each access, the place of the next one to the same row; `usize::MAX` for none.
fn next_uses(accesses: &[u32], table_rows: usize) -> Vec<usize> {
    let mut seen = vec![usize::MAX; table_rows];
    let mut next: Vec<usize> = accesses
        .iter()
        .enumerate()
        .rev()
        .map(|(place, &row)| std::mem::replace(&mut seen[row as usize], place))
        .collect();
    next.reverse();
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(rows: usize) -> NonZeroUsize {
        NonZeroUsize::new(rows).expect("not 0")
    }

    fn hits(policy: &mut dyn Policy, accesses: &[u32]) -> Vec<bool> {
        accesses.iter().map(|&row| policy.access(row)).collect()
    }

    #[test]
    fn lru_forgets_the_least_recent() {
        let mut lru = Lru::new(capacity(2));
        assert_eq!(
            hits(&mut lru, &[1, 2, 1, 3, 1, 2]),
            [false, false, true, false, true, false]
        );
    }

    #[test]
    fn clock_spares_what_was_asked_for_again() {
        let mut clock = Clock::new(capacity(2), 10);
        assert_eq!(
            hits(&mut clock, &[1, 2, 1, 3, 1, 2]),
            [false, false, true, false, true, false]
        );
    }

    #[test]
    fn s3_fifo_keeps_what_a_scan_would_flush() {
        let mut policy = S3Fifo::new(capacity(10), 2000);
        // Asked for three times, then a scan of rows that never come again.
        assert_eq!(hits(&mut policy, &[0, 0, 0]), [false, true, true]);
        hits(&mut policy, &Vec::from_iter(100..1000));
        assert!(policy.access(0));
        let mut lru = Lru::new(capacity(10));
        hits(&mut lru, &[0, 0, 0]);
        hits(&mut lru, &Vec::from_iter(100..1000));
        assert!(!lru.access(0));
    }

    #[test]
    fn tiny_lfu_does_not_let_rare_rows_in() {
        let shares = [0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0];
        // One row in the window, one in the main part.
        let mut policy = TinyLfu::new(capacity(2), &shares);
        hits(&mut policy, &[0, 3]);
        // 0 has left the window for the main part; 3, 4 and 5 cannot replace it.
        assert_eq!(hits(&mut policy, &[4, 5, 0]), [false, false, true]);
    }

    #[test]
    fn no_policy_beats_the_bound() {
        let rows = 50;
        let accesses: Vec<u32> = (0..4000u64)
            .map(|i| (i * i * 7919 % 211 % 50).min(i % 50) as u32)
            .collect();
        for kept in [1, 5, 20, 50] {
            let kept = capacity(kept);
            let best = best_hit_rate(kept, rows, &accesses, 0);
            let policies: [Box<dyn Policy>; 5] = [
                Box::new(Static::new(kept)),
                Box::new(Lru::new(kept)),
                Box::new(Clock::new(kept, rows)),
                Box::new(S3Fifo::new(kept, rows)),
                Box::new(TinyLfu::new(kept, &[0.0; 50])),
            ];
            // The static rows are there before they are asked for.
            let head_start = kept.get() as f64 / accesses.len() as f64;
            for mut policy in policies {
                assert!(hit_rate(&mut *policy, &accesses, 0) <= best + head_start);
            }
        }
        let best = best_hit_rate(capacity(2), 4, &[1, 2, 3, 1, 2, 3], 0);
        assert_eq!((6.0 * best).round(), 2.0);
    }
}
