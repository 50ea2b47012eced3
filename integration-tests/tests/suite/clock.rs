//! Wall clocks that jump while both tiers work: what waits, waits by clocks that only go forward, and only
//! what is about dates follows the wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration_tests::{
    client::{self, begin, collect, finish, generate, seeded},
    clock::Clock,
    cluster::{ANY_PORT, Service, decoder_command, embed_command, http_post},
    fixtures::fixtures,
    folders::copy_of,
    rows,
};
use scone_proto::decoder::v1::GenerateRequest;
use scone_test_support::certificates::Authority;
use scone_tls::{ClientFiles, ServerFiles};
use tonic::Request;

use super::tls::{connect, embed_flags, server_flags};

const HOUR: i64 = 3600;
const TWENTY_YEARS: i64 = 20 * 365 * 24 * HOUR;

fn ask(tokens: u32) -> GenerateRequest {
    seeded("The ferryman is called Osk. He", tokens, 5)
}

/// Both tiers, whose wall clock is one.
struct Tiers {
    clock: Clock,
    embeds: Vec<Service>,
    decoder: Service,
}

impl Tiers {
    fn start(replicas: usize, scheme: &str, embed_side: &[&str], decoder_side: &[&str]) -> Self {
        let (f, clock) = (fixtures(), Clock::right());
        let metrics = ["--metrics-listen", ANY_PORT];
        let start = |name, mut command| {
            clock.of(&mut command);
            Service::try_start(name, command).unwrap()
        };
        let embed = || {
            let flags = [&metrics[..], embed_side].concat();
            let command = embed_command(&copy_of(&f.table), ANY_PORT, &flags);
            start("embed-service", command)
        };
        let embeds: Vec<Service> = (0..replicas).map(|_| embed()).collect();
        let address = |embed: &Service| format!("{scheme}://{}", embed.address);
        let addresses: Vec<String> = embeds.iter().map(address).collect();
        let flags = ["--embed", &addresses.join(","), "--lookup-timeout", "10s"];
        let flags = [&metrics[..], &flags, decoder_side].concat();
        let decoder = start(
            "decoder-service",
            decoder_command(&f.model, ANY_PORT, &flags),
        );
        Self {
            clock,
            embeds,
            decoder,
        }
    }

    /// When the decoder says that an answer over HTTP was made, in seconds since 1970.
    async fn created(&self) -> i64 {
        let body = serde_json::json!({"prompt": "The boats", "max_tokens": 2});
        let http = self.decoder.http.as_deref().unwrap();
        let json = http_post(http, "/v1/completions", &body).await;
        json["created"].as_i64().unwrap()
    }
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_jumps_fails_nothing() {
    let tiers = Tiers::start(2, "http", &[], &[]);
    let client = client::decoder(&tiers.decoder.address).await;
    let short = generate(&client, ask(30)).await.unwrap();
    let long = generate(&client, ask(600)).await.unwrap();
    for seconds in [HOUR, -HOUR, TWENTY_YEARS, -TWENTY_YEARS, 0] {
        // Begun before it jumps and ended after it, with a limit of time.
        let (head, rest) = begin(&client, ask(600)).await;
        let mut limited = Request::new(ask(600));
        limited.set_timeout(Duration::from_secs(600));
        let limited = client.clone().generate(limited).await.unwrap();
        tiers.clock.set(seconds);
        for _ in 0..3 {
            let actual = generate(&client, ask(30)).await.unwrap();
            assert_eq!(actual.outcome(), short.outcome(), "after {seconds} s");
            assert_eq!(actual.fallback_positions(), 0);
        }
        let limited = collect(limited.into_inner()).await.unwrap();
        let through = finish(head, rest).await.unwrap();
        for actual in [limited, through] {
            assert_eq!(actual.outcome(), long.outcome(), "across {seconds} s");
            assert_eq!(actual.fallback_positions(), 0);
        }
        for embed in &tiers.embeds {
            let mut embed = client::embed(&embed.address).await;
            embed.lookup_once(rows::request(1, &[1, 2])).await.unwrap();
        }
        let off = tiers.created().await - seconds_since_1970() - seconds;
        assert!(off.abs() < 600, "created {off} s off the clock");
    }
    for (service, tier) in [(&tiers.embeds[0], "embed"), (&tiers.decoder, "decoder")] {
        for what in ["aged", "silent"] {
            let metric = format!("scone_{tier}_connections_{what}_total");
            assert_eq!(service.metric(&metric).await, Some(0.0), "{metric}");
        }
    }
}

/// What runs goes on over its connections; new ones meet certificates that have ended, until the clock is
/// put right.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_follow_the_wall_clock_and_streams_do_not() {
    let authority = Authority::new();
    let issue = |file| authority.issue_until(file, &["localhost", "127.0.0.1"], (2040, 1, 1));
    let (served, shown) = (issue("served"), issue("shown"));
    let embed_side = server_flags(&ServerFiles {
        cert: served.cert,
        key: served.key,
        client_ca: Some(authority.file()),
    });
    let files = ClientFiles {
        ca: authority.file(),
        identity: Some((shown.cert, shown.key)),
    };
    let decoder_side = embed_flags(&files);
    let embed_side: Vec<&str> = embed_side.iter().map(String::as_str).collect();
    let decoder_side: Vec<&str> = decoder_side.iter().map(String::as_str).collect();
    let tiers = Tiers::start(1, "https", &embed_side, &decoder_side);
    let client = client::decoder(&tiers.decoder.address).await;
    let expected = generate(&client, ask(30)).await.unwrap();

    tiers.clock.set(TWENTY_YEARS);
    let actual = generate(&client, ask(30)).await.unwrap();
    assert_eq!(actual.outcome(), expected.outcome());
    assert_eq!(actual.fallback_positions(), 0);
    let refused = connect(&tiers.embeds[0], files.clone()).await.unwrap_err();
    assert!(refused.contains("Expired"), "{refused}");

    tiers.clock.set(0);
    connect(&tiers.embeds[0], files).await.unwrap();
    let actual = generate(&client, ask(30)).await.unwrap();
    assert_eq!(actual.outcome(), expected.outcome());
}
