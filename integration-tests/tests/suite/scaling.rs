//! Replicas come and go while generations run. They listen on addresses of their own, 127.0.0.x,
//! as pods do, and the decoder learns of them from a file that is read again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use integration_tests::{
    client::{self, Completion, generate, seeded},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
    fixtures::fixtures,
    folders::{copy_of, scratch},
};
use scone_proto::decoder::v1::{GenerateRequest, decoder_service_client::DecoderServiceClient};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const METRICS: &[&str] = &["--metrics-listen", ANY_PORT];

/// A replica of the whole table on an address of its own.
fn replica(last_byte: u8) -> Service {
    let address = format!("127.0.0.{last_byte}:0");
    Service::embed_at(&address, copy_of(&fixtures().table), METRICS)
}

/// The file that says where the replicas are.
struct Members(PathBuf);

impl Members {
    fn new(services: &[&Service]) -> Self {
        let members = Self(scratch("members").join("addresses"));
        members.set(services);
        members
    }

    /// Replaces the file as a whole: nobody reads half a list.
    fn set(&self, services: &[&Service]) {
        let lines: Vec<&str> = services.iter().map(|s| s.address.as_str()).collect();
        let next = self.0.with_extension("next");
        fs::write(&next, lines.join("\n")).unwrap();
        fs::rename(&next, &self.0).unwrap();
    }

    fn decoder(&self) -> Service {
        let embed = format!("file:{}", self.0.display());
        let flags = ["--embed-resolve-interval", "50ms"];
        Service::decoder_remote(&fixtures().model, &embed, &flags)
    }
}

fn request(seed: u64) -> GenerateRequest {
    seeded("The ferryman is called Osk. He", 60, seed)
}

/// Clients that ask for one generation after the other and compare each with what it must be.
struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Load {
    fn start(client: &DecoderServiceClient<Channel>, expected: Vec<Completion>) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut tasks = JoinSet::new();
        for (seed, expected) in (0..).zip(expected) {
            let (client, stop, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&done));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let actual = generate(&client, request(seed)).await.unwrap();
                    assert_eq!(expected.outcome(), actual.outcome());
                    assert_eq!(actual.fallback_positions(), 0);
                    AtomicUsize::fetch_add(&done, 1, Ordering::Relaxed);
                }
            });
        }
        Self { tasks, stop, done }
    }

    /// Lets some more generations begin and end.
    async fn go_on(&self) {
        let enough = self.done.load(Ordering::Relaxed) + 3 * self.tasks.len();
        eventually("generations", async || {
            (self.done.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn expected(requests: u64) -> Vec<Completion> {
    let embedded = Service::decoder(&[]);
    let client = client::decoder(&embedded.address).await;
    let mut expected = Vec::new();
    for seed in 0..requests {
        expected.push(generate(&client, request(seed)).await.unwrap());
    }
    expected
}

/// Waits until this replica has answered look-ups since now.
async fn gets_work(replica: &Service) {
    let answered = async || {
        let metric = "scone_embed_requests_total{outcome=\"ok\"}";
        replica.metric(metric).await.unwrap_or(0.0)
    };
    let before = answered().await;
    eventually("look-ups at a replica", async || {
        (answered().await > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_from_one_to_three_to_two_replicas_under_load_fails_nothing() {
    let expected = expected(3).await;
    let mut first = replica(2);
    let members = Members::new(&[&first]);
    let decoder = members.decoder();
    let client = client::decoder(&decoder.address).await;
    let load = Load::start(&client, expected);
    load.go_on().await;

    let (second, third) = (replica(3), replica(4));
    members.set(&[&first, &second, &third]);
    gets_work(&second).await;
    gets_work(&third).await;
    load.go_on().await;

    // As Kubernetes takes a pod away: out of the list and told to end at the same time.
    members.set(&[&second, &third]);
    first.process.terminate();
    let status = first.process.wait();
    assert!(status.success(), "{status}");
    load.go_on().await;
    gets_work(&second).await;
    gets_work(&third).await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_under_load_fails_nothing() {
    let expected = expected(3).await;
    let (mut first, second) = (replica(2), replica(3));
    let members = Members::new(&[&first, &second]);
    let decoder = members.decoder();
    let client = client::decoder(&decoder.address).await;
    let load = Load::start(&client, expected);
    gets_work(&first).await;
    first.process.kill();
    load.go_on().await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_limited_age_are_renewed_without_a_failure() {
    let expected = expected(2).await;
    let flags = ["--max-connection-age", "200ms"];
    let embed = Service::embed(&fixtures().table, &[&flags[..], METRICS].concat());
    let decoder = Service::decoder_remote(&fixtures().model, &embed.address, &[]);
    let client = client::decoder(&decoder.address).await;
    let load = Load::start(&client, expected);
    eventually("renewed connections", async || {
        let aged = embed.metric("scone_embed_connections_aged_total").await;
        (aged? >= 3.0).then_some(())
    })
    .await;
    load.go_on().await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_replica_fails_or_is_counted_as_configured() {
    let f = fixtures();
    for fall_back in [false, true] {
        let tables: &[PathBuf] = &f.shards;
        let mut shards: Vec<Service> = tables.iter().map(|table| embed(table)).collect();
        let both = format!("{},{}", shards[0].address, shards[1].address);
        let flags: &[&str] = match fall_back {
            true => &["--on-lookup-failure", "token-embedding"],
            false => &[],
        };
        let flags = [flags, &["--lookup-timeout", "500ms"]].concat();
        let decoder = Service::decoder_remote(&f.model, &both, &flags);
        let client = client::decoder(&decoder.address).await;
        let whole = generate(&client, request(0)).await.unwrap();
        assert_eq!(whole.fallback_positions(), 0);

        shards[1].process.kill();
        let outcome = generate(&client, request(0)).await;
        if fall_back {
            assert!(outcome.unwrap().fallback_positions() > 0);
        } else {
            let status = outcome.unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        }
    }
}

fn embed(table: &Path) -> Service {
    Service::embed(table, &[])
}
