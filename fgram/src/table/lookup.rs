//! One look-up: token ids in, match lengths and distinct rows out.
//!
//! It has two parts, so that an async service may do the first on a worker of its runtime and
//! send only the second, when there is one, to a thread that may block.

use std::sync::atomic::Ordering;

use super::disk::prefetch::prefetch_all;
use super::memory::request::RowRequest;
use super::state::Table;
use crate::error::{Error, ErrorKind, Result};
use crate::matcher::{ID_LIMIT, Match};
use crate::ngram::TokenId;

/// How many rows before it is copied a row is asked for. All its cache lines are, so more would
/// push each other out of the first cache.
const COPY_AHEAD: usize = 2;

/// Rows that are looked for in memory before the disk is asked for those that were not there.
const ROWS_ASKED: usize = 16;

/// A run of token ids of one document. Matching never crosses its border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How many leading ids are context only: they take part in matches, but get no answer.
    pub context: u32,
    /// How many positions to answer, right after the context. At least 1.
    pub answers: u32,
}

/// The answer to a look-up. Reuse one to reuse its memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookupResult {
    /// For each answered position, the length of the longest f-gram that ends there, 2 to K; 0
    /// for none, and for positions of other shards.
    pub match_lengths: Vec<u8>,
    /// For each matched position, in order, which of `rows` it uses.
    pub row_index: Vec<u32>,
    /// The distinct rows, encoded, end to end, in the order of their first use.
    pub rows: Vec<u8>,
}

impl LookupResult {
    /// Whether every matched position has a row of its own, in order: `row_index` then says
    /// nothing.
    pub fn rows_are_in_order(&self) -> bool {
        // Indexes are given out in order of first use, so the last one tells.
        self.row_index
            .last()
            .is_none_or(|&last| last as usize + 1 == self.row_index.len())
            && self
                .row_index
                .iter()
                .zip(0u32..)
                .all(|(&index, i)| index == i)
    }

    fn clear(&mut self) {
        self.match_lengths.clear();
        self.row_index.clear();
        self.rows.clear();
    }
}

/// Whether the part of a look-up that finds rows not to be in memory asks the disk for them as well, which
/// may wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Asked,
    NotAsked,
}

/// Rows of a look-up that are not in memory: what [`Table::lookup_in_memory`] leaves to
/// [`Table::fetch_cold`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cold {
    rows: Vec<RowRequest>,
}

impl Cold {
    /// Number of rows, 1 or more.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

impl Table {
    /// Finds the longest f-gram that ends at each position to answer, and its row.
    ///
    /// `ids` holds the ids of all spans, end to end. A shard answers the positions it owns; 0
    /// for the others. Blocks on the disk for rows that are not in memory.
    ///
    /// # Errors
    /// When `spans` do not cover `ids` exactly, a span answers nothing, an id is not in the
    /// vocabulary, or a row is missing or damaged. `out` is then empty.
    pub fn lookup(&self, ids: &[TokenId], spans: &[Span], out: &mut LookupResult) -> Result<()> {
        match self.begin(ids, spans, out, Disk::Asked)? {
            Some(cold) => self.end(cold, out, Disk::Asked),
            None => Ok(()),
        }
    }

    /// The part of a look-up that does not wait for a disk: matches every position, and copies
    /// the rows that are in the hot set or, of a mapped table, in the page cache. `None` when
    /// that was all. Otherwise `out` has zeros for the rows still to fetch.
    ///
    /// # Errors
    /// As [`Table::lookup`]. `out` is then empty.
    pub fn lookup_in_memory(
        &self,
        ids: &[TokenId],
        spans: &[Span],
        out: &mut LookupResult,
    ) -> Result<Option<Cold>> {
        self.begin(ids, spans, out, Disk::NotAsked)
    }

    fn begin(
        &self,
        ids: &[TokenId],
        spans: &[Span],
        out: &mut LookupResult,
        disk: Disk,
    ) -> Result<Option<Cold>> {
        out.clear();
        self.check(ids, spans)?;
        self.noting_damage(out, |out| {
            self.check_not_lost()?;
            let rows = self.find(ids, spans, out)?;
            let cold = self.copy_from_memory(&rows, &mut out.rows, disk)?;
            self.counters.answered(rows.len() as u64, cold.len() as u64);
            Ok((!cold.is_empty()).then_some(Cold { rows: cold }))
        })
    }

