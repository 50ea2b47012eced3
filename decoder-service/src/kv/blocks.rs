//! Blocks, who counts on them, and what text they hold.

use std::collections::{BTreeMap, HashMap};

use super::prefix::Prefix;

/// All blocks of a pool.
#[derive(Debug)]
pub struct Blocks {
    all: Vec<Block>,
    /// Blocks that nobody has and that hold nothing of use.
    empty: Vec<u32>,
    /// Blocks that nobody has and that hold a text, by when they were given back.
    idle: BTreeMap<u64, u32>,
    by_text: HashMap<Prefix, u32>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Sequences that have it.
    users: u32,
    /// The text that ends with this block.
    text: Option<Prefix>,
    /// Key in `idle`.
    idle_since: u64,
}

impl Blocks {
    /// So many blocks, all empty.
    pub fn new(count: usize) -> Self {
        Self {
            all: vec![Block::default(); count],
            empty: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            by_text: HashMap::new(),
            clock: 0,
        }
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// A block for somebody's use; what it held is forgotten. `None` when all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let id = match self.empty.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.idle.pop_first()?;
                if let Some(text) = self.all[id as usize].text.take() {
                    self.by_text.remove(&text);
                }
                id
            }
        };
        self.all[id as usize].users = 1;
        Some(id)
    }

    /// The block that ends this text, which gets one user more.
    pub fn find(&mut self, text: Prefix) -> Option<u32> {
        let &id = self.by_text.get(&text)?;
        let block = &mut self.all[id as usize];
        if block.users == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.users += 1;
        Some(id)
    }

    /// Says what a whole block in use holds, so that others find it.
    pub fn publish(&mut self, id: u32, text: Prefix) {
        let block = &mut self.all[id as usize];
        if block.text.is_none() && !self.by_text.contains_key(&text) {
            block.text = Some(text);
            self.by_text.insert(text, id);
        }
    }

    /// One user less.
    pub fn give_back(&mut self, id: u32) {
        let block = &mut self.all[id as usize];
        block.users = block.users.saturating_sub(1);
        if block.users > 0 {
            return;
        }
        if block.text.is_some() {
            self.clock += 1;
            block.idle_since = self.clock;
            self.idle.insert(self.clock, id);
        } else {
            self.empty.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn blocks_are_found_while_their_memory_is_not_needed() {
        let texts: Vec<Prefix> = (0..3).map(|i| Prefix::of_table(None).then(&[i])).collect();
        let mut blocks = Blocks::new(3);
        let taken: Vec<u32> = (0..3).map(|_| blocks.take().unwrap()).collect();
        assert_eq!((blocks.take(), blocks.available()), (None, 0));
        blocks.publish(taken[0], texts[0]);
        blocks.publish(taken[1], texts[1]);
        // A second block with the same text stays unknown.
        blocks.publish(taken[2], texts[0]);
        for &id in &taken {
            blocks.give_back(id);
        }
        assert_eq!(blocks.available(), 3);
        // The one that holds nothing goes first, then the one unused longest.
        assert_eq!(blocks.find(texts[0]), Some(taken[0]));
        assert_eq!(blocks.take(), Some(taken[2]));
        assert_eq!(blocks.take(), Some(taken[1]));
        assert_eq!(blocks.find(texts[1]), None);
        assert_eq!((blocks.take(), blocks.find(texts[2])), (None, None));
        // Two users: it is free after both.
        assert_eq!(blocks.find(texts[0]), Some(taken[0]));
        blocks.give_back(taken[0]);
        assert_eq!(blocks.available(), 0);
        blocks.give_back(taken[0]);
        assert_eq!(blocks.available(), 1);
    }
}
