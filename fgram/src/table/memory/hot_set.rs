//! The rows kept in memory: those asked for lately and often, within a byte budget.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tiny_lfu::{self, Slot, TinyLfu};

/// What one kept row costs beside its bytes: the entry of the LRU list (32 with the allocator's
/// share) and of its hash map (about 40 just after the map has grown), and counts.
pub const HOT_ROW_OVERHEAD: u64 = 72 + tiny_lfu::COUNTS_A_ROW as u64;

/// More segments than this do not help a handful of reading threads.
const MAX_SEGMENTS: usize = 16;

/// Rows a segment has at least, so that a hot set of a few rows is one segment.
const LEAST_SEGMENT_ROWS: usize = 64;

/// Counters of a table's rows since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HotSetStats {
    /// Rows found in memory: in the hot set or, of a mapped table, in the page cache.
    pub hits: u64,
    /// Rows that were not, and had to be fetched. The warming at start is not counted.
    pub misses: u64,
    /// Misses that waited for another look-up's fetch of the same row; counted in `misses` too.
    pub coalesced: u64,
    /// Rows that made room for others.
    pub evictions: u64,
    /// Memory of the hot set in use: rows and their overhead; never above the budget.
    pub bytes: u64,
    /// Rows in the hot set.
    pub rows: u64,
}

/// Rows by row id. Split into segments with a lock each, so that readers seldom meet.
pub(crate) struct HotSet {
    segments: Vec<Mutex<Segment>>,
    row_bytes: usize,
    evictions: AtomicU64,
}

struct Segment {
    /// The slot of each row in `rows`; knows rows by their number within the segment.
    policy: TinyLfu,
    /// Grows to the capacity of the policy, then slots are reused.
    rows: Vec<u8>,
}

impl HotSet {
    /// Holds as many of the table's rows as fit into `budget_bytes`; possibly none.
    pub(crate) fn new(budget_bytes: u64, row_bytes: usize, table_rows: usize) -> Self {
        let fit = budget_bytes / (row_bytes as u64 + HOT_ROW_OVERHEAD);
        let capacity = usize::try_from(fit).unwrap_or(usize::MAX).min(table_rows);
        // Row ids are spread evenly by their low bits, so this many per segment hold them all.
        let count = (capacity / LEAST_SEGMENT_ROWS).clamp(1, MAX_SEGMENTS);
        let sizes = (0..count).map(|s| capacity / count + usize::from(s < capacity % count));
        let segments = sizes.filter_map(NonZeroUsize::new).map(|size| {
            Mutex::new(Segment {
                policy: TinyLfu::new(size, table_rows.div_ceil(count)),
                rows: Vec::new(),
            })
        });
        Self {
            segments: segments.collect(),
            row_bytes,
            evictions: AtomicU64::new(0),
        }
    }

    /// Rows that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| lock(segment).policy.capacity())
            .sum()
    }

    /// Appends a row that is asked for to `out`, if it is here.
    pub(crate) fn append(&self, row: u32, out: &mut Vec<u8>) -> bool {
        let Some((mut segment, number)) = self.segment(row) else {
            return false;
        };
        let Some(slot) = segment.policy.get(number) else {
            return false;
        };
        let start = slot as usize * self.row_bytes;
        out.extend_from_slice(&segment.rows[start..start + self.row_bytes]);
        true
    }

    /// Keeps a row; another of its segment makes room.
    pub(crate) fn insert(&self, row: u32, bytes: &[u8]) {
        let Some((mut segment, number)) = self.segment(row) else {
            return;
        };
        if segment.policy.contains(number) {
            // Another reader missed it at the same time; rows never change.
            return;
        }
        match segment.policy.insert(number) {
            Slot::Next => segment.rows.extend_from_slice(bytes),
            Slot::Freed(slot) => {
                self.evictions.fetch_add(1, Ordering::Relaxed);
                let start = slot as usize * self.row_bytes;
                segment.rows[start..start + self.row_bytes].copy_from_slice(bytes);
            }
        }
    }

    /// Makes a row the most recently used one, if it is here. Not counted.
    pub(crate) fn promote(&self, row: u32) {
        if let Some((mut segment, number)) = self.segment(row) {
            segment.policy.promote(number);
        }
    }

    /// Rows that made room for others.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Rows held now.
    pub(crate) fn rows(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| lock(segment).policy.len() as u64)
            .sum()
    }

    /// Memory in use, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows() * (self.row_bytes as u64 + HOT_ROW_OVERHEAD)
    }

    /// The segment of a row, and the row's number in it.
    fn segment(&self, row: u32) -> Option<(MutexGuard<'_, Segment>, u32)> {
        match self.segments.len() {
            0 => None,
            count => {
                let segment = lock(&self.segments[row as usize % count]);
                Some((segment, row / count as u32))
            }
        }
    }
}

