//! Which rows of a mapped file are in memory, asked seldom.
//!
//! Asking the system costs more than copying a warm row, so pages found in memory are believed to
//! stay there for a moment. A page that was pushed out within that moment is read by whoever
//! touches it, as any mapped page is: the answer costs time, never correctness.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::mapping::Mapping;

/// Ticks a second.
const TICKS: u64 = 4;

/// Ticks for which a page stays believed.
const LIFE: u16 = 4;

/// Pages asked for at once, around one that is not known.
const ASK_PAGES: usize = 16;

/// Most pages remembered: 8 MiB of memory, 4 GiB of rows.
const MAX_ENTRIES: usize = 1 << 20;

/// Remembers pages lately found in memory. A page shares its place with others; the last one wins.
pub(super) struct Residency {
    /// `page + 1` in the upper 48 bits, the tick in the lower 16; a power of two many.
    seen: Box<[AtomicU64]>,
    start: Instant,
}

impl Residency {
    pub(super) fn new(pages: usize) -> Self {
        let entries = pages.next_power_of_two().min(MAX_ENTRIES);
        Self {
            seen: (0..entries).map(|_| AtomicU64::new(0)).collect(),
            start: Instant::now(),
        }
    }

    /// Whether all `pages` of `mapping` are in memory, as far as is known.
    #[inline]
    pub(super) fn holds(
        &self,
        mapping: &Mapping,
        mut pages: RangeInclusive<usize>,
        now: Instant,
    ) -> bool {
        let tick = self.tick(now);
        pages.all(|page| self.is_fresh(page, tick) || self.ask(mapping, page, tick))
    }

    /// Believes that `pages` are in memory: they were just read.
    pub(super) fn note(&self, pages: RangeInclusive<usize>, now: Instant) {
        let tick = self.tick(now);
        pages.for_each(|page| self.remember(page, tick));
    }

    fn tick(&self, now: Instant) -> u16 {
        let since = now.saturating_duration_since(self.start);
        let parts = u64::from(since.subsec_millis()) * TICKS / 1000;
        (since.as_secs() * TICKS + parts) as u16
    }

    fn entry(&self, page: usize) -> &AtomicU64 {
        &self.seen[page & (self.seen.len() - 1)]
    }

    fn is_fresh(&self, page: usize, tick: u16) -> bool {
        let entry = self.entry(page).load(Ordering::Relaxed);
        // Ticks wrap around after hours; a page believed for another moment does no harm.
        entry >> 16 == page as u64 + 1 && tick.wrapping_sub(entry as u16) <= LIFE
    }

    fn remember(&self, page: usize, tick: u16) {
        let entry = (page as u64 + 1) << 16 | u64::from(tick);
        self.entry(page).store(entry, Ordering::Relaxed);
    }

    /// Asks the system about the page and its neighbours.
    #[cold]
    fn ask(&self, mapping: &Mapping, page: usize, tick: u16) -> bool {
        if !mapping.may_ask() {
            return false;
        }
        let first = page / ASK_PAGES * ASK_PAGES;
        let mut resident = [0; ASK_PAGES];
        mapping.resident(first, &mut resident);
        for (neighbour, state) in (first..).zip(resident) {
            if state & 1 == 1 {
                self.remember(neighbour, tick);
            }
        }
        resident[page - first] & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::super::mapping::page_bytes;
    use super::*;

    fn mapping(pages: usize) -> Mapping {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; pages * page_bytes()]).unwrap();
        Mapping::open(&path).unwrap()
    }

    #[test]
    fn a_page_is_believed_for_a_moment_only() {
        let residency = Residency::new(8);
        let tick = |millis| residency.tick(residency.start + Duration::from_millis(millis));
        residency.remember(3, tick(0));
        assert!(residency.is_fresh(3, tick(0)) && residency.is_fresh(3, tick(1000)));
        assert!(!residency.is_fresh(3, tick(1300)));
        assert!(
            !residency.is_fresh(11, tick(0)),
            "another page in its place"
        );
        residency.remember(11, tick(0));
        assert!(residency.is_fresh(11, tick(0)) && !residency.is_fresh(3, tick(0)));
    }

    #[test]
    fn pages_just_written_are_held_and_one_behind_the_end_is_not() {
        let mapping = mapping(40);
        let residency = Residency::new(mapping.pages());
        let now = Instant::now();
        assert_eq!(residency.holds(&mapping, 0..=39, now), mapping.may_ask());
        assert!(!residency.holds(&mapping, 39..=40, now));
        residency.note(40..=40, now);
        assert!(residency.holds(&mapping, 40..=40, now));
    }
}
