//! The client's promises, over as many seeds as there is time for.
//!
//! - Every look-up ends within its time limit, with a row or an error for each position.
//! - No wrong row is ever returned, and all rows of an answer are of the version that was asked for.
//! - No message is sent more often than it may be.
//! - 15 s after the last fault at most everything is normal: all replicas are connected, the version that all
//!   serve is current, and no look-up fails.
//!
//! `SCONE_SIMULATION_SEEDS=2000..7000` runs others. A failure names its seed.

use std::{
    env,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use scone_simulation::{Report, run};

fn seeds() -> Range<u64> {
    let Ok(text) = env::var("SCONE_SIMULATION_SEEDS") else {
        return 0..24;
    };
    let ends = text
        .split_once("..")
        .expect("SCONE_SIMULATION_SEEDS=FROM..TO");
    let number = |text: &str| text.parse().expect("a number");
    number(ends.0)..number(ends.1)
}

#[test]
fn the_client_keeps_its_promises_whatever_breaks() {
    let seeds = seeds();
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let reports = Mutex::new(Vec::<Report>::new());
    let broken = Mutex::new(Vec::<u64>::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(seed))) {
                        Ok(report) => reports.lock().expect("the reports").push(report),
                        Err(_) => {
                            eprintln!(
                                "seed {seed} failed: SCONE_SIMULATION_SEEDS={seed}..{}",
                                seed + 1
                            );
                            broken.lock().expect("the seeds").push(seed);
                        }
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().expect("the seeds");
    assert!(broken.is_empty(), "broken by seeds {broken:?}");
    tell(&reports.into_inner().expect("the reports"));
}

fn tell(reports: &[Report]) {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (answered, failed) = (sum(|r| r.answered), sum(|r| r.failed));
    let (retries, hedges) = (sum(|r| r.retries), sum(|r| r.hedges));
    let slowest = reports.iter().map(|r| r.normal_after).max();
    println!(
        "{} seeds: {answered} look-ups answered, {failed} failed, {retries} messages sent again, {hedges} \
         hedged; normal after {:.1?} at most",
        reports.len(),
        slowest.unwrap_or_default()
    );
    assert!(answered > 0 && retries > 0, "nothing was tried");
}

#[test]
fn a_seed_is_the_same_again() {
    let [one, other] = [3, 4].map(|seed| {
        let report = run(seed);
        assert_eq!(run(seed), report, "seed {seed}");
        report
    });
    assert_ne!(one, other, "seeds make no difference");
}
