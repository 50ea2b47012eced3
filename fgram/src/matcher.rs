//! Longest match: the f-gram with the most ids that ends at a position.
//!
//! The f-grams form a trie read from right to left. An f-gram of length n is stored as
//! (row id of its suffix of length n-1, its leftmost id) -> its own row id, so a look-up goes
//! from the last two ids outwards, one probe for each length, and stops at the first miss: the
//! set is closed under suffix, so nothing longer can match. By induction each hit compares the
//! whole f-gram exactly. At most K-1 probes a position, at most 16 bytes a key.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ngram::{MAX_N, TokenId};
use crate::shard::splitmix64;

/// Token ids and row ids stay below this: the bit marks the parent of bigrams.
pub const ID_LIMIT: u32 = 1 << 31;

/// The row id of an empty slot.
const EMPTY: u32 = u32::MAX;

/// The longest f-gram that ends at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Its length in tokens, 2 to K.
    pub len: u8,
    /// Its row id: its position among the keys the matcher was built from.
    pub row: u32,
}

/// One f-gram: 12 bytes.
#[derive(Clone, Copy)]
struct Slot {
    /// Row id of the suffix, or for a bigram `ID_LIMIT |` its last id.
    parent: u32,
    /// The leftmost id.
    token: TokenId,
    /// Row id of this f-gram.
    row: u32,
}

/// Finds longest matches. Immutable; a clone shares the memory.
#[derive(Clone)]
pub struct Matcher {
    /// Open addressing with linear probing at 3/4 load; at least one slot is empty.
    slots: Arc<[Slot]>,
    rows: u32,
    max_n: u8,
}

impl Matcher {
    /// Builds from f-grams in any order; the row id of a key is its position in `keys`.
    ///
    /// # Errors
    /// When `max_n` is not 2 to [`MAX_N`], a key has fewer than 2 or more than `max_n` ids, an id
    /// or the number of keys reaches [`ID_LIMIT`], a key comes twice, or its suffix is missing.
    pub fn build<'a>(keys: impl Iterator<Item = &'a [TokenId]> + Clone, max_n: u8) -> Result<Self> {
        check_max_n(max_n)?;
        let mut count = 0usize;
        for key in keys.clone() {
            check_key(key, max_n)?;
            count += 1;
        }
        let rows = u32::try_from(count).ok().filter(|&rows| rows < ID_LIMIT);
        let rows = rows.ok_or_else(|| {
            let problem = format!("{count} keys, at most {}", ID_LIMIT - 1);
            Error::argument("keys", problem)
        })?;
        let empty = Slot {
            parent: 0,
            token: 0,
            row: EMPTY,
        };
        let capacity = (count * 4 / 3).max(count + 1);
        // In its place from the start: a copy would need as much memory again.
        let mut shared: Arc<[Slot]> = std::iter::repeat_n(empty, capacity).collect();
        let slots = Arc::make_mut(&mut shared);
        for n in 2..=usize::from(max_n) {
            let of_length = keys.clone().zip(0u32..).filter(|(key, _)| key.len() == n);
            for (key, row) in of_length {
                insert(slots, key, row)?;
            }
        }
        Ok(Self {
            slots: shared,
            rows,
            max_n,
        })
    }

    /// The longest f-gram that ends at the last of `ids`, looking only inside `ids`.
    #[inline]
    pub fn longest(&self, ids: &[TokenId]) -> Option<Match> {
        longest(&self.slots, ids, self.max_n)
    }

    /// The row id of exactly these ids.
    pub fn row(&self, ids: &[TokenId]) -> Option<u32> {
        let found = self.longest(ids)?;
        (usize::from(found.len) == ids.len()).then_some(found.row)
    }

    /// Appends the longest match of each position `first..` of `ids` to `out`. `ids` is a piece
    /// of one document; those before `first` are context. With K-1 ids of context the answers
    /// are those of the whole document.
    pub fn tag(&self, ids: &[TokenId], first: usize, out: &mut Vec<Option<Match>>) {
        out.extend((first..ids.len()).map(|i| self.longest(&ids[..=i])));
    }

    /// Number of f-grams.
    pub fn len(&self) -> usize {
        self.rows as usize
    }

    /// Whether there are no f-grams at all.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// K: the longest f-gram allowed, in tokens.
    pub fn max_n(&self) -> u8 {
        self.max_n
    }

    /// Resident bytes of the index: at most 16 a key (from 3 keys on).
    pub fn memory_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.slots)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Matcher");
        shown
            .field("rows", &self.rows)
            .field("max_n", &self.max_n)
            .finish_non_exhaustive()
    }
}

/// K is 2 to [`MAX_N`] everywhere.
pub(crate) fn check_max_n(max_n: u8) -> Result<()> {
    if (2..=MAX_N).contains(&usize::from(max_n)) {
        return Ok(());
    }
    Err(Error::argument(
        "max_n",
        format!("{max_n} is not 2 to {MAX_N}"),
    ))
}

fn check_key(key: &[TokenId], max_n: u8) -> Result<()> {
    if !(2..=usize::from(max_n)).contains(&key.len()) {
        return Err(Error::fgram(
            key,
            format!("has {} ids, not 2 to {max_n}", key.len()),
        ));
    }
    match key.iter().find(|&&id| id >= ID_LIMIT) {
        Some(id) => Err(Error::fgram(
            key,
            format!("id {id} is not below {ID_LIMIT}"),
        )),
        None => Ok(()),
    }
}

/// Adds a key whose suffixes are all there.
fn insert(slots: &mut [Slot], key: &[TokenId], row: u32) -> Result<()> {
    let parent =
        parent_of(slots, key).ok_or_else(|| Error::fgram(key, "its suffix is not in the set"))?;
    let slot = find(slots, parent, key[0]);
    if slots[slot].row != EMPTY {
        return Err(Error::fgram(key, "comes twice"));
    }
    slots[slot] = Slot {
        parent,
        token: key[0],
        row,
    };
    Ok(())
}