    /// The other part: fetches what the first has left, into the `out` that it has filled. Blocks
    /// on the disk. Rows that another look-up is fetching are taken from there.
    ///
    /// # Errors
    /// When a row is missing or damaged, or `out` is not the one that goes with `cold`. `out` is
    /// then empty.
    pub fn fetch_cold(&self, cold: Cold, out: &mut LookupResult) -> Result<()> {
        self.end(cold, out, Disk::NotAsked)
    }

    fn end(&self, cold: Cold, out: &mut LookupResult, disk: Disk) -> Result<()> {
        self.noting_damage(out, |out| self.fetch(cold.rows, &mut out.rows, disk))
    }

    /// Does a part of a look-up. When it fails nothing is left in `out`; when that is because the
    /// table is damaged, the table is called so from then on.
    fn noting_damage<T>(
        &self,
        out: &mut LookupResult,
        part: impl FnOnce(&mut LookupResult) -> Result<T>,
    ) -> Result<T> {
        part(out).inspect_err(|error| {
            out.clear();
            if error.kind() == ErrorKind::DataLoss {
                self.damaged.store(true, Ordering::Relaxed);
            }
        })
    }

    fn check(&self, ids: &[TokenId], spans: &[Span]) -> Result<()> {
        if let Some(index) = spans.iter().position(|span| span.answers == 0) {
            return Err(Error::argument(
                "spans",
                format!("span {index} has no answers"),
            ));
        }
        // At most 2^64 / 2^33 spans fit into memory, so this cannot overflow.
        let lengths = spans
            .iter()
            .map(|span| u64::from(span.context) + u64::from(span.answers));
        let covered: u64 = lengths.sum();
        if covered != ids.len() as u64 {
            let problem = format!("they cover {covered} ids, but there are {}", ids.len());
            return Err(Error::argument("spans", problem));
        }
        let limit = self.manifest().vocab_size.min(ID_LIMIT);
        if let Some(index) = ids.iter().position(|&id| id >= limit) {
            let problem = format!(
                "id {} at {index} is not below vocab_size {limit}",
                ids[index]
            );
            return Err(Error::argument("token_ids", problem));
        }
        Ok(())
    }

    /// Matches every position to answer; returns the distinct rows in order of first use.
    fn find(&self, ids: &[TokenId], spans: &[Span], out: &mut LookupResult) -> Result<Vec<u32>> {
        let positions = spans.iter().map(|span| span.answers as usize).sum();
        let mut heads = Vec::with_capacity(positions);
        let mut rest = ids;
        for span in spans {
            let first = span.context as usize;
            let (document, after) = rest.split_at(first + span.answers as usize);
            rest = after;
            heads.extend((first + 1..=document.len()).map(|end| &document[..end]));
        }
        let mut matches = Vec::with_capacity(positions);
        self.index().longest_each(&heads, &mut matches)?;
        let mut rows = Vec::with_capacity(positions);
        let mut seen = Distinct::with_room_for(positions);
        for found in matches {
            let Some(Match { len, row }) = found else {
                out.match_lengths.push(0);
                continue;
            };
            out.match_lengths.push(len);
            let next = rows.len() as u32;
            let index = seen.entry(row, next, &rows);
            if index == next {
                rows.push(row);
            }
            out.row_index.push(index);
        }
        Ok(rows)
    }

