//! What the simulation asks of a policy, and its share of hits.

/// Keeps some rows of those that are asked for.
pub trait Policy {
    /// A row is asked for; whether it was there. It may be kept from now on.
    fn access(&mut self, row: u32) -> bool;
}

/// The share of hits among the accesses from `first` on; those before it only prepare.
pub fn hit_rate(policy: &mut dyn Policy, accesses: &[u32], first: usize) -> f64 {
    let (before, counted) = accesses.split_at(first);
    for &row in before {
        policy.access(row);
    }
    let hits = counted.iter().filter(|&&row| policy.access(row)).count();
    hits as f64 / counted.len().max(1) as f64
}