/// What the slot of `key` names as its parent; `None` when the suffix is missing.
fn parent_of(slots: &[Slot], key: &[TokenId]) -> Option<u32> {
    if let [_, last] = key {
        return Some(ID_LIMIT | last);
    }
    let suffix = &key[1..];
    let found = longest(slots, suffix, suffix.len() as u8)?;
    (usize::from(found.len) == suffix.len()).then_some(found.row)
}

#[inline]
fn longest(slots: &[Slot], ids: &[TokenId], max_n: u8) -> Option<Match> {
    let (&last, before) = ids.split_last()?;
    if last >= ID_LIMIT {
        return None;
    }
    let mut parent = ID_LIMIT | last;
    let mut best = None;
    for (len, &token) in (2..=max_n).zip(before.iter().rev()) {
        let row = slots[find(slots, parent, token)].row;
        if row == EMPTY {
            break;
        }
        best = Some(Match { len, row });
        parent = row;
    }
    best
}

/// One probe: the slot of (parent, token), or the empty slot where it would go.
#[inline]
fn find(slots: &[Slot], parent: u32, token: TokenId) -> usize {
    #[cfg(test)]
    tests::PROBES.with(|probes| probes.set(probes.get() + 1));
    let hash = splitmix64(u64::from(parent) << 32 | u64::from(token));
    // The high half of hash * len spreads evenly over any number of slots.
    let mut i = ((u128::from(hash) * slots.len() as u128) >> 64) as usize;
    loop {
        let slot = &slots[i];
        if slot.row == EMPTY || (slot.parent == parent && slot.token == token) {
            return i;
        }
        i = if i + 1 == slots.len() { 0 } else { i + 1 };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Probes made by this thread.
        pub(super) static PROBES: Cell<usize> = const { Cell::new(0) };
    }

    fn matcher(keys: &[&[u32]], max_n: u8) -> Result<Matcher> {
        Matcher::build(keys.iter().copied(), max_n)
    }

    #[test]
    fn finds_the_longest_that_ends_here() {
        let keys: [&[u32]; 4] = [&[1, 2, 3], &[2, 3], &[1, 2], &[7, 7]];
        let m = matcher(&keys, 3).unwrap();
        assert_eq!(m.longest(&[9, 1, 2, 3]), Some(Match { len: 3, row: 0 }));
        assert_eq!(m.longest(&[2, 3]), Some(Match { len: 2, row: 1 }));
        assert_eq!(m.longest(&[1, 2, 3, 4]), None);
        assert_eq!(m.longest(&[7]), None);
        assert_eq!(m.longest(&[]), None);
        assert_eq!(m.row(&[1, 2]), Some(2));
        assert_eq!(m.row(&[0, 1, 2]), None);
    }

    #[test]
    fn never_makes_more_than_k_minus_1_probes() {
        let all: Vec<Vec<u32>> = (2..=5).flat_map(|n| all_grams(n, 3)).collect();
        let m = Matcher::build(all.iter().map(Vec::as_slice), 5).unwrap();
        for ids in all_grams(7, 3) {
            PROBES.with(|probes| probes.set(0));
            assert_eq!(m.longest(&ids).unwrap().len, 5);
            assert_eq!(PROBES.with(Cell::get), 4);
        }
        PROBES.with(|probes| probes.set(0));
        assert_eq!(m.longest(&[1, 1, 1, 1, 5]), None);
        assert_eq!(PROBES.with(Cell::get), 1, "stops at the first miss");
    }

    fn all_grams(n: u32, vocab: u32) -> impl Iterator<Item = Vec<u32>> {
        (0..vocab.pow(n)).map(move |x| (0..n).map(|i| x / vocab.pow(i) % vocab).collect())
    }

    #[test]
    fn refuses_what_breaks_its_rules() {
        let cases: [(&[&[u32]], &str); 6] = [
            (&[&[1]], "has 1 ids"),
            (&[&[1, 2], &[0, 1, 2], &[5, 0, 1, 2]], "has 4 ids"),
            (&[&[1, 2, 3]], "suffix"),
            (&[&[1, 2], &[1, 2]], "twice"),
            (&[&[ID_LIMIT, 0]], "not below"),
            (&[&[0, ID_LIMIT]], "not below"),
        ];
        for (keys, problem) in cases {
            let text = matcher(keys, 3).unwrap_err().to_string();
            assert!(text.contains(problem), "{text}");
        }
        assert!(matcher(&[], 1).is_err() && matcher(&[], 9).is_err());
    }

    #[test]
    fn an_empty_matcher_matches_nothing() {
        let m = matcher(&[], 5).unwrap();
        assert!(m.is_empty());
        assert_eq!(m.longest(&[0, 0, 0]), None);
    }

    #[test]
    fn huge_ids_do_not_alias_small_ones() {
        let m = matcher(&[&[1, 2]], 2).unwrap();
        assert_eq!(m.longest(&[1, ID_LIMIT | 2]), None);
        assert_eq!(m.longest(&[ID_LIMIT | 1, 2]), None);
    }

    #[test]
    fn memory_stays_within_16_bytes_a_key() {
        for count in [3u32, 4, 5, 1000, 4096] {
            let keys: Vec<[u32; 2]> = (0..count).map(|i| [i, i]).collect();
            let m = Matcher::build(keys.iter().map(|k| k.as_slice()), 2).unwrap();
            assert!(m.memory_bytes() <= 16 * keys.len());
            assert!(keys.iter().all(|k| m.row(k).is_some()));
        }
    }
}
