//! One look-up: token ids in, match lengths and distinct rows out.

use super::open::Table;
use super::store::RowKey;
use crate::error::{Error, Result};
use crate::matcher::{ID_LIMIT, Match};
use crate::ngram::TokenId;

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
        out.clear();
        self.check(ids, spans)?;
        let rows = self.find(ids, spans, out);
        let fetched = self.fetch(&rows, out);
        if fetched.is_err() {
            out.clear();
        }
        fetched
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
    fn find<'a>(
        &self,
        ids: &'a [TokenId],
        spans: &[Span],
        out: &mut LookupResult,
    ) -> Vec<RowKey<'a>> {
        let mut rows: Vec<RowKey<'a>> = Vec::new();
        let mut seen =
            Distinct::with_room_for(spans.iter().map(|span| span.answers as usize).sum());
        let mut rest = ids;
        for span in spans {
            let first = span.context as usize;
            let (document, after) = rest.split_at(first + span.answers as usize);
            rest = after;
            for end in first + 1..=document.len() {
                let Some(Match { len, row }) = self.matcher().longest(&document[..end]) else {
                    out.match_lengths.push(0);
                    continue;
                };
                out.match_lengths.push(len);
                let next = rows.len() as u32;
                let index = seen.entry(row, next, &rows);
                if index == next {
                    rows.push(RowKey {
                        row,
                        ids: &document[end - usize::from(len)..end],
                        place: next,
                    });
                }
                out.row_index.push(index);
            }
        }
        rows
    }

    /// Copies the rows from the hot set, and those it lacks from the store.
    fn fetch(&self, rows: &[RowKey<'_>], out: &mut LookupResult) -> Result<()> {
        let row_bytes = self.store().row_bytes();
        out.rows.resize(rows.len() * row_bytes, 0);
        let mut cold = Vec::new();
        for (key, place) in rows.iter().zip(out.rows.chunks_exact_mut(row_bytes)) {
            if !self.hot_set().get(key.row, place) {
                cold.push(*key);
            }
        }
        if cold.is_empty() {
            return Ok(());
        }
        self.store().get_many(&cold, &mut out.rows)?;
        for key in &cold {
            let start = key.place as usize * row_bytes;
            self.hot_set()
                .insert(key.row, &out.rows[start..start + row_bytes]);
        }
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
    fn entry(&mut self, row: u32, next: u32, rows: &[RowKey<'_>]) -> u32 {
        let mask = self.slots.len() - 1;
        // Row ids are dense; an odd factor spreads them, and the high bits are the better ones.
        let mut slot = (u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        loop {
            let index = self.slots[slot];
            if index == Self::FREE {
                self.slots[slot] = next;
                return next;
            }
            if rows[index as usize].row == row {
                return index;
            }
            slot = (slot + 1) & mask;
        }
    }
}
