//! W-TinyLFU: the code of the hot set, driven without rows.

use std::num::NonZeroUsize;

use scone_fgram::table::TinyLfu;

use super::policy::Policy;

/// The policy that tables ship with (W-TinyLFU), driven as a hot set drives it.
impl Policy for TinyLfu {
    fn access(&mut self, row: u32) -> bool {
        let hit = self.get(row).is_some();
        if !hit {
            self.insert(row);
        }
        hit
    }
}

/// The shipped policy with the first `capacity` of `table_rows` rows in it, as `Table::open` warms a
/// hot set: each asked for once, the one served most last.
pub fn warm_tiny_lfu(capacity: NonZeroUsize, table_rows: usize) -> TinyLfu {
    let mut policy = TinyLfu::new(capacity, table_rows);
    warm(&mut policy, table_rows);
    policy
}

/// The same, but counts begin at what the `shares` of look-ups in training, one for each row of the
/// table, let expect in one period of counting: ten look-ups for each row that is kept.
pub fn trained_tiny_lfu(capacity: NonZeroUsize, shares: &[f64]) -> TinyLfu {
    let mut policy = TinyLfu::new(capacity, shares.len());
    let period = 10.0 * capacity.get() as f64;
    for (share, row) in shares.iter().zip(0..) {
        let expected = (share * period).round() as usize;
        (0..expected).for_each(|_| policy.promote(row));
    }
    warm(&mut policy, shares.len());
    policy
}

fn warm(policy: &mut TinyLfu, table_rows: usize) {
    let rows = policy.capacity().min(table_rows) as u32;
    for row in 0..rows {
        policy.insert(row);
    }
    (0..rows).rev().for_each(|row| policy.promote(row));
}
