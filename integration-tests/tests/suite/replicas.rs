//! Embed-service replicas that come and go while generations run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use integration_tests::{
    client::{self, generate, greedy},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
    fixtures::{fixtures, scratch},
};
use scone_proto::decoder::v1::FinishReason;
use tokio::task::JoinSet;
use tonic::Code;

/// Addresses in a file that a decoder follows.
struct Replicas(PathBuf);

impl Replicas {
    fn new(replicas: &[&Service]) -> Self {
        let file = Self(scratch("replicas").join("addresses"));
        file.are(replicas);
        file
    }

    fn are(&self, replicas: &[&Service]) {
        let lines: Vec<&str> = replicas.iter().map(|r| r.address.as_str()).collect();
        let new = self.0.with_extension("new");
        fs::write(&new, lines.join("\n")).unwrap();
        fs::rename(&new, &self.0).unwrap();
    }

    fn flag(&self) -> String {
        format!("file:{}", self.0.display())
    }
}

/// A decoder that reads the file often, and tells how many replicas it has.
fn decoder(model: &Path, replicas: &Replicas) -> Service {
    let flags = ["--embed-resolve-interval", "50ms"];
    let flags = [&flags[..], &["--metrics-listen", ANY_PORT]].concat();
    Service::decoder_remote(model, &replicas.flag(), &flags)
}

async fn has_replicas(decoder: &Service, shard: usize, count: f64) {
    let name = format!(r#"scone_decoder_embed_replicas{{shard="{shard}"}}"#);
    eventually("number of replicas", async || {
        (decoder.metric(&name).await == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_from_one_to_three_to_two_under_load_fails_no_generation() {
    let f = fixtures();
    let mut embed = [(); 3].map(|()| Service::embed(&f.table, &["--metrics-listen", ANY_PORT]));
    let replicas = Replicas::new(&[&embed[0]]);
    let decoder = decoder(&f.model, &replicas);
    let client = client::decoder(&decoder.address).await;
    let request = || greedy("The harbour town wakes before", 40);
    let expected = generate(&client, request()).await.unwrap().ids;

    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::<AtomicU32>::default(),
    );
    let mut load = JoinSet::new();
    for _ in 0..3 {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        let expected = expected.clone();
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(generate(&client, request()).await.unwrap().ids, expected);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let goes_on = async || {
        let before = done.load(Ordering::Relaxed);
        let more = async || (done.load(Ordering::Relaxed) > before + 6).then_some(());
        eventually("more generations", more).await;
    };
    goes_on().await;
    replicas.are(&[&embed[0], &embed[1], &embed[2]]);
    has_replicas(&decoder, 0, 3.0).await;
    for new in &embed[1..] {
        eventually("look-ups at a new replica", async || {
            let rows = new.metric("scone_embed_rows_total").await;
            rows.filter(|rows| *rows > 0.0)
        })
        .await;
    }
    replicas.are(&[&embed[1], &embed[2]]);
    has_replicas(&decoder, 0, 2.0).await;
    embed[0].process.terminate();
    embed[0].process.wait();
    goes_on().await;
    for name in ["retries", "hedges_sent", "hedges_won"] {
        let name = format!("scone_decoder_lookup_{name}_total");
        assert!(decoder.metric(&name).await.is_some(), "{name}");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(task) = load.join_next().await {
        task.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_replica_is_unavailable_or_a_counted_fallback() {
    let f = fixtures();
    let mut shards = f.shards.each_ref().map(|shard| Service::embed(shard, &[]));
    let both = shards.each_ref().map(|s| s.address.clone()).join(",");
    let strict = Service::decoder_remote(&f.model, &both, &[]);
    let flags = ["--on-lookup-failure", "token-embedding"];
    let flags = [&flags[..], &["--lookup-timeout", "200ms"]].concat();
    let lenient = Service::decoder_remote(&f.model, &both, &flags);
    let [strict, lenient] = [
        client::decoder(&strict.address).await,
        client::decoder(&lenient.address).await,
    ];
    shards[1].process.kill();
    let request = || greedy("The harbour town wakes before the boats come in", 60);
    let status = generate(&strict, request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let completion = generate(&lenient, request()).await.unwrap();
    assert_eq!(completion.reason(), FinishReason::Length);
    let usage = completion.finish.unwrap().usage.unwrap();
    assert!(usage.fallback_positions > 0 && usage.matched_positions > 0);
}
