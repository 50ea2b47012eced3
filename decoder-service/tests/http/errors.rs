//! What is refused, in OpenAI's shape and by name.

use scone_proto::decoder::v1::{GenerateRequest, SamplingParameters, generate_request::Prompt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use tonic::Code;

use crate::{
    client::{get, greedy, post, receive, request, send, with},
    common::{CONTEXT, EOS},
    service::{PATIENCE, Service},
};

const PATH: &str = "/v1/completions";

/// A change of a good request, the field that its refusal names, and a part of the message.
fn cases() -> Vec<(Value, &'static str, String)> {
    let ids_below = format!("ids are below {}", EOS + 1);
    vec![
        (json!({"prompt": null}), "prompt", "missing".into()),
        (json!({"prompt": []}), "prompt", "empty list".into()),
        (json!({"prompt": {"a": 1}}), "prompt", "neither".into()),
        (json!({"prompt": [1, "a"]}), "prompt", "no token id".into()),
        (json!({"prompt": [-1]}), "prompt", "no token id".into()),
        (json!({"prompt": [EOS + 1]}), "prompt", ids_below.clone()),
        (
            json!({"prompt": "a ".repeat(3000)}),
            "prompt",
            CONTEXT.to_string(),
        ),
        (json!({"prompt": vec!["a"; 1025]}), "prompt", "1024".into()),
        (
            json!({"prompt": ["a", ["b"]]}),
            "prompt",
            "no token id".into(),
        ),
        (json!({"max_tokens": 0}), "max_tokens", "at least 1".into()),
        (json!({"max_tokens": -1}), "max_tokens", "-1".into()),
        (json!({"max_tokens": "many"}), "max_tokens", "many".into()),
        (json!({"min_tokens": 6}), "min_tokens", "5".into()),
        (json!({"n": 0}), "n", "1 to 16".into()),
        (json!({"n": 17}), "n", "1 to 16".into()),
        (json!({"best_of": 3}), "best_of", "3".into()),
        (json!({"temperature": -0.5}), "temperature", "100".into()),
        (json!({"temperature": "hot"}), "temperature", "hot".into()),
        (json!({"top_p": 0}), "top_p", "1".into()),
        (json!({"top_k": -2}), "top_k", "-1".into()),
        (json!({"min_p": 1}), "min_p", "1".into()),
        (
            json!({"repetition_penalty": 0}),
            "repetition_penalty",
            "100".into(),
        ),
        (
            json!({"presence_penalty": 3}),
            "presence_penalty",
            "2".into(),
        ),
        (
            json!({"frequency_penalty": -3}),
            "frequency_penalty",
            "2".into(),
        ),
        (json!({"logprobs": 21}), "logprobs", "20".into()),
        (json!({"stop": ""}), "stop", "256".into()),
        (json!({"stop": vec!["x"; 17]}), "stop", "16".into()),
        (json!({"stop": 3}), "stop", "3".into()),
        (
            json!({"stop_token_ids": [EOS + 1]}),
            "stop_token_ids",
            ids_below,
        ),
        (
            json!({"logit_bias": {"the": 1}}),
            "logit_bias",
            "the".into(),
        ),
        (
            json!({"logit_bias": {"1": 101}}),
            "logit_bias",
            "100".into(),
        ),
        (json!({"seed": "x"}), "seed", "x".into()),
        (json!({"echo": 1}), "echo", "1".into()),
        (json!({"stream": "yes"}), "stream", "yes".into()),
        (
            json!({"stream_options": {}}),
            "stream_options",
            "stream".into(),
        ),
        (json!({"suffix": "end"}), "suffix", "not possible".into()),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "text".into(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_fields_are_refused_by_name_and_the_service_lives_on() {
    let service = Service::start(4, 4).await;
    for (change, field, part) in cases() {
        let answer = post(service.http, PATH, &with(greedy("the fox", 5), change)).await;
        assert_eq!(answer.status, 400, "{field}: {answer:?}");
        assert_eq!(answer.headers["x-should-retry"], "false");
        let error = answer.error();
        assert_eq!(error["param"], field);
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(field), "{field}: {message}");
        assert!(message.contains(&part), "{part:?}: {message}");
        assert!(message.len() < 1000);
    }
    let nulls = json!({"suffix": null, "stop": null, "logit_bias": null, "best_of": 1, "seed": -3});
    let answer = post(service.http, PATH, &with(greedy("the fox", 5), nulls)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Limits belong to `request`: both protocols refuse in the same words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_refuses_in_the_same_words() {
    let service = Service::start(4, 4).await;
    let mut grpc = service.grpc().await;
    let wrong: [(Value, SamplingParameters); 5] = [
        (
            json!({"temperature": 101}),
            SamplingParameters {
                temperature: Some(101.0),
                ..Default::default()
            },
        ),
        (
            json!({"top_p": 0}),
            SamplingParameters {
                top_p: Some(0.0),
                ..Default::default()
            },
        ),
        (
            json!({"n": 17}),
            SamplingParameters {
                n: Some(17),
                ..Default::default()
            },
        ),
        (
            json!({"stop": [""]}),
            SamplingParameters {
                stop: vec![String::new()],
                ..Default::default()
            },
        ),
        (
            json!({"logprobs": 21}),
            SamplingParameters {
                logprobs: Some(21),
                ..Default::default()
            },
        ),
    ];
    for (change, sampling) in wrong {
        let request = GenerateRequest {
            prompt: Some(Prompt::Text("the fox".into())),
            sampling: Some(sampling),
            request_id: String::new(),
            table: String::new(),
        };
        let status = grpc.generate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let answer = post(service.http, PATH, &with(greedy("the fox", 5), change)).await;
        assert_eq!(answer.error()["message"], status.message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_is_refused_in_the_same_shape() {
    let service = Service::start(1, 1).await;
    for body in ["", "{", "[]", "\"text\"", "{\"prompt\": \"a\"} x", "\u{1}"] {
        let text = request("POST", PATH, &[], body);
        let answer = receive(send(service.http, &text).await).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.error()["message"].as_str().unwrap().contains("JSON"));
    }
    let unknown = get(service.http, "/v1/nothing").await;
    assert_eq!(
        (unknown.status, &unknown.error()["code"]),
        (404, &json!("not_found"))
    );
    let method = get(service.http, PATH).await;
    assert_eq!(method.status, 405);
    method.error();
    let model = post(
        service.http,
        PATH,
        &with(greedy("a", 1), json!({"model": "gpt-9"})),
    )
    .await;
    assert_eq!(model.status, 404);
    assert_eq!(model.error()["code"], "model_not_found");
    assert_eq!(get(service.http, "/v1/models/gpt-9").await.status, 404);
}

/// The limit is one for what is announced and for what comes in chunks, and for neither is more
/// read than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded_before_they_are_parsed() {
    const LIMIT: usize = 4 << 20;
    let service = Service::start(1, 1).await;
    let body = greedy("a", 1).to_string();
    let fits = format!("{body}{}", " ".repeat(LIMIT - body.len()));
    let answer = receive(send(service.http, &request("POST", PATH, &[], &fits)).await).await;
    assert_eq!(answer.status, 200);

    let announced = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
    let announced = format!("{announced}content-length: {}\r\n\r\n", LIMIT + 1);
    let answer = receive(send(service.http, &announced).await).await;
    assert_eq!(answer.status, 413);
    assert!(
        answer.error()["message"]
            .as_str()
            .unwrap()
            .contains("4194304")
    );

    let head = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut socket = send(service.http, &head).await;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..LIMIT / 0x10000 + 1 {
        // It may be answered and closed before all is sent.
        if socket.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut start = [0; 12];
    socket.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_at_once_with_a_hint() {
    let service = Service::start(1, 1).await;
    let more = json!({"n": 3});
    let never = post(service.http, PATH, &with(greedy("a", 1), more)).await;
    assert_eq!((never.status, &never.error()["param"]), (400, &json!("n")));
    let body = with(greedy("the fox", 1000), json!({"stream": true})).to_string();
    let mut held = Vec::new();
    let refused = timeout(PATIENCE, async {
        loop {
            let text = request("POST", PATH, &[], &body);
            let mut socket = send(service.http, &text).await;
            let mut status = [0; 12];
            socket.read_exact(&mut status).await.unwrap();
            if &status == b"HTTP/1.1 429" {
                break post(service.http, PATH, &greedy("a", 1)).await;
            }
            held.push(socket);
        }
    })
    .await
    .unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["x-should-retry"], "true");
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    let error = refused.error();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("queue_full"))
    );
}

/// A stream whose time to drain is over ends with an event, and not as if it were whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_the_middle_of_a_stream_is_an_event() {
    let mut service = Service::with(1, 1, |config, _| {
        config.drain_timeout = Duration::from_millis(1);
    })
    .await;
    let body = with(greedy("the fox", 1000), json!({"stream": true})).to_string();
    let text = request("POST", PATH, &[], &body);
    let mut socket = send(service.http, &text).await;
    let mut some = [0; 64];
    socket.read_exact(&mut some).await.unwrap();
    service.stop();
    let mut rest = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    let (_, error) = rest.split_once("event: error\ndata: ").expect("an event");
    let error: Value = serde_json::from_str(error.lines().next().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "draining");
    assert!(!rest.contains("[DONE]"));
    service.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_refuses_new_requests_and_finishes_running_ones() {
    let mut service = Service::start(2, 2).await;
    let body = with(greedy("the fox", 600), json!({"stream": true})).to_string();
    let mut socket = send(service.http, &request("POST", PATH, &[], &body)).await;
    let mut some = [0; 64];
    socket.read_exact(&mut some).await.unwrap();
    service.stop();
    let refused = timeout(PATIENCE, async {
        loop {
            let answer = get(service.http, "/health").await;
            if answer.status != 200 {
                return answer;
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(
        (refused.status, &refused.error()["code"]),
        (503, &json!("draining"))
    );
    assert_eq!(refused.headers["retry-after"], "1");
    let refused = post(service.http, PATH, &greedy("a", 1)).await;
    assert_eq!(
        (refused.status, &refused.error()["code"]),
        (503, &json!("draining"))
    );
    let mut rest = String::new();
    socket.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\""));
    assert!(rest.contains("data: [DONE]"));
    service.ended().await;
}
