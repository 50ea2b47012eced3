//! One world: replicas and a client, faults, and then none.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_embed_client::{EmbedClient, Options};
use scone_test_support::tables::{PairTable, Rows as _};
use tokio::{task::JoinSet, time::Instant};
use turmoil::{Builder, Sim};

use crate::{
    faults::{CLIENT, Event, Scene, draw},
    load::{Counts, TIMEOUT, look_up_until},
    network::{Names, Simulated},
    servers::{Asked, Replica},
};

/// One look of the simulation at the world.
const TICK: Duration = Duration::from_millis(2);
/// All is well before the first fault.
const CALM: Duration = Duration::from_millis(200);
/// The time of faults.
const FAULTS: Duration = Duration::from_millis(2500);
/// From the last fault until service is normal: a connection into a black hole is given up after 7 s of
/// unanswered pings, the next attempt comes within 2 s, and may hang for 3 s itself.
const NORMAL: Duration = Duration::from_secs(15);
/// Times that a client may send one message: 4 replicas one after the other, each with a spare one.
const MOST_ASKED: usize = 4 * 2;

/// What became of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Look-ups that were answered at all positions.
    pub answered: u64,
    /// Look-ups with an error for some position.
    pub failed: u64,
    /// Messages that were sent again.
    pub retries: u64,
    /// Messages that were sent to a second replica.
    pub hedges: u64,
    /// How long after the last fault service was normal.
    pub normal_after: Duration,
}

/// What client and world tell each other.
#[derive(Clone, Default)]
struct Told {
    connected: Arc<AtomicBool>,
    healed: Arc<AtomicBool>,
    report: Arc<Mutex<Option<Report>>>,
}

/// Runs the world of a seed.
///
/// # Panics
/// When the client breaks one of its promises.
pub fn run(seed: u64) -> Report {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sim = Builder::new()
        .simulation_duration(CALM + FAULTS + 2 * NORMAL)
        .tick_duration(TICK)
        .min_message_latency(Duration::ZERO)
        .max_message_latency(Duration::from_millis(rng.random_range(1..4)))
        .tcp_capacity(4096)
        .rng_seed(seed)
        .build();
    let asked = Asked::default();
    let (shards, of_each) = (rng.random_range(1..=2), rng.random_range(1..=3));
    let numbers = (0..shards).flat_map(|shard| (0..of_each).map(move |number| (shard, number)));
    let replicas: Vec<Replica> = numbers
        .map(|(shard, number)| {
            let name = format!("replica-{shard}-{number}");
            Replica::start(&mut sim, name, (shard, shards), &asked)
        })
        .collect();
    let mut scene = Scene::new(&sim, &replicas);
    let events = draw(&mut rng, replicas.len(), FAULTS);
    let version = rng.random_range(0..2);
    let told = Told::default();
    let hedge = rng.random_bool(0.7);
    let options = options(scene.names.clone(), seed, hedge);
    let client = client(options, replicas.len(), version, told.clone());
    sim.client(CLIENT, client);
    play(&mut sim, &mut scene, &events, version, &told);
    let most = asked.lock().unwrap().values().copied().max().unwrap_or(0);
    let allowed = if hedge { MOST_ASKED } else { MOST_ASKED / 2 };
    assert!(most <= allowed, "one message was read {most} times");
    let report = told.report.lock().unwrap().take();
    report.expect("a client that ended well")
}

fn options(names: Names, seed: u64, hedge: bool) -> Options {
    Options {
        timeout: TIMEOUT,
        start_timeout: NORMAL,
        resolve_interval: Duration::from_millis(100),
        poll_interval: Duration::from_millis(100),
        hedge,
        resolver: Arc::new(names),
        open: Arc::new(Simulated),
        seed: Some(seed),
        ..Options::new(vec!["embed-service:7300".parse().unwrap()])
    }
}

/// Lets the world happen until the client is done.
fn play(sim: &mut Sim<'_>, scene: &mut Scene<'_>, events: &[Event], version: usize, told: &Told) {
    let (mut begun, mut open): (usize, Vec<Event>) = (0, Vec::new());
    let mut began = None;
    loop {
        let done = sim.step();
        if done.unwrap_or_else(|error| panic!("{error}")) {
            return;
        }
        if told.healed.load(Ordering::Relaxed) {
            continue;
        }
        if began.is_none() && told.connected.load(Ordering::Relaxed) {
            began = Some(sim.elapsed() + CALM);
        }
        let Some(now) = began.and_then(|began| sim.elapsed().checked_sub(began)) else {
            continue;
        };
        while let Some(event) = events.get(begun).filter(|event| event.from <= now) {
            scene.begin(sim, event);
            open.push(*event);
            begun += 1;
        }
        let (over, still) = open.iter().partition(|event: &&Event| event.until <= now);
        open = still;
        for event in over {
            scene.end(sim, &event);
        }
        if now >= FAULTS {
            scene.heal(sim, version);
            told.healed.store(true, Ordering::Relaxed);
        }
    }
}

/// Looks up in several tasks while the world breaks, and until all is well again.
async fn client(
    options: Options,
    replicas: usize,
    version: usize,
    told: Told,
) -> Result<(), Box<dyn std::error::Error>> {
    let seed = options.seed.unwrap_or_default();
    let client = EmbedClient::connect(options).await?;
    told.connected.store(true, Ordering::Relaxed);
    let (stop, counts) = (Arc::<AtomicBool>::default(), Counts::default());
    let mut tasks = JoinSet::new();
    for number in 0..3 {
        let (client, stop, counts) = (client.clone(), stop.clone(), counts.clone());
        let task = look_up_until(client, seed.wrapping_mul(31) + number, stop, counts);
        tasks.spawn(task);
    }
    while !told.healed.load(Ordering::Relaxed) {
        step(&mut tasks).await;
    }
    let healed = Instant::now();
    let current = [PairTable::OLD, PairTable::NEW][version].id();
    loop {
        let failed = counts.failed.load(Ordering::Relaxed);
        let answered = counts.answered.load(Ordering::Relaxed);
        // As long as a look-up may take that began before, and then some.
        let window = Instant::now() + 2 * TIMEOUT;
        while Instant::now() < window {
            step(&mut tasks).await;
        }
        let connected: usize = client.monitor().replicas().iter().sum();
        let all_well = counts.failed.load(Ordering::Relaxed) == failed
            && counts.answered.load(Ordering::Relaxed) > answered
            && connected == replicas
            && client.current().table_id == current;
        let after = healed.elapsed();
        if all_well {
            break report(&client, &counts, after - 2 * TIMEOUT, &told);
        }
        assert!(
            after < NORMAL,
            "not normal after {after:?}: {connected} replicas, {counts:?}"
        );
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task?;
    }
    Ok(())
}

/// A moment, in which no task may end.
async fn step(tasks: &mut JoinSet<()>) {
    tokio::time::sleep(Duration::from_millis(5)).await;
    if let Some(ended) = tasks.try_join_next() {
        ended.unwrap();
    }
}

fn report(client: &EmbedClient, counts: &Counts, normal_after: Duration, told: &Told) {
    let stats = client.monitor().stats();
    *told.report.lock().unwrap() = Some(Report {
        answered: counts.answered.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
        retries: stats.retries,
        hedges: stats.hedges_sent,
        normal_after,
    });
}