    /// Appends the rows to `out`, each copied once and checked; zeros for those that are returned,
    /// which are not in memory.
    fn copy_from_memory(
        &self,
        rows: &[u32],
        out: &mut Vec<u8>,
        disk: Disk,
    ) -> Result<Vec<RowRequest>> {
        out.reserve(rows.len() * self.store().row_bytes());
        let mut cold = Vec::new();
        let mut stored = Vec::new();
        // To ask the system whether a page is in memory takes time, about a sixth of what the disk takes to
        // read one: the disk begins while the rest are asked for.
        let (part, soon) = match disk {
            Disk::Asked => (ROWS_ASKED, rows.len() > 1),
            Disk::NotAsked => (rows.len().max(1), false),
        };
        for (rows, first) in rows.chunks(part).zip((0..).step_by(part)) {
            let before = cold.len();
            stored.clear();
            self.store().in_memory(rows, &mut stored);
            self.copy_part((rows, &stored), first, out, &mut cold)?;
            if soon {
                self.store().read_soon(&cold[before..]);
            }
        }
        Ok(cold)
    }

    /// The same for a part of the rows that begins with number `first`, with what of it is stored in memory;
    /// the others go to `cold`.
    fn copy_part(
        &self,
        (rows, stored): (&[u32], &[Option<&[u8]>]),
        first: u32,
        out: &mut Vec<u8>,
        cold: &mut Vec<RowRequest>,
    ) -> Result<()> {
        let row_bytes = self.store().row_bytes();
        // The copy is checked, not what it was copied from; and while the next row is copied, when
        // its bytes have got into the cache.
        let mut unchecked = None;
        let check = |copy: Option<(u32, usize)>, out: &[u8]| match copy {
            Some((row, at)) => self.store().check(row, &out[at..at + row_bytes]),
            None => Ok(()),
        };
        for row in stored.iter().take(COPY_AHEAD).flatten() {
            prefetch_all(row);
        }
        for (at, (&row, bytes)) in rows.iter().zip(stored).enumerate() {
            if let Some(Some(ahead)) = stored.get(at + COPY_AHEAD) {
                prefetch_all(ahead);
            }
            if self.hot_set.append(row, out) {
                continue;
            }
            let copy = out.len();
            match bytes {
                Some(bytes) => {
                    out.extend_from_slice(bytes);
                    check(unchecked.replace((row, copy)), out)?;
                }
                None => {
                    out.resize(copy + row_bytes, 0);
                    let index = first + at as u32;
                    cold.push(RowRequest { row, index });
                }
            }
        }
        check(unchecked, out)
    }

    fn fetch(&self, cold: Vec<RowRequest>, out: &mut [u8], disk: Disk) -> Result<()> {
        let row_bytes = self.store().row_bytes();
        let held = out.len() / row_bytes;
        if cold.iter().any(|request| request.index as usize >= held) {
            let problem = format!("has {held} rows, fewer than the look-up it should go on with");
            return Err(Error::argument("out", problem));
        }
        let fetch = |rows: &[RowRequest], out: &mut [u8]| {
            if disk == Disk::NotAsked && rows.len() > 1 {
                self.store().read_soon(rows);
            }
            self.store().get_many(rows, out)?;
            // Kept before the flight ends, so that nobody in between misses them again.
            for request in rows {
                self.hot_set
                    .insert(request.row, &out[request.range(row_bytes)]);
            }
            Ok(())
        };
        let brought = self.flights.fetch(cold, row_bytes, out, fetch)?;
        self.counters.coalesced(brought);
        Ok(())
    }
}

/// Finds rows that a look-up has already met: open addressing, at most half full.
struct Distinct {
    /// Index into the rows met so far, or `FREE`.
    slots: Vec<u32>,
}

impl Distinct {
    const FREE: u32 = u32::MAX;

    fn with_room_for(rows: usize) -> Self {
        let slots = vec![Self::FREE; (2 * rows).next_power_of_two()];
        Self { slots }
    }

    /// The index of `row` among `rows`; a row not met yet gets `next`.
    fn entry(&mut self, row: u32, next: u32, rows: &[u32]) -> u32 {
        let mask = self.slots.len() - 1;
        // Row ids are dense; an odd factor spreads them, and the high bits are the better ones.
        let mut slot = (u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        loop {
            let index = self.slots[slot];
            if index == Self::FREE {
                self.slots[slot] = next;
                return next;
            }
            if rows[index as usize] == row {
                return index;
            }
            slot = (slot + 1) & mask;
        }
    }
}
