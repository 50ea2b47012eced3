//! Faults of the network, the disk and of whole processes: `docs/faults.md` has a line for each, with
//! what these tests print.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use integration_tests::{
    binaries::binaries,
    client::{self, Completion, begin, finish, generate, seeded},
    cluster::{ANY_PORT, Service, decoder_command},
    eventually::{eventually, in_time},
    fixtures::{fixtures, manifest},
    folders::{copy_of, scratch},
    process::run,
    proxy::{Proxy, Weather},
};
use scone_proto::decoder::v1::{GenerateRequest, decoder_service_client::DecoderServiceClient};
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::transport::Channel;

const METRICS: &[&str] = &["--metrics-listen", ANY_PORT];

fn ask() -> GenerateRequest {
    seeded("The ferryman is called Osk. He", 60, 5)
}

/// Two replicas behind a proxy each, and a decoder that knows the proxies.
struct Tier {
    embeds: [Service; 2],
    proxies: [Proxy; 2],
    client: DecoderServiceClient<Channel>,
    expected: Completion,
    _decoder: Service,
}

impl Tier {
    async fn start(lookup_timeout: &str) -> Self {
        let f = fixtures();
        let embeds = [(); 2].map(|()| Service::embed(&f.table, METRICS));
        let proxies = [
            Proxy::start(&embeds[0].address).await,
            Proxy::start(&embeds[1].address).await,
        ];
        let both = proxies.each_ref().map(|proxy| proxy.address.clone());
        let flags = ["--lookup-timeout", lookup_timeout];
        let decoder = Service::decoder_remote(&f.model, &both.join(","), &flags);
        let client = client::decoder(&decoder.address).await;
        let expected = generate(&client, ask()).await.unwrap();
        let tier = Self {
            embeds,
            proxies,
            client,
            expected,
            _decoder: decoder,
        };
        tier.gets_work(0).await;
        tier.gets_work(1).await;
        tier
    }

    /// One generation, which must be what it is without faults; returns how long it took.
    async fn generates(&self) -> Duration {
        let began = Instant::now();
        let actual = generate(&self.client, ask()).await.unwrap();
        assert_eq!(self.expected.outcome(), actual.outcome());
        assert_eq!(actual.fallback_positions(), 0);
        began.elapsed()
    }

    /// Generates until this replica has answered something; returns how long that took.
    async fn gets_work(&self, replica: usize) -> Duration {
        let (began, before) = (Instant::now(), self.answered(replica).await);
        eventually("look-ups at a replica", async || {
            self.generates().await;
            (self.answered(replica).await > before).then_some(())
        })
        .await;
        began.elapsed()
    }

    async fn answered(&self, replica: usize) -> f64 {
        let metric = "scone_embed_requests_total{outcome=\"ok\"}";
        self.embeds[replica].metric(metric).await.unwrap_or(0.0)
    }
}

/// A client that generates again and again while something happens.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: JoinHandle<Duration>,
}

