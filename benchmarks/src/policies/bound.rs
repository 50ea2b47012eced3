//! What no policy can beat.

use std::collections::BinaryHeap;
use std::num::NonZeroUsize;

/// The most hits that any policy could have, knowing the future (Belady's rule, rows may be passed
/// by): the bound for all others. Counted as in [`hit_rate`](super::hit_rate), from an empty start.
pub fn best_hit_rate(
    capacity: NonZeroUsize,
    table_rows: usize,
    accesses: &[u32],
    first: usize,
) -> f64 {
    let next = next_uses(accesses, table_rows);
    // For each row of the table, its next use while it is kept.
    let mut kept: Vec<Option<usize>> = vec![None; table_rows];
    let mut latest: BinaryHeap<(usize, u32)> = BinaryHeap::new();
    let (mut held, mut hits) = (0, 0);
    for (position, (&row, &next)) in accesses.iter().zip(&next).enumerate() {
        if kept[row as usize].is_some() {
            hits += usize::from(position >= first);
        } else if held < capacity.get() {
            held += 1;
        } else {
            // Entries of rows that were used since, or are gone, are stale.
            while latest
                .peek()
                .is_some_and(|&(at, row)| kept[row as usize] != Some(at))
            {
                latest.pop();
            }
            match latest.peek() {
                Some(&(at, gone)) if at > next => kept[gone as usize] = None,
                _ => continue,
            }
        }
        kept[row as usize] = Some(next);
        latest.push((next, row));
    }
    hits as f64 / accesses.len().saturating_sub(first).max(1) as f64
}

/// For each access, the position of the next one to the same row; `usize::MAX` for none.
fn next_uses(accesses: &[u32], table_rows: usize) -> Vec<usize> {
    let mut seen = vec![usize::MAX; table_rows];
    let mut next: Vec<usize> = accesses
        .iter()
        .enumerate()
        .rev()
        .map(|(position, &row)| std::mem::replace(&mut seen[row as usize], position))
        .collect();
    next.reverse();
    next
}
