//! `POST /v1/completions`: the same tokens as over gRPC, in OpenAI's words.

use std::time::Duration;

use scone_proto::decoder::v1::{
    GenerateRequest, GenerateResponse, SamplingParameters, generate_request::Prompt,
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    time::{sleep, timeout},
};

use crate::{
    client::{greedy, post, request, send, with},
    common::{EOS, encode},
    service::{PATIENCE, Service},
};

const PATH: &str = "/v1/completions";

fn sampled() -> SamplingParameters {
    SamplingParameters {
        max_tokens: Some(24),
        temperature: Some(0.9),
        top_p: Some(0.95),
        seed: Some(11),
        n: Some(2),
        logprobs: Some(3),
        echo: Some(true),
        ignore_eos: Some(true),
        ..SamplingParameters::default()
    }
}

async fn by_grpc(service: &Service, sampling: SamplingParameters) -> Vec<GenerateResponse> {
    let request = GenerateRequest {
        prompt: Some(Prompt::Text("then the fox".into())),
        sampling: Some(sampling),
        request_id: String::new(),
        table: String::new(),
    };
    let mut stream = service
        .grpc()
        .await
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        responses.push(response);
    }
    responses
}

fn floats(list: &Value) -> Vec<Option<f32>> {
    let list = list.as_array().unwrap().iter();
    list.map(|x| x.as_f64().map(|x| x as f32)).collect()
}

/// All of one choice: ids, log probabilities, match lengths, text.
type Whole = (Vec<u32>, Vec<Option<f32>>, Vec<u32>, String);

fn choice_of_grpc(responses: &[GenerateResponse], index: u32) -> Whole {
    let of = || responses.iter().filter(move |r| r.index == index);
    let tokens = || of().flat_map(|r| r.prompt_tokens.iter().chain(&r.tokens));
    (
        tokens().map(|t| t.id).collect(),
        tokens().map(|t| t.logprob).collect(),
        tokens().map(|t| t.match_length).collect(),
        of().map(|r| r.text.as_str()).collect(),
    )
}

