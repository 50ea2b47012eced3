//! API keys of a decoder-service as a process.

use integration_tests::{
    client::{collect, decoder, greedy},
    cluster::{ANY_PORT, Service, decoder_command, http_get, refusal},
    fixtures::fixtures,
    folders::scratch,
};
use tonic::{Code, Request};

const KEY: &str = "0123456789-the-key-of-alice";

/// What a log or an answer must not have: the key, and what it is compared by (sha256sum).
const SECRETS: [&str; 2] = [
    KEY,
    "68bcf613af67d24dfd3a022312f146fcd77c6a7ef76fbce13dccd7ced4fa4a3b",
];

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_in_no_log_and_in_no_answer() {
    let keys = scratch("keys").join("keys");
    std::fs::write(&keys, format!("alice {KEY} max_concurrent=4\n")).unwrap();
    let flag = format!("--api-keys={}", keys.display());
    let service = Service::decoder(&[&flag, "--metrics-listen", ANY_PORT, "--log=debug"]);
    let mut client = decoder(&service.address).await;
    let ask = |key: &str| {
        let mut request = Request::new(greedy("The harbour town", 4));
        let bearer = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    };
    let wrong = client.generate(ask("another-key-of-nobody")).await;
    assert_eq!(wrong.unwrap_err().code(), Code::Unauthenticated);
    let stream = client.generate(ask(KEY)).await.unwrap().into_inner();
    assert_eq!(collect(stream).await.unwrap().ids.len(), 4);
    let metrics = service.metrics.as_deref().unwrap();
    let config = http_get(metrics, "/debug/config").await;
    assert!(config.contains("--api-keys"), "{config}");
    // A file that is broken later is told of by the number of its line.
    std::fs::write(&keys, format!("alice {KEY} {KEY}\n")).unwrap();
    let told = || {
        service
            .process
            .stderr()
            .contains("line 1: expected")
            .then_some(())
    };
    integration_tests::eventually::eventually("a line in the log", async || told()).await;
    let exposed = http_get(metrics, "/metrics").await;
    assert!(
        exposed.contains("scone_decoder_key_tokens_total{key=\"alice\"}"),
        "{exposed}"
    );
    let log = service.process.stderr();
    for secret in SECRETS.iter().chain(&["another-key-of-nobody"]) {
        for text in [&config, &exposed, &log] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[test]
fn a_file_that_cannot_work_is_refused_at_start() {
    let keys = scratch("broken-keys").join("keys");
    std::fs::write(&keys, format!("alice {KEY}\nbob {KEY}\n")).unwrap();
    for (path, problem) in [
        (
            keys.display().to_string(),
            "line 2: the key of another name",
        ),
        ("/no/keys".to_owned(), "No such file"),
    ] {
        let flag = format!("--api-keys={path}");
        let command = decoder_command(&fixtures().model, ANY_PORT, &[&flag]);
        let said = refusal("decoder-service", command);
        assert!(
            said.contains("--api-keys") && said.contains(problem),
            "{said}"
        );
        assert!(!said.contains(KEY), "{said}");
    }
}