/// No code that can panic runs while a segment is half-changed, so a poisoned one is sound.
fn lock(segment: &Mutex<Segment>) -> MutexGuard<'_, Segment> {
    segment.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row `r` is four bytes of `r`.
    fn row(r: u32) -> [u8; 4] {
        [r as u8; 4]
    }

    fn holds(hot: &HotSet, r: u32) -> bool {
        let mut out = vec![9];
        let found = hot.append(r, &mut out);
        let expected = if found { &row(r)[..] } else { &[] };
        assert_eq!((out[0], &out[1..]), (9, expected), "row {r}");
        found
    }

    #[test]
    fn drops_one_row_and_never_mixes_slots_up() {
        let hot = HotSet::new(3 * (4 + HOT_ROW_OVERHEAD), 4, 100);
        (0..3).for_each(|r| hot.insert(r, &row(r)));
        assert!(holds(&hot, 0) && holds(&hot, 2) && !holds(&hot, 3));
        hot.insert(3, &row(3));
        assert!(!holds(&hot, 1) && holds(&hot, 0) && holds(&hot, 2) && holds(&hot, 3));
        assert_eq!((hot.rows(), hot.evictions()), (3, 1));
        assert_eq!(hot.bytes(), 3 * (4 + HOT_ROW_OVERHEAD));
    }

    #[test]
    fn a_budget_below_one_row_keeps_nothing() {
        let hot = HotSet::new(4 + HOT_ROW_OVERHEAD - 1, 4, 100);
        hot.insert(1, &row(1));
        assert!(!holds(&hot, 1));
        assert_eq!((hot.capacity(), hot.bytes()), (0, 0));
    }

    #[test]
    fn stays_within_its_budget_and_never_mixes_rows_up() {
        let budget = 5000 * (4 + HOT_ROW_OVERHEAD) + 7;
        let hot = HotSet::new(budget, 4, 20_000);
        assert_eq!(hot.capacity(), 5000);
        for step in 0..60_000u32 {
            let r = step.wrapping_mul(2_654_435_761) % 20_000;
            if !holds(&hot, r) {
                hot.insert(r, &row(r));
            }
        }
        assert_eq!(hot.rows(), 5000);
        assert!(hot.bytes() <= budget && hot.evictions() > 0);
    }

    #[test]
    fn holds_a_whole_table_that_fits() {
        let hot = HotSet::new(u64::MAX, 4, 1000);
        (0..1000).for_each(|r| hot.insert(r, &row(r)));
        assert!((0..1000).all(|r| holds(&hot, r)));
        assert_eq!(hot.evictions(), 0);
    }

    #[test]
    fn readers_in_parallel_see_whole_rows() {
        let hot = HotSet::new(200 * (4 + HOT_ROW_OVERHEAD), 4, 1000);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let hot = &hot;
                scope.spawn(move || {
                    for step in 0..20_000u32 {
                        let r = (step * 7 + thread * 13) % 400;
                        if !holds(hot, r) {
                            hot.insert(r, &row(r));
                        }
                    }
                });
            }
        });
        assert!(hot.rows() <= 200 && hot.evictions() > 0);
    }
}
