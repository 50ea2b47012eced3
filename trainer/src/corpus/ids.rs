//! Token ids in as few bytes as the vocabulary allows.

use std::ops::Range;

/// A long run of token ids: two bytes each when the vocabulary has at most 65,536 entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenIds {
    /// Ids below 65,536.
    U16(Vec<u16>),
    /// Any ids.
    U32(Vec<u32>),
}

impl TokenIds {
    /// An empty run for ids below `vocab_size`.
    pub(super) fn for_vocab(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 {
            Self::U16(Vec::new())
        } else {
            Self::U32(Vec::new())
        }
    }

    /// Appends `ids`, which must be below the vocabulary size this was made for.
    pub(super) fn extend(&mut self, ids: &[u32]) {
        match self {
            Self::U16(all) => all.extend(ids.iter().map(|&id| {
                debug_assert!(id <= u32::from(u16::MAX));
                id as u16
            })),
            Self::U32(all) => all.extend_from_slice(ids),
        }
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Appends the ids at `range` to `out`.
    ///
    /// # Panics
    /// When `range` is not within `0..len`.
    pub(super) fn copy_range(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::U16(ids) => out.extend(ids[range].iter().map(|&id| u32::from(id))),
            Self::U32(ids) => out.extend_from_slice(&ids[range]),
        }
    }
}
