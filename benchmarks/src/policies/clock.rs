//! CLOCK: LRU without lists.

use std::num::NonZeroUsize;

use super::policy::Policy;

/// Second chance: a hand goes round, and takes the first row that was not asked for since its last
/// visit. What LRU costs without its lists.
#[derive(Debug)]
pub struct Clock {
    /// For each slot, its row and whether it was asked for.
    slots: Vec<(u32, bool)>,
    /// For each row of the table, its slot.
    slot_of: Vec<Option<u32>>,
    capacity: usize,
    hand: usize,
}

impl Clock {
    /// Keeps `capacity` of `table_rows` rows.
    pub fn new(capacity: NonZeroUsize, table_rows: usize) -> Self {
        Self {
            slots: Vec::new(),
            slot_of: vec![None; table_rows],
            capacity: capacity.get(),
            hand: 0,
        }
    }
}

impl Policy for Clock {
    fn access(&mut self, row: u32) -> bool {
        if let Some(slot) = self.slot_of[row as usize] {
            self.slots[slot as usize].1 = true;
            return true;
        }
        if self.slots.len() < self.capacity {
            self.slot_of[row as usize] = Some(self.slots.len() as u32);
            self.slots.push((row, false));
            return false;
        }
        while std::mem::take(&mut self.slots[self.hand].1) {
            self.hand = (self.hand + 1) % self.capacity;
        }
        let (gone, _) = std::mem::replace(&mut self.slots[self.hand], (row, false));
        self.slot_of[gone as usize] = None;
        self.slot_of[row as usize] = Some(self.hand as u32);
        self.hand = (self.hand + 1) % self.capacity;
        false
    }
}
