//! Counts of numbers, in a table that grows with the different ones.

/// Slots at first; a power of two.
const LEAST: usize = 1 << 10;

/// A number and its count; 0 marks a free slot.
type Slot = (u32, u64);

/// Open addressing over at most half-full slots.
#[derive(Debug, Default)]
pub(super) struct Tally {
    slots: Vec<Slot>,
    used: usize,
}

impl Tally {
    /// Counts each of `keys` once more.
    pub(super) fn add(&mut self, keys: &[u32]) {
        if self.slots.is_empty() {
            self.slots.resize(LEAST, (0, 0));
        }
        for &key in keys {
            let at = place(&self.slots, key);
            self.slots[at] = (key, self.slots[at].1 + 1);
            if self.slots[at].1 == 1 {
                self.used += 1;
                if self.used * 2 > self.slots.len() {
                    self.grow();
                }
            }
        }
    }

    /// How many different ones there are.
    pub(super) fn distinct(&self) -> usize {
        self.used
    }

    /// Appends those counted at least `needed` times, in no order, and forgets all.
    pub(super) fn drain(&mut self, needed: u64, out: &mut Vec<Slot>) {
        let needed = needed.max(1);
        out.extend(self.slots.iter().filter(|(_, count)| *count >= needed));
        self.used = 0;
        self.slots.clear();
    }

    fn grow(&mut self) {
        let larger = vec![(0, 0); 2 * self.slots.len()];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if slot.1 > 0 {
                let at = place(&self.slots, slot.0);
                self.slots[at] = slot;
            }
        }
    }
}

/// Where `key` is in `slots`, or the free slot where it would go.
fn place(slots: &[Slot], key: u32) -> usize {
    let mask = slots.len() - 1;
    // Multiplicative hashing (Knuth, TAOCP vol. 3, 6.4): the high bits are the good ones.
    let hash = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut at = (hash >> 32) as usize & mask;
    while slots[at].1 != 0 && slots[at].0 != key {
        at = (at + 1) & mask;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_forgets() {
        let mut tally = Tally::default();
        for different in [0, 1, 5 * LEAST as u32] {
            let spread = |i: u32| i.wrapping_mul(2_654_435_761);
            let keys: Vec<u32> = (0..3 * different)
                .map(|i| spread(i % (1 + i / 3)))
                .collect();
            tally.add(&keys);
            let mut sorted = keys;
            sorted.sort_unstable();
            let same = sorted.chunk_by(|a, b| a == b);
            let expected: Vec<Slot> = same.map(|same| (same[0], same.len() as u64)).collect();
            assert_eq!(tally.distinct(), expected.len());
            let mut found = Vec::new();
            tally.drain(2, &mut found);
            found.sort_unstable();
            let often = expected.into_iter().filter(|(_, count)| *count >= 2);
            assert_eq!(found, often.collect::<Vec<_>>());
        }
    }
}
