//! The policies that need no explanation.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::policy::Policy;

/// Always the rows served most in training, whatever is asked for.
#[derive(Debug)]
pub struct Static {
    capacity: u32,
}

impl Static {
    /// Keeps the first `capacity` rows.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let capacity = u32::try_from(capacity.get()).unwrap_or(u32::MAX);
        Self { capacity }
    }
}

impl Policy for Static {
    fn access(&mut self, row: u32) -> bool {
        row < self.capacity
    }
}

/// The row that was asked for least recently makes room.
#[derive(Debug)]
pub struct Lru {
    rows: LruCache<u32, ()>,
}

impl Lru {
    /// Keeps `capacity` rows.
    pub fn new(capacity: NonZeroUsize) -> Self {
        let rows = LruCache::new(capacity);
        Self { rows }
    }
}

impl Policy for Lru {
    fn access(&mut self, row: u32) -> bool {
        self.rows.put(row, ()).is_some()
    }
}