fn numbers(list: &Value) -> Vec<u32> {
    serde_json::from_value(list.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_text_and_log_probabilities_are_those_of_grpc() {
    let service = Service::start(4, 4).await;
    let responses = by_grpc(&service, sampled()).await;
    let body = json!({
        "model": "tiny", "prompt": "then the fox", "max_tokens": 24, "temperature": 0.9,
        "top_p": 0.95, "seed": 11, "n": 2, "logprobs": 3, "echo": true, "ignore_eos": true,
        "return_token_ids": true, "return_match_lengths": true,
    });
    let whole = post(service.http, PATH, &body).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let streamed = with(body, json!({"stream": true}));
    let chunks = post(service.http, PATH, &streamed).await.events();
    for index in 0..2 {
        let expected = choice_of_grpc(&responses, index);
        assert_eq!(expected.0.len(), encode("then the fox").len() + 24);
        assert_eq!(expected.1[0], None);
        assert!(expected.1[1..].iter().all(Option::is_some));
        assert!(expected.2.iter().any(|&length| length > 1));
        let choice = &whole["choices"][index as usize];
        assert_eq!(choice["index"], index);
        let got = (
            numbers(&choice["token_ids"]),
            floats(&choice["logprobs"]["token_logprobs"]),
            numbers(&choice["match_lengths"]),
            choice["text"].as_str().unwrap().to_owned(),
        );
        assert_eq!(got, expected);
        let mut got = Whole::default();
        for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()) {
            if choice["index"] == index {
                got.0.extend(numbers(&choice["token_ids"]));
                got.1.extend(floats(&choice["logprobs"]["token_logprobs"]));
                got.2.extend(numbers(&choice["match_lengths"]));
                got.3 += choice["text"].as_str().unwrap();
            }
        }
        assert_eq!(got, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_has_what_clients_look_for() {
    let service = Service::start(4, 4).await;
    let body = with(
        greedy("then the fox", 12),
        json!({
            "stream": true, "stream_options": {"include_usage": true}, "unknown": [1],
            // Text waits for whole characters, ids do not.
            "return_token_ids": true,
        }),
    );
    let answer = post(service.http, PATH, &body).await;
    let mut chunks = answer.events();
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    let prompt = encode("then the fox").len();
    assert_eq!(usage["usage"]["prompt_tokens"], prompt);
    assert_eq!(usage["usage"]["total_tokens"], prompt + 12);
    assert!(usage["usage"]["scone"]["matched_positions"].as_u64() > Some(0));
    assert!(chunks.len() > 4, "streamed, not sent at once");
    for chunk in &chunks {
        for field in ["id", "created", "model", "object"] {
            assert_eq!(chunk[field], usage[field], "{field}");
        }
        assert_eq!(chunk["usage"], Value::Null);
    }
    let reasons: Vec<&Value> = chunks
        .iter()
        .map(|c| &c["choices"][0]["finish_reason"])
        .collect();
    let (last, before) = reasons.split_last().unwrap();
    assert_eq!(**last, "length");
    assert!(before.iter().all(|reason| reason.is_null()));
    assert!(usage["id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_may_be_texts_ids_and_lists_of_them() {
    let service = Service::start(4, 12).await;
    let texts = ["then the fox", "the river", "bear"];
    let mut alone = Vec::new();
    for text in texts {
        let answer = post(service.http, PATH, &greedy(text, 8)).await.json();
        alone.push(answer["choices"][0]["text"].clone());
    }
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| encode(text)).collect();
    let one = post(service.http, PATH, &greedy(ids[0].clone(), 8)).await;
    assert_eq!(one.json()["choices"][0]["text"], alone[0]);
    for list in [
        json!(texts),
        json!(ids),
        json!([texts[0], ids[1], texts[2]]),
    ] {
        let body = with(greedy(list, 8), json!({"n": 2}));
        let answer = post(service.http, PATH, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 6);
        for (i, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], i);
            assert_eq!(choice["text"], alone[i / 2]);
        }
        let prompt: usize = ids.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"]["prompt_tokens"], prompt);
        assert_eq!(answer["usage"]["completion_tokens"], 6 * 8);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_are_kept_out_of_the_text_and_named() {
    let service = Service::start(4, 4).await;
    let body = with(
        greedy("then the fox", 30),
        json!({"return_token_ids": true}),
    );
    let free = post(service.http, PATH, &body).await.json();
    let text = free["choices"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(6).take(3).collect();
    for stops in [json!(stop), json!([stop, "never"])] {
        let body = with(greedy("then the fox", 30), json!({"stop": stops}));
        let answer = post(service.http, PATH, &body).await.json();
        let choice = &answer["choices"][0];
        let end = text.find(&stop).unwrap();
        assert_eq!(choice["text"], text[..end]);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["stop_reason"], json!(stop));
    }
    let id = &free["choices"][0]["token_ids"][4];
    let body = with(greedy("then the fox", 30), json!({"stop_token_ids": [id]}));
    let answer = post(service.http, PATH, &body).await.json();
    assert_eq!(answer["choices"][0]["stop_reason"], *id);
    // Forced to the end of the text.
    let bias = json!({EOS.to_string(): 100});
    let body = with(
        greedy("then", 30),
        json!({"ignore_eos": false, "logit_bias": bias, "min_tokens": 3, "top_k": -1}),
    );
    let answer = post(service.http, PATH, &body).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_have_names_offsets_and_the_most_probable() {
    let service = Service::start(4, 4).await;
    let body = with(
        greedy("then the fox", 10),
        json!({"logprobs": 2, "echo": true}),
    );
    let answer = post(service.http, PATH, &body).await.json();
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let tokens: Vec<&str> = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    let prompt = encode("then the fox");
    assert_eq!(tokens.len(), prompt.len() + 10);
    assert_eq!(tokens[..prompt.len()].concat(), "then the fox");
    for (i, token) in tokens.iter().enumerate() {
        let top = &logprobs["top_logprobs"][i];
        if i == 0 {
            assert_eq!((top, &logprobs["token_logprobs"][0]), (&Value::Null, top));
            continue;
        }
        let top = top.as_object().unwrap();
        assert!((2..=3).contains(&top.len()), "{top:?}");
        assert_eq!(top[*token], logprobs["token_logprobs"][i]);
        // Greedy takes the most probable.
        if i >= prompt.len() {
            let most = top.values().map(|p| p.as_f64().unwrap());
            assert_eq!(top[*token], most.fold(f64::NEG_INFINITY, f64::max));
        }
        if !token.starts_with("bytes:") && i < prompt.len() {
            let offset = logprobs["text_offset"][i].as_u64().unwrap() as usize;
            assert!("then the fox"[offset..].starts_with(token));
        }
    }
    let body = with(body, json!({"return_tokens_as_token_ids": true}));
    let answer = post(service.http, PATH, &body).await.json();
    let first = format!("token_id:{}", prompt[0]);
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"][0], first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_scored_without_a_completion() {
    let service = Service::start(4, 4).await;
    let text = "then the fox met the other bear";
    let more = json!({"echo": true, "logprobs": 2, "return_token_ids": true, "n": 2});
    let with_one = post(service.http, PATH, &with(greedy(text, 1), more.clone())).await;
    let prompt = encode(text).len();
    let expected = floats(&with_one.json()["choices"][0]["logprobs"]["token_logprobs"]);
    let body = with(greedy(text, 0), more);
    let whole = post(service.http, PATH, &body).await.json();
    assert_eq!(whole["usage"]["completion_tokens"], 0);
    assert_eq!(whole["usage"]["prompt_tokens"], prompt);
    let streamed = with(body, json!({"stream": true}));
    let chunks = post(service.http, PATH, &streamed).await.events();
    for index in 0..2 {
        let choice = &whole["choices"][index];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(text), &json!("length"))
        );
        assert_eq!(choice["token_ids"], json!(encode(text)));
        let scored = floats(&choice["logprobs"]["token_logprobs"]);
        assert_eq!(scored, expected[..prompt]);
        let of = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let of: Vec<&Value> = of.filter(|choice| choice["index"] == index).collect();
        let said: String = of.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(said, text);
        let scored: Vec<_> = of
            .iter()
            .flat_map(|c| floats(&c["logprobs"]["token_logprobs"]))
            .collect();
        assert_eq!(scored, expected[..prompt]);
        assert_eq!(of.last().unwrap()["finish_reason"], "length");
    }
    let responses = by_grpc(
        &service,
        SamplingParameters {
            max_tokens: Some(0),
            echo: Some(true),
            logprobs: Some(2),
            ..sampled()
        },
    );
    let (ids, logprobs, _, said) = choice_of_grpc(&responses.await, 1);
    assert_eq!(
        (ids, said),
        (encode("then the fox"), "then the fox".to_owned())
    );
    assert!(logprobs[1..].iter().all(Option::is_some));

    // Without scores the prompt comes back; the whole context may be scored.
    let echoed = post(
        service.http,
        PATH,
        &with(greedy(text, 0), json!({"echo": true})),
    )
    .await;
    assert_eq!(echoed.json()["choices"][0]["text"], text);
    let most = vec![116; 1024];
    let answer = post(
        service.http,
        PATH,
        &with(
            greedy(most.clone(), 0),
            json!({"echo": true, "logprobs": 0}),
        ),
    )
    .await;
    let scored = floats(&answer.json()["choices"][0]["logprobs"]["token_logprobs"]);
    assert_eq!(
        (scored.len(), scored.iter().flatten().count()),
        (1024, 1023)
    );
    for (body, param) in [
        (greedy(text, 0), "max_tokens"),
        (with(greedy(most, 1), json!({"echo": true})), "prompt"),
        (
            with(greedy(vec![116; 1025], 0), json!({"echo": true})),
            "prompt",
        ),
    ] {
        let refused = post(service.http, PATH, &body).await;
        assert_eq!(refused.error()["param"], param, "{}", refused.body);
    }
    assert_eq!(service.metric("scone_decoder_running").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_its_slot() {
    let service = Service::start(1, 1).await;
    for stream in [true, false] {
        for _ in 0..5 {
            let body = with(greedy("the fox", 1000), json!({"stream": stream}));
            let text = request("POST", PATH, &[], &body.to_string());
            let mut socket = send(service.http, &text).await;
            if stream {
                let mut some = [0; 64];
                socket.read_exact(&mut some).await.unwrap();
            } else {
                timeout(PATIENCE, async {
                    while service.metric("scone_decoder_running ").await < 1.0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                })
                .await
                .unwrap();
            }
            drop(socket);
            timeout(PATIENCE, async {
                while post(service.http, PATH, &greedy("a", 1)).await.status != 200 {
                    sleep(Duration::from_millis(2)).await;
                }
            })
            .await
            .unwrap();
        }
    }
    let cancelled = "scone_decoder_requests_total{outcome=\"cancelled\"} ";
    assert_eq!(service.metric(cancelled).await, 10.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_filled_with_comments() {
    let service = Service::with(1, 1, |config, _| {
        config.http.as_mut().unwrap().heartbeat = Duration::from_millis(10);
    })
    .await;
    let mut first = send(
        service.http,
        &request(
            "POST",
            PATH,
            &[],
            &with(greedy("the fox", 1000), json!({"stream": true})).to_string(),
        ),
    )
    .await;
    let mut some = [0; 64];
    first.read_exact(&mut some).await.unwrap();
    // It waits behind the first, which nobody reads on.
    let waits = with(greedy("the bear", 2), json!({"stream": true}));
    let mut second = send(
        service.http,
        &request("POST", PATH, &[], &waits.to_string()),
    )
    .await;
    let mut text = String::new();
    let comment = async {
        let mut bytes = [0; 256];
        while !text.contains(": still here\n\n") {
            let n = second.read(&mut bytes).await.unwrap();
            assert!(n > 0, "{text}");
            text += std::str::from_utf8(&bytes[..n]).unwrap();
        }
    };
    timeout(PATIENCE, comment).await.unwrap();
    drop(first);
    let mut rest = String::new();
    second.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}
