//! The policies on short traces, and the shipped one beside the hot set of a table.

use std::num::NonZeroUsize;

use scone_fgram::table::{HOT_ROW_OVERHEAD, LookupResult, TinyLfu};
use scone_fgram::{StoreKind, Table, TableOptions};

use super::bound::best_hit_rate;
use super::clock::Clock;
use super::policy::{Policy, hit_rate};
use super::s3_fifo::S3Fifo;
use super::simple::{Lru, Static};
use super::tiny_lfu::trained_tiny_lfu;
use crate::batches::{Served, Skew};
use crate::{fgrams, tables};

fn capacity(rows: usize) -> NonZeroUsize {
    NonZeroUsize::new(rows).expect("not 0")
}

fn hits(policy: &mut dyn Policy, accesses: &[u32]) -> Vec<bool> {
    accesses.iter().map(|&row| policy.access(row)).collect()
}

#[test]
fn lru_forgets_the_least_recent() {
    let mut lru = Lru::new(capacity(2));
    assert_eq!(
        hits(&mut lru, &[1, 2, 1, 3, 1, 2]),
        [false, false, true, false, true, false]
    );
}

#[test]
fn clock_spares_what_was_asked_for_again() {
    let mut clock = Clock::new(capacity(2), 10);
    assert_eq!(
        hits(&mut clock, &[1, 2, 1, 3, 1, 2]),
        [false, false, true, false, true, false]
    );
}

#[test]
fn s3_fifo_keeps_what_a_scan_would_flush() {
    let mut policy = S3Fifo::new(capacity(10), 2000);
    // Asked for three times, then a scan of rows that never come again.
    assert_eq!(hits(&mut policy, &[0, 0, 0]), [false, true, true]);
    hits(&mut policy, &Vec::from_iter(100..1000));
    assert!(policy.access(0));
    let mut lru = Lru::new(capacity(10));
    hits(&mut lru, &[0, 0, 0]);
    hits(&mut lru, &Vec::from_iter(100..1000));
    assert!(!lru.access(0));
}

#[test]
fn tiny_lfu_does_not_let_rare_rows_in() {
    let shares = [0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0];
    // 0 is in the main list, 1 in the window; 3, 4 and 5 cannot replace 0.
    let mut policy = trained_tiny_lfu(capacity(2), &shares);
    assert_eq!(
        hits(&mut policy, &[3, 4, 5, 0, 1]),
        [false, false, false, true, false]
    );
    // 1 has come back, with its count of training, but 0 was asked for more often.
    assert_eq!(hits(&mut policy, &[3, 0]), [false, true]);
}

/// What is simulated is what ships: the same rows, one a step, in the same order.
#[test]
fn a_hot_set_hits_what_the_simulation_says() -> anyhow::Result<()> {
    let set = fgrams::synthetic(2000)?;
    let dir = tempfile::tempdir()?;
    tables::build(dir.path(), &set, StoreKind::Sled, 8)?;
    let served = Served::of(&set);
    let steps = served.draw(Skew::Zipf, 1, 20_000, 1);
    let accesses: Vec<u32> = steps.iter().map(|step| step.rows[0]).collect();
    // Below 128 rows a hot set is one segment; rows share counts unless 127 are kept.
    for kept in [20, 100, 127] {
        let options = TableOptions {
            hot_bytes: kept * (8 + HOT_ROW_OVERHEAD),
            warm: false,
            ..TableOptions::default()
        };
        let table = Table::open(dir.path(), &options)?;
        let mut result = LookupResult::default();
        for step in &steps {
            table.lookup(&step.ids, &step.spans, &mut result)?;
        }
        let mut policy = TinyLfu::new(capacity(kept as usize), set.len());
        let hits = hits(&mut policy, &accesses).into_iter().filter(|&hit| hit);
        assert_eq!(table.stats().hits, hits.count() as u64, "{kept} rows");
    }
    Ok(())
}

#[test]
fn no_policy_beats_the_bound() {
    let rows = 50;
    let accesses: Vec<u32> = (0..4000u64)
        .map(|i| (i * i * 7919 % 211 % 50).min(i % 50) as u32)
        .collect();
    for kept in [1, 5, 20, 50] {
        let kept = capacity(kept);
        let best = best_hit_rate(kept, rows, &accesses, 0);
        let policies: [Box<dyn Policy>; 5] = [
            Box::new(Static::new(kept)),
            Box::new(Lru::new(kept)),
            Box::new(Clock::new(kept, rows)),
            Box::new(S3Fifo::new(kept, rows)),
            Box::new(TinyLfu::new(kept, rows)),
        ];
        // The static rows are there before they are asked for.
        let head_start = kept.get() as f64 / accesses.len() as f64;
        for mut policy in policies {
            assert!(hit_rate(&mut *policy, &accesses, 0) <= best + head_start);
        }
    }
    let best = best_hit_rate(capacity(2), 4, &[1, 2, 3, 1, 2, 3], 0);
    assert_eq!((6.0 * best).round(), 2.0);
}
