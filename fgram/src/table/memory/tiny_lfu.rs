//! Which rows stay: W-TinyLFU (Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache
//! Admission Policy", 2017), two LRU lists with a door between them.
//!
//! Text asks for many rows once, and in one LRU list each of them pushes out a better one. Here a
//! new row comes into a small *window*. When it falls out of that, it replaces the least recently
//! used row of the *main* list only if it was asked for more often of late.

use std::fmt;
use std::num::NonZeroUsize;

use lru::LruCache;

/// The window has one in so many of the rows, and at least one.
const WINDOW_SHARE: usize = 100;

/// Most counts for each row that is kept; the counts of rows outside matter as much.
pub(crate) const COUNTS_A_ROW: usize = 16;

/// Counts are halved after this many look-ups for each row that is kept.
const LOOKUPS_A_ROW: usize = 10;

/// What a look-up adds to a count: so that a row asked for once is remembered over two halvings.
const ONE: u8 = 4;

/// Decides which rows stay, and gives each of them a slot: a number below the capacity, its own
/// while the row is kept. The bytes of rows are the caller's matter. Rows are numbered from 0, and
/// counts are kept by number.
///
/// A look-up is [`TinyLfu::get`], and after a miss [`TinyLfu::insert`].
pub struct TinyLfu {
    window: LruCache<u32, u32>,
    /// `None` when there is room for a single row.
    main: Option<LruCache<u32, u32>>,
    counts: Counts,
}

/// The slot of a new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The lowest one not given out yet.
    Next,
    /// That of a row that is gone.
    Freed(u32),
}

impl TinyLfu {
    /// Keeps `capacity` of the rows `0..rows`.
    pub fn new(capacity: NonZeroUsize, rows: usize) -> Self {
        let window = NonZeroUsize::new(capacity.get() / WINDOW_SHARE).unwrap_or(NonZeroUsize::MIN);
        let main = NonZeroUsize::new(capacity.get() - window.get());
        Self {
            window: LruCache::new(window),
            main: main.map(LruCache::new),
            counts: Counts::new(capacity, rows),
        }
    }

    /// Rows kept now.
    pub fn len(&self) -> usize {
        self.window.len() + self.main.as_ref().map_or(0, LruCache::len)
    }

    /// Whether no row is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that can be kept.
    pub fn capacity(&self) -> usize {
        let main = self.main.as_ref().map_or(0, |main| main.cap().get());
        self.window.cap().get() + main
    }

    /// The slot of a row that is asked for, if it is kept. Counts.
    pub fn get(&mut self, row: u32) -> Option<u32> {
        self.counts.add(row);
        let main = self.main.as_mut().and_then(|main| main.get(&row));
        main.or_else(|| self.window.get(&row)).copied()
    }

    /// Whether a row is kept.
    pub fn contains(&self, row: u32) -> bool {
        let main = self.main.as_ref().is_some_and(|main| main.contains(&row));
        main || self.window.contains(&row)
    }

    /// Keeps a row that is not kept yet, whose look-up has been counted by [`TinyLfu::get`]. The
    /// main list is filled first.
    pub fn insert(&mut self, row: u32) -> Slot {
        let next = self.len() as u32;
        if let Some(main) = &mut self.main
            && main.len() < main.cap().get()
        {
            main.put(row, next);
            return Slot::Next;
        }
        let Some((candidate, slot)) = self.window.push(row, next) else {
            return Slot::Next;
        };
        let freed = self.admit(candidate, slot);
        self.window.put(row, freed);
        Slot::Freed(freed)
    }

    /// A row in `slot` has left the window: it or the least recently used one of the main list
    /// goes. Returns the slot that comes free.
    fn admit(&mut self, candidate: u32, slot: u32) -> u32 {
        let Some(main) = &mut self.main else {
            return slot;
        };
        match main.peek_lru() {
            Some((&least, _)) if self.counts.of(candidate) > self.counts.of(least) => {
                main.push(candidate, slot).map_or(slot, |(_, freed)| freed)
            }
            _ => slot,
        }
    }

    /// Makes a row the most recently used one, if it is kept, as if it had been asked for once.
    /// The rows that a table starts with need that: without a count the first that comes along
    /// would push them out.
    pub fn promote(&mut self, row: u32) {
        self.counts.add(row);
        if let Some(main) = &mut self.main {
            main.promote(&row);
        }
        self.window.promote(&row);
    }
}

impl fmt::Debug for TinyLfu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TinyLfu")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

/// How often rows were asked for of late. Rows share a count when there are more than counts.
struct Counts {
    counts: Box<[u8]>,
    /// Look-ups until all are halved, and from one time to the next.
    left: usize,
    period: usize,
}

impl Counts {
    fn new(capacity: NonZeroUsize, rows: usize) -> Self {
        let period = LOOKUPS_A_ROW * capacity.get();
        let counts = rows.clamp(1, COUNTS_A_ROW * capacity.get());
        Self {
            counts: vec![0; counts].into(),
            left: period,
            period,
        }
    }

    fn of(&self, row: u32) -> u8 {
        self.counts[row as usize % self.counts.len()]
    }

    fn add(&mut self, row: u32) {
        let index = row as usize % self.counts.len();
        self.counts[index] = self.counts[index].saturating_add(ONE);
        self.left -= 1;
        if self.left == 0 {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.left = self.period;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn policy(capacity: usize, rows: usize) -> TinyLfu {
        TinyLfu::new(NonZeroUsize::new(capacity).unwrap(), rows)
    }

    #[test]
    fn rows_asked_for_once_do_not_push_out_those_asked_for_often() {
        let mut policy = policy(100, 1000);
        for row in 0..99 {
            policy.insert(row);
        }
        for _ in 0..2 {
            assert!((0..99).all(|row| policy.get(row).is_some()));
        }
        for row in 100..400 {
            assert_eq!(policy.get(row), None);
            policy.insert(row);
        }
        assert!((0..99).all(|row| policy.contains(row)));
        assert!(policy.contains(399) && policy.len() == 100);
    }

    #[test]
    fn a_row_asked_for_more_often_replaces_the_least_recently_used() {
        let mut policy = policy(3, 10);
        (0..3).for_each(|row| {
            policy.insert(row);
        });
        assert_eq!(
            (policy.get(0), policy.get(2), policy.get(2)),
            (Some(0), Some(2), Some(2))
        );
        // 2 was in the window; it goes on to the main list, into the slot of 1.
        assert_eq!(policy.insert(3), Slot::Freed(1));
        assert_eq!(
            [0, 1, 2, 3].map(|row| policy.contains(row)),
            [true, false, true, true]
        );
        assert_eq!((policy.get(3), policy.get(2)), (Some(1), Some(2)));
    }

    #[test]
    fn what_was_asked_for_often_long_ago_makes_room() {
        let mut policy = policy(2, 10);
        policy.insert(1);
        (0..100).for_each(|_| assert!(policy.get(1).is_some()));
        let asked = (0..10_000u32).take_while(|i| {
            let row = 2 + i % 2;
            if policy.get(row).is_none() {
                policy.insert(row);
            }
            policy.contains(1)
        });
        assert!(asked.count() < 1000, "counts are halved");
    }

    #[test]
    fn room_for_one_row_holds_the_last_one() {
        let mut policy = policy(1, 10);
        assert_eq!(policy.insert(4), Slot::Next);
        assert_eq!(policy.insert(5), Slot::Freed(0));
        assert!(policy.contains(5) && policy.len() == 1 && policy.capacity() == 1);
    }
}
