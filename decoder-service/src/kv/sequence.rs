//! The blocks of one sequence.

use scone_model::KV_BLOCK_POSITIONS;

use super::{blocks::Blocks, prefix::Prefix};

/// All blocks, and whether texts share them.
#[derive(Debug)]
pub struct Pool {
    blocks: Blocks,
    shares: bool,
}

/// What a sequence has of the pool. Must be given back to it.
#[derive(Debug)]
#[must_use]
pub struct SequenceBlocks {
    ids: Vec<u32>,
    /// The text of the first `named` blocks.
    text: Prefix,
    named: usize,
    /// Positions that were there already.
    cached: usize,
    /// Whether what it computes is what anybody would compute.
    sound: bool,
}

impl SequenceBlocks {
    /// Blocks of the pool, in order of positions.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Positions that need not be computed.
    pub fn cached(&self) -> usize {
        self.cached
    }
}

impl Pool {
    /// A pool of so many blocks; `shares` finds texts again.
    pub fn new(blocks: usize, shares: bool) -> Self {
        Self {
            blocks: Blocks::new(blocks),
            shares,
        }
    }

    /// Blocks in use.
    pub fn used(&self) -> usize {
        self.blocks.count() - self.blocks.available()
    }

    /// Whether equal beginnings are shared.
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// Blocks for all these ids, under a table; `None` when there are not enough. At least the
    /// last id is left to compute, as its logits are wanted.
    pub fn admit(&mut self, ids: &[u32], table_id: Option<&str>) -> Option<SequenceBlocks> {
        self.admit_with(ids, table_id, self.shares)
    }

    /// As [`admit`](Self::admit), with all ids left to compute: the logits of all are wanted.
    pub fn admit_uncached(
        &mut self,
        ids: &[u32],
        table_id: Option<&str>,
    ) -> Option<SequenceBlocks> {
        self.admit_with(ids, table_id, false)
    }

    fn admit_with(
        &mut self,
        ids: &[u32],
        table_id: Option<&str>,
        reuse: bool,
    ) -> Option<SequenceBlocks> {
        let mut of = SequenceBlocks {
            ids: Vec::new(),
            text: Prefix::of_table(table_id),
            named: 0,
            cached: 0,
            sound: true,
        };
        if reuse {
            let most = ids.len().saturating_sub(1) / KV_BLOCK_POSITIONS;
            for ids in ids.chunks_exact(KV_BLOCK_POSITIONS).take(most) {
                let text = of.text.then(ids);
                let Some(block) = self.blocks.find(text) else {
                    break;
                };
                of.ids.push(block);
                (of.text, of.named) = (text, of.named + 1);
            }
            of.cached = of.named * KV_BLOCK_POSITIONS;
        }
        if self.grow(&mut of, ids.len()) {
            return Some(of);
        }
        self.give_back(of);
        None
    }

    /// Takes blocks until there is room for so many positions; whether there is.
    pub fn grow(&mut self, of: &mut SequenceBlocks, positions: usize) -> bool {
        let needed = positions.div_ceil(KV_BLOCK_POSITIONS);
        if needed.saturating_sub(of.ids.len()) > self.blocks.available() {
            return false;
        }
        while of.ids.len() < needed {
            let Some(block) = self.blocks.take() else {
                return false;
            };
            of.ids.push(block);
        }
        true
    }

    /// The first `computed` of the ids are computed now; `sound` unless the last part of them took
    /// the token embedding because nobody answered for their rows.
    pub fn computed(&mut self, of: &mut SequenceBlocks, ids: &[u32], computed: usize, sound: bool) {
        of.sound &= sound;
        if !self.shares || !of.sound {
            return;
        }
        let whole = computed / KV_BLOCK_POSITIONS;
        for block in of.named..whole {
            let start = block * KV_BLOCK_POSITIONS;
            of.text = of.text.then(&ids[start..start + KV_BLOCK_POSITIONS]);
            self.blocks.publish(of.ids[block], of.text);
        }
        of.named = of.named.max(whole);
    }

    /// Takes a sequence's blocks back. The end of its text is forgotten before the beginning.
    pub fn give_back(&mut self, of: SequenceBlocks) {
        for &block in of.ids.iter().rev() {
            self.blocks.give_back(block);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ids(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    /// Admits and computes a whole text.
    fn run(pool: &mut Pool, ids: &[u32], table: Option<&str>) -> SequenceBlocks {
        let mut of = pool.admit(ids, table).unwrap();
        pool.computed(&mut of, ids, ids.len(), true);
        of
    }

    #[test]
    fn a_text_that_begins_alike_shares_whole_blocks() {
        let mut pool = Pool::new(20, true);
        let first = run(&mut pool, &ids(40), Some("t"));
        assert_eq!((first.cached(), first.ids().len()), (0, 3));
        let mut other = ids(40);
        other[20] = 99;
        let second = run(&mut pool, &other, Some("t"));
        assert_eq!((second.cached(), second.ids()[0]), (16, first.ids()[0]));
        assert_ne!(second.ids()[1], first.ids()[1]);
        // Another table has other rows.
        assert_eq!(run(&mut pool, &ids(40), None).cached(), 0);
        // The last id is always computed.
        assert_eq!(pool.admit(&ids(32), Some("t")).unwrap().cached(), 16);
        assert_eq!(pool.admit(&ids(33), Some("t")).unwrap().cached(), 32);
    }

    #[test]
    fn what_fell_back_is_not_shared_nor_what_comes_after() {
        let mut pool = Pool::new(20, true);
        let mut of = pool.admit(&ids(48), None).unwrap();
        pool.computed(&mut of, &ids(48), 16, true);
        pool.computed(&mut of, &ids(48), 20, false);
        pool.computed(&mut of, &ids(48), 48, true);
        pool.give_back(of);
        assert_eq!(pool.admit(&ids(48), None).unwrap().cached(), 16);
    }

    #[test]
    fn without_room_nothing_is_taken() {
        let mut pool = Pool::new(4, true);
        let mut first = pool.admit(&ids(40), None).unwrap();
        assert!(pool.admit(&ids(17), Some("t")).is_none());
        assert_eq!(pool.used(), 3);
        assert!(pool.grow(&mut first, 64));
        assert!(!pool.grow(&mut first, 65));
        pool.give_back(first);
        assert_eq!(pool.used(), 0);
        let mut off = Pool::new(8, false);
        let of = run(&mut off, &ids(40), None);
        off.give_back(of);
        assert_eq!(off.admit(&ids(40), None).unwrap().cached(), 0);
    }
}