impl Load {
    fn start(tier: &Arc<Tier>) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (tier, stopped, counted) = (Arc::clone(tier), Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                slowest = slowest.max(tier.generates().await);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            slowest
        });
        Self { stop, done, task }
    }

    async fn goes_on(&self) {
        let enough = self.done.load(Ordering::Relaxed) + 5;
        eventually("generations", async || {
            (self.done.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    /// The slowest generation; fails when one did.
    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        in_time("end of the load", self.task).await.unwrap()
    }
}

fn print(fault: &str, slowest: Duration, normal: Duration) {
    println!("{fault}: slowest generation {slowest:.0?}, normal again after {normal:.0?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stopped_and_continued_fails_nothing_and_gets_work_again() {
    let tier = Arc::new(Tier::start("2s").await);
    let load = Load::start(&tier);
    load.goes_on().await;
    tier.embeds[0].process.freeze();
    load.goes_on().await;
    tier.embeds[0].process.thaw();
    let normal = tier.gets_work(0).await;
    print("replica stopped", load.end().await, normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_reset_under_load_fail_nothing() {
    let tier = Arc::new(Tier::start("10s").await);
    let load = Load::start(&tier);
    load.goes_on().await;
    for _ in 0..5 {
        tier.proxies[0].set(Weather::Reset);
        load.goes_on().await;
        tier.proxies[0].set(Weather::Fair);
    }
    let normal = tier.gets_work(0).await;
    print("connections reset", load.end().await, normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_in_front_of_one_replica_fails_nothing() {
    let tier = Arc::new(Tier::start("2s").await);
    let load = Load::start(&tier);
    load.goes_on().await;
    tier.proxies[0].set(Weather::BlackHole);
    load.goes_on().await;
    // As a host that is gone and back: old connections end.
    tier.proxies[0].set(Weather::Reset);
    load.goes_on().await;
    tier.proxies[0].set(Weather::Fair);
    let normal = tier.gets_work(0).await;
    print("black hole", load.end().await, normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_fails_nothing() {
    let tier = Arc::new(Tier::start("10s").await);
    let load = Load::start(&tier);
    load.goes_on().await;
    tier.proxies[0].set(Weather::Slow(Duration::from_millis(30)));
    load.goes_on().await;
    tier.proxies[0].set(Weather::Fair);
    let normal = tier.gets_work(0).await;
    print("slow replica", load.end().await, normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_killed_ends_its_streams_and_serves_the_same_when_it_is_back() {
    let mut decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let expected = generate(&client, ask()).await.unwrap();
    let long = || seeded("The ferryman is called Osk. He", 1900, 5);
    let (head, rest) = begin(&client, long()).await;
    decoder.process.kill();
    // Whatever transport error it is: an end without a reason would look like a whole answer.
    finish(head, rest).await.unwrap_err();

    let began = Instant::now();
    let f = fixtures();
    let mut command = decoder_command(&f.model, &decoder.address, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    let _again = Service::try_start("decoder-service", command).unwrap();
    let again = eventually("a generation", async || generate(&client, ask()).await.ok()).await;
    assert_eq!(expected.outcome(), again.outcome());
    print("decoder killed", Duration::ZERO, began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_clients_of_each_tier_keep_nobody_out() {
    let f = fixtures();
    let embed = Service::embed(&f.table, METRICS);
    let decoder = Service::decoder_remote(&f.model, &embed.address, METRICS);
    let client = client::decoder(&decoder.address).await;
    let expected = generate(&client, ask()).await.unwrap();
    let mut silent = Vec::new();
    for address in [&embed.address, &decoder.address] {
        for _ in 0..1000 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
    }
    let began = Instant::now();
    let actual = generate(&client, ask()).await.unwrap();
    assert_eq!(expected.outcome(), actual.outcome());
    // Others get in, too.
    let newcomer = client::decoder(&decoder.address).await;
    let actual = generate(&newcomer, ask()).await.unwrap();
    assert_eq!(expected.outcome(), actual.outcome());
    print("silent clients", began.elapsed(), Duration::ZERO);
    drop(silent);
}

/// `embed-service fetch` under a limit on the size of any file, as a full disk would have it.
fn fetch(from: &Path, to: &Path, kib: Option<u64>) -> Command {
    let mut command = Command::new("sh");
    let limit = kib.map_or_else(String::new, |kib| {
        format!("trap '' XFSZ; ulimit -f {}; ", kib * 2)
    });
    command.args(["-c", &format!("{limit}exec \"$@\""), "sh"]);
    command.arg(&binaries().embed_service).arg("fetch");
    command.arg("--from").arg(from).arg("--to").arg(to);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_while_a_table_is_published_leaves_the_old_one_served() {
    let f = fixtures();
    let (to, next) = (scratch("versions"), scratch("next").join("table"));
    run("fetch", fetch(&f.table, &to, None)).success();
    let current = to.join("current");
    let flags = ["--watch-table", "100ms", "--metrics-listen", ANY_PORT];
    let command = integration_tests::cluster::embed_command(&current, ANY_PORT, &flags);
    let embed = Service::try_start("embed-service", command).unwrap();
    let served = async || {
        let client = client::embed(&embed.address).await;
        integration_tests::rows::info(&client).await.table_id
    };
    let (old, before) = (served().await, fs::read_link(&current).unwrap());

    f.precompute(&f.model, &next, &["--store", "mapped", "--dtype", "int8"]);
    let message = run("fetch", fetch(&next, &to, Some(8))).failure();
    assert!(message.contains("write"), "{message}");
    assert_eq!(fs::read_link(&current).unwrap(), before);
    assert_eq!(served().await, old);

    let began = Instant::now();
    run("fetch", fetch(&next, &to, None)).success();
    let new = manifest(&next)["table_id"].as_str().unwrap().to_owned();
    eventually("the new table", async || {
        (served().await == new).then_some(())
    })
    .await;
    print("full disk", Duration::ZERO, began.elapsed());
}
