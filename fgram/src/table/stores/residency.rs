//! Which rows of a mapped file are in memory, asked seldom.
//!
//! Asking the system costs more than copying a warm row, so pages found in memory are believed to
//! stay there for a moment. A page that was pushed out within that moment is read by whoever
//! touches it, as any mapped page is: the answer costs time, never correctness.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::table::disk::mapping::Mapping;

/// Ticks a second.
const TICKS: u64 = 4;

/// Ticks for which a page stays believed.
const LIFE: u16 = 4;

/// Pages of a group: asked for at once, and remembered in one number.
const GROUP_PAGES: usize = 16;

/// Most groups remembered: 8 MiB of memory, 64 GiB of rows.
const MAX_ENTRIES: usize = 1 << 20;

/// Remembers pages lately found in memory. A group shares its entry with others; the last one
/// wins.
pub(crate) struct Residency {
    /// A power of two many.
    seen: Box<[AtomicU64]>,
    start: Instant,
}

/// What is remembered of one group; 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Number of the group and 1; 0 for nothing.
    group: u32,
    /// A bit for each page that is in memory, the first one lowest.
    pages: u16,
    /// When.
    tick: u16,
}

impl Seen {
    fn unpack(bits: u64) -> Self {
        Self {
            group: (bits >> 32) as u32,
            pages: (bits >> 16) as u16,
            tick: bits as u16,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.group) << 32 | u64::from(self.pages) << 16 | u64::from(self.tick)
    }
}

/// The group of a page, and its bit there. Files of 2^48 bytes have fewer than 2^32 groups.
fn group_and_bit(page: usize) -> (usize, u16) {
    (page / GROUP_PAGES, 1 << (page % GROUP_PAGES))
}

impl Residency {
    pub(crate) fn new(pages: usize) -> Self {
        let groups = pages.div_ceil(GROUP_PAGES);
        let entries = groups.next_power_of_two().min(MAX_ENTRIES);
        Self {
            seen: (0..entries).map(|_| AtomicU64::new(0)).collect(),
            start: Instant::now(),
        }
    }

    /// Whether all `pages` of `mapping` are in memory, as far as is known at `tick`.
    #[inline]
    pub(crate) fn holds(&self, mapping: &Mapping, pages: RangeInclusive<usize>, tick: u16) -> bool {
        let holds = |page| self.is_fresh(page, tick) || self.ask(mapping, page, tick);
        // Nearly all rows end on the page on which they begin.
        holds(*pages.start())
            && (pages.start() == pages.end() || (pages.start() + 1..=*pages.end()).all(holds))
    }

    /// Believes that `pages` are in memory: they were just read.
    pub(crate) fn note(&self, pages: RangeInclusive<usize>, tick: u16) {
        pages.for_each(|page| self.remember(page, tick));
    }

    /// The time by the clock of these answers.
    pub(crate) fn tick(&self, now: Instant) -> u16 {
        let since = now.saturating_duration_since(self.start);
        let parts = u64::from(since.subsec_millis()) * TICKS / 1000;
        (since.as_secs() * TICKS + parts) as u16
    }

    fn entry(&self, group: usize) -> &AtomicU64 {
        &self.seen[group & (self.seen.len() - 1)]
    }

    /// What is remembered of the group, unless it is too old.
    fn fresh(&self, group: usize, tick: u16) -> Option<Seen> {
        let seen = Seen::unpack(self.entry(group).load(Ordering::Relaxed));
        // Ticks wrap around after hours; a page believed for another moment does no harm.
        let fresh = seen.group == group as u32 + 1 && tick.wrapping_sub(seen.tick) <= LIFE;
        fresh.then_some(seen)
    }

    fn is_fresh(&self, page: usize, tick: u16) -> bool {
        let (group, bit) = group_and_bit(page);
        let seen = self.fresh(group, tick);
        seen.is_some_and(|seen| seen.pages & bit != 0)
    }

    fn remember(&self, page: usize, tick: u16) {
        let (group, bit) = group_and_bit(page);
        // Beside older ones it gets their age. Threads may undo each other's; it is asked again.
        let seen = self.fresh(group, tick).unwrap_or(Seen {
            group: group as u32 + 1,
            pages: 0,
            tick,
        });
        let seen = Seen {
            pages: seen.pages | bit,
            ..seen
        };
        self.entry(group).store(seen.pack(), Ordering::Relaxed);
    }

    /// Asks the system about the page and the others of its group.
    #[cold]
    fn ask(&self, mapping: &Mapping, page: usize, tick: u16) -> bool {
        if !mapping.may_ask() {
            return false;
        }
        let (group, bit) = group_and_bit(page);
        let mut resident = [0; GROUP_PAGES];
        mapping.resident(group * GROUP_PAGES, &mut resident);
        let pages = resident.iter().zip(0..);
        let pages = pages.fold(0, |pages, (state, i)| pages | u16::from(state & 1) << i);
        let seen = Seen {
            group: group as u32 + 1,
            pages,
            tick,
        };
        self.entry(group).store(seen.pack(), Ordering::Relaxed);
        pages & bit != 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::table::disk::page::page_bytes;

    fn mapping(pages: usize) -> Mapping {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; pages * page_bytes()]).unwrap();
        Mapping::open(&path).unwrap()
    }

    #[test]
    fn a_page_is_believed_for_a_moment_only() {
        let residency = Residency::new(128);
        let tick = |millis| residency.tick(residency.start + Duration::from_millis(millis));
        residency.remember(3, tick(0));
        assert!(residency.is_fresh(3, tick(0)) && residency.is_fresh(3, tick(1000)));
        assert!(!residency.is_fresh(3, tick(1300)));
        assert!(!residency.is_fresh(4, tick(0)), "another page of the group");
        residency.remember(4, tick(900));
        assert!(residency.is_fresh(3, tick(900)) && residency.is_fresh(4, tick(900)));
        assert!(!residency.is_fresh(4, tick(1300)), "as old as the first");
        assert!(!residency.is_fresh(131, tick(0)), "a group in its entry");
        residency.remember(131, tick(0));
        assert!(residency.is_fresh(131, tick(0)) && !residency.is_fresh(3, tick(0)));
    }

    #[test]
    fn pages_just_written_are_held_and_one_behind_the_end_is_not() {
        let mapping = mapping(40);
        let residency = Residency::new(mapping.pages());
        let now = residency.tick(Instant::now());
        assert_eq!(residency.holds(&mapping, 0..=39, now), mapping.may_ask());
        assert!(!residency.holds(&mapping, 39..=40, now));
        residency.note(40..=40, now);
        assert!(residency.holds(&mapping, 40..=40, now));
    }
}
