//! Many f-grams in two flat vectors.

use crate::error::{Error, Result};
use crate::ngram::{MAX_N, TokenId};

/// f-grams by position.
pub(crate) trait Keys: Sync {
    /// How many.
    fn len(&self) -> usize;

    /// The ids of one.
    ///
    /// # Panics
    /// When `index` is not below the length.
    fn get(&self, index: usize) -> &[TokenId];
}

impl Keys for KeyList {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn get(&self, index: usize) -> &[TokenId] {
        Self::get(self, index)
    }
}

/// f-grams by position; about `4 * (n + 1)` bytes each.
#[derive(Clone, Default)]
pub(crate) struct KeyList {
    /// All ids, end to end.
    ids: Vec<TokenId>,
    /// Where the ids of each key end.
    ends: Vec<u32>,
}

impl KeyList {
    pub(crate) fn with_capacity(keys: usize) -> Self {
        Self {
            ids: Vec::with_capacity(2 * keys),
            ends: Vec::with_capacity(keys),
        }
    }

    pub(crate) fn push(&mut self, key: &[TokenId]) -> Result<()> {
        self.ids.extend_from_slice(key);
        self.end_key()
    }

    pub(crate) fn push_id(&mut self, id: TokenId) {
        self.ids.push(id);
    }

    /// Makes the ids pushed since the last key a key.
    pub(crate) fn end_key(&mut self) -> Result<()> {
        let end = u32::try_from(self.ids.len())
            .map_err(|_| Error::argument("fgrams", "more than 2^32 token ids in all"))?;
        self.ends.push(end);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// # Panics
    /// When `index` is not below the length.
    pub(crate) fn get(&self, index: usize) -> &[TokenId] {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        &self.ids[start..self.ends[index] as usize]
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[TokenId]> + Clone {
        (0..self.len()).map(|index| self.get(index))
    }

    /// How many keys there are of each length; index n is length n.
    pub(crate) fn count_by_length(&self) -> [u64; MAX_N + 1] {
        let mut totals = [0; MAX_N + 1];
        self.iter().for_each(|key| totals[key.len()] += 1);
        totals
    }

    /// Checks every id against the vocabulary.
    pub(crate) fn check_vocab(&self, vocab_size: u32) -> Result<()> {
        if self.ids.iter().all(|&id| id < vocab_size) {
            return Ok(());
        }
        let wrong = |key: &&[TokenId]| key.iter().any(|&id| id >= vocab_size);
        let key = self.iter().find(wrong).unwrap_or_default();
        Err(Error::fgram(
            key,
            format!("has an id that is not below vocab_size {vocab_size}"),
        ))
    }
}
