//! A run of token ids, short enough to be kept inline.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Index in the vocabulary.
pub type TokenId = u32;

/// Largest K that any file format here allows.
pub const MAX_N: usize = 8;

/// 1 to [`MAX_N`] token ids. Ordered by length first, then by ids: the order of ties in a rank.
#[derive(Clone, Copy)]
pub struct NGram {
    len: u8,
    ids: [TokenId; MAX_N],
}

impl NGram {
    /// Copies `ids`; `None` unless there are 1 to [`MAX_N`] of them.
    pub fn from_slice(ids: &[TokenId]) -> Option<Self> {
        if ids.is_empty() || ids.len() > MAX_N {
            return None;
        }
        let mut inline = [0; MAX_N];
        inline[..ids.len()].copy_from_slice(ids);
        Some(Self {
            len: ids.len() as u8,
            ids: inline,
        })
    }

    /// The ids.
    pub fn as_slice(&self) -> &[TokenId] {
        &self.ids[..usize::from(self.len)]
    }
}

impl AsRef<[TokenId]> for NGram {
    fn as_ref(&self) -> &[TokenId] {
        self.as_slice()
    }
}

impl PartialEq for NGram {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for NGram {}

impl Hash for NGram {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl Ord for NGram {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_len = self.len.cmp(&other.len);
        by_len.then_with(|| self.as_slice().cmp(other.as_slice()))
    }
}

impl PartialOrd for NGram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for NGram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NGram{:?}", self.as_slice())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn holds_one_to_max_n_ids() {
        assert_eq!(NGram::from_slice(&[]), None);
        assert_eq!(NGram::from_slice(&[0; MAX_N + 1]), None);
        let full: Vec<u32> = (0..MAX_N as u32).collect();
        assert_eq!(NGram::from_slice(&full).unwrap().as_slice(), full);
    }

    #[test]
    fn orders_shorter_first_then_by_ids() {
        let gram = |ids: &[u32]| NGram::from_slice(ids).unwrap();
        assert!(gram(&[9, 9]) < gram(&[0, 0, 0]));
        assert!(gram(&[1, 2]) < gram(&[1, 3]));
        // Trailing zeros are not padding.
        assert_ne!(gram(&[1, 0]), gram(&[1]));
    }
}
