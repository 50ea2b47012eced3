//! Data parallel training: processes that each compute a part of every step.
//!
//! All ranks hold the same parameters. A step's windows are divided among them, their gradients are
//! added up, and every rank makes the same update. Rank 0 alone writes and evaluates; what it
//! decides, the others are told.

#[cfg(feature = "mpi")]
mod over_mpi;

use std::fmt::Debug;
use std::ops::Range;

use anyhow::{Result, ensure};

#[cfg(feature = "mpi")]
pub use over_mpi::Mpi;

/// The ranks of a job, as one of them sees them. Every rank has to make the same calls in the
/// same order; each call waits for all.
pub trait Ranks: Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Adds up the values of all ranks, element by element; all get the same sums.
    ///
    /// # Errors
    /// When a rank is gone.
    fn add_up(&self, values: &mut [f32]) -> Result<()>;

    /// The value of every rank, by rank.
    ///
    /// # Errors
    /// When a rank is gone.
    fn gather(&self, value: u64) -> Result<Vec<u64>>;
}

/// One process does all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn add_up(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn gather(&self, value: u64) -> Result<Vec<u64>> {
        Ok(vec![value])
    }
}

/// Whether this is the rank that writes.
pub(super) fn is_first(ranks: &dyn Ranks) -> bool {
    ranks.rank() == 0
}

/// The part of so many windows that this rank computes.
pub(super) fn own_part(ranks: &dyn Ranks, windows: usize) -> Range<usize> {
    let each = windows / ranks.count();
    let first = ranks.rank() * each;
    first..first + each
}

/// Waits until all ranks are here.
pub(super) fn meet(ranks: &dyn Ranks) -> Result<()> {
    ranks.gather(0).map(|_| ())
}

/// What rank 0 has, on all ranks.
pub(super) fn of_first(ranks: &dyn Ranks, value: u64) -> Result<u64> {
    Ok(ranks.gather(value)?[0])
}

/// Refuses to go on unless all ranks have the same `what`.
pub(super) fn agree(ranks: &dyn Ranks, what: &str, value: u64) -> Result<()> {
    let all = ranks.gather(value)?;
    let other = all.iter().position(|&other| other != all[0]);
    ensure!(
        other.is_none(),
        "rank {} has another {what} than rank 0 ({} and {}); all ranks need the same config, inputs \
         and --out directory, on storage that all of them see",
        other.unwrap_or_default(),
        all[other.unwrap_or_default()],
        all[0]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The third of four; the others have what it has, and rank 1 one more.
    #[derive(Debug)]
    struct Third;

    impl Ranks for Third {
        fn rank(&self) -> usize {
            2
        }

        fn count(&self) -> usize {
            4
        }

        fn add_up(&self, _: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn gather(&self, value: u64) -> Result<Vec<u64>> {
            Ok(vec![value, value + 1, value, value])
        }
    }

    #[test]
    fn parts_are_in_order_of_the_ranks() {
        assert_eq!(own_part(&Third, 8), 4..6);
        assert_eq!(own_part(&Alone, 8), 0..8);
    }

    #[test]
    fn ranks_that_differ_are_named() {
        agree(&Alone, "step", 3).unwrap();
        let text = agree(&Third, "step", 3).unwrap_err().to_string();
        assert!(
            text.contains("rank 1 has another step than rank 0 (4 and 3)"),
            "{text}"
        );
    }
}
