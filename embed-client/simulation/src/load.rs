//! Look-ups all the while, each of which must end in time and be right or an error.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_embed_client::{Answers, EmbedClient, LookupBatch, TableFacts};
use scone_test_support::tables::{PairTable, Rows as _};
use tokio::time::{Instant, sleep};

/// Longest a look-up may take.
pub const TIMEOUT: Duration = Duration::from_millis(500);

/// How late the simulated clock may show that to be over: two of its ticks.
pub const CLOCK: Duration = Duration::from_millis(4);

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Look-ups that were answered at all positions.
    pub answered: Arc<AtomicU64>,
    /// Look-ups with an error for some position.
    pub failed: Arc<AtomicU64>,
}

/// Looks up with pauses between until `stop`, on a version for a while, then on the one that is
/// current.
pub async fn look_up_until(client: EmbedClient, seed: u64, stop: Arc<AtomicBool>, counts: Counts) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut table = client.current();
    while !stop.load(Ordering::Relaxed) {
        if rng.random_bool(0.2) {
            table = client.current();
        }
        let answered = look_up(&client, &table, &mut rng).await;
        let count = match answered {
            true => &counts.answered,
            false => &counts.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(rng.random_range(1..60))).await;
    }
}

/// One look-up; whether all of it was answered.
///
/// # Panics
/// When it takes too long, or an answer is wrong.
pub async fn look_up(client: &EmbedClient, table: &TableFacts, rng: &mut ChaCha8Rng) -> bool {
    let mut batch = LookupBatch::default();
    // Steps of some sequences, or a prompt of several messages.
    let spans: usize = rng.random_range(1..6);
    for _ in 0..spans {
        let length = if rng.random_bool(0.1) { 40 } else { 3 };
        let ids: Vec<u32> = (0..length).map(|_| rng.random_range(0..1000)).collect();
        batch.push(&ids, rng.random_range(0..3));
    }
    let began = Instant::now();
    let mut out = Answers::default();
    client.lookup(table, &batch, &mut out).await;
    let took = began.elapsed();
    assert!(took <= TIMEOUT + CLOCK, "a look-up took {took:?}");
    check(table, &batch, &out);
    out.error().is_none()
}

/// Every position has the row that it has in this version, or has failed and says so.
fn check(table: &TableFacts, batch: &LookupBatch, out: &Answers) {
    let editions = [PairTable::OLD, PairTable::NEW];
    let edition = editions
        .iter()
        .find(|edition| edition.id() == table.table_id);
    let edition = edition.expect("a version that there is");
    let (mut from, mut position) = (0, 0);
    for span in &batch.spans {
        let first = from + span.context as usize;
        let end = first + span.answers as usize;
        for at in first..end {
            let (failed, length) = (out.failed()[position], out.match_lengths()[position]);
            if failed {
                assert!(out.error().is_some() && length == 0, "it fails silently");
            } else if at > from {
                let expected = edition.row(batch.ids[at - 1], batch.ids[at]);
                let mut row = [f32::NAN; 3];
                assert_eq!(length, 2, "position {position} has no row");
                out.row(position).unwrap().decode(&mut row).unwrap();
                assert_eq!(row, expected, "position {position} of {}", table.table_id);
            } else {
                assert_eq!(length, 0, "no pair ends at position {position}");
            }
            position += 1;
        }
        from = end;
    }
    assert_eq!(position, out.match_lengths().len());
}
