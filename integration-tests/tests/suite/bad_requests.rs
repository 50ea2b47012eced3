//! Requests that must be refused with the right status, naming the field; the server lives on.

use std::collections::HashMap;

use integration_tests::{
    client::{self, generate, greedy, with, with_ids},
    cluster::Service,
    fixtures::{CONTEXT_TOKENS, VOCAB_SIZE},
};
use scone_proto::decoder::v1::{GenerateRequest, SamplingParameters};
use tonic::Code;

/// A bad request, and the field and the limit its refusal must name.
type Case = (GenerateRequest, &'static str, &'static str);

fn sampling(change: impl FnOnce(&mut SamplingParameters)) -> GenerateRequest {
    with(greedy("The boats", 5), change)
}

fn prompts() -> Vec<Case> {
    let ids = |ids| with_ids(greedy("", 5), ids);
    let nothing = GenerateRequest {
        prompt: None,
        ..greedy("", 5)
    };
    let long_id = GenerateRequest {
        request_id: "x".repeat(129),
        ..greedy("The boats", 5)
    };
    vec![
        (nothing, "prompt", "missing"),
        (ids(vec![1; CONTEXT_TOKENS as usize]), "token_ids", "2048"),
        (ids(vec![1; 1_000_000]), "token_ids", "2048"),
        (greedy(&"The boats. ".repeat(20_000), 5), "text", "2048"),
        (ids(vec![1, VOCAB_SIZE]), "token_ids", "400"),
        (ids(vec![u32::MAX]), "token_ids", "400"),
        (long_id, "request_id", "128"),
    ]
}

fn stops() -> Vec<Case> {
    let many = |count: usize| (0..count).map(|i| format!("stop {i}")).collect();
    vec![
        (sampling(|s| s.stop = many(10_000)), "stop", "16"),
        (sampling(|s| s.stop = many(17)), "stop", "16"),
        (sampling(|s| s.stop = vec![String::new()]), "stop", "256"),
        (sampling(|s| s.stop = vec!["x".repeat(257)]), "stop", "256"),
        (
            sampling(|s| s.stop_token_ids = vec![1; 65]),
            "stop_token_ids",
            "64",
        ),
        (
            sampling(|s| s.stop_token_ids = vec![VOCAB_SIZE]),
            "stop_token_ids",
            "400",
        ),
        (sampling(|s| s.max_tokens = Some(0)), "max_tokens", "1"),
        (sampling(|s| s.min_tokens = Some(6)), "min_tokens", "5"),
        (sampling(|s| s.n = Some(0)), "n", "16"),
        (sampling(|s| s.n = Some(17)), "n", "16"),
    ]
}

fn choices() -> Vec<Case> {
    let bias = |id, bias| HashMap::from([(id, bias)]);
    vec![
        (
            sampling(|s| s.temperature = Some(-0.1)),
            "temperature",
            "100",
        ),
        (
            sampling(|s| s.temperature = Some(100.5)),
            "temperature",
            "100",
        ),
        (
            sampling(|s| s.temperature = Some(f32::NAN)),
            "temperature",
            "100",
        ),
        (
            sampling(|s| s.temperature = Some(f32::INFINITY)),
            "temperature",
            "100",
        ),
        (sampling(|s| s.top_p = Some(0.0)), "top_p", "1"),
        (sampling(|s| s.top_p = Some(1.1)), "top_p", "1"),
        (sampling(|s| s.top_p = Some(f32::NAN)), "top_p", "1"),
        (sampling(|s| s.min_p = Some(1.0)), "min_p", "1"),
        (
            sampling(|s| s.repetition_penalty = Some(0.0)),
            "repetition_penalty",
            "0",
        ),
        (
            sampling(|s| s.presence_penalty = Some(2.5)),
            "presence_penalty",
            "2",
        ),
        (
            sampling(|s| s.frequency_penalty = Some(-2.5)),
            "frequency_penalty",
            "2",
        ),
        (sampling(|s| s.logprobs = Some(21)), "logprobs", "20"),
        (
            sampling(|s| s.logit_bias = bias(1, 101.0)),
            "logit_bias",
            "100",
        ),
        (
            sampling(|s| s.logit_bias = bias(1, f32::NAN)),
            "logit_bias",
            "100",
        ),
        (
            sampling(|s| s.logit_bias = bias(VOCAB_SIZE, 1.0)),
            "logit_bias",
            "400",
        ),
        (
            sampling(|s| s.logit_bias = (0..1025).map(|id| (id, 0.0)).collect()),
            "logit_bias",
            "1024",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn are_refused_by_field_and_limit_and_the_server_lives_on() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let cases = [prompts(), stops(), choices()].concat();
    for (request, field, limit) in cases {
        let Err(status) = generate(&client, request).await else {
            panic!("accepted, want a refusal that names {field} and {limit}");
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let message = status.message();
        assert!(
            message.contains(field),
            "want the field {field}: {message:?}"
        );
        assert!(
            message.contains(limit),
            "want the limit {limit}: {message:?}"
        );
        // A message of a megabyte would not fit the headers that carry it.
        assert!(message.len() < 1000, "{field}: {} bytes", message.len());
    }
    generate(&client, greedy("The boats", 5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_themselves_are_accepted() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let most = CONTEXT_TOKENS as usize - 1;
    let requests = [
        greedy("", 5),
        with_ids(greedy("", 5), vec![]),
        with_ids(greedy("", 5), vec![1; most]),
        with_ids(greedy("", 5), vec![VOCAB_SIZE - 1]),
        sampling(|s| s.stop = (0..16).map(|i| format!("{i:0256}")).collect()),
        sampling(|s| s.stop_token_ids = vec![1; 64]),
        sampling(|s| s.temperature = Some(100.0)),
        sampling(|s| s.top_p = Some(1.0)),
        sampling(|s| s.logprobs = Some(20)),
        sampling(|s| s.logit_bias = (0..VOCAB_SIZE).map(|id| (id, 0.0)).collect()),
    ];
    for request in requests {
        let completion = generate(&client, request.clone()).await;
        assert!(completion.is_ok(), "{completion:?} to {request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_receive_limit_is_refused_and_the_server_lives_on() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let status = generate(&client, greedy(&"x".repeat(16 << 20), 5))
        .await
        .unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
        ),
        "{status}"
    );
    generate(&client, greedy("The boats", 5)).await.unwrap();
}
