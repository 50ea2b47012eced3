//! Text to ids and back, as evaluation tools ask for it.

use serde_json::{Value, json};

use crate::{
    client::{get, post},
    common::{CONTEXT, EOS, encode},
    service::Service,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenize_and_detokenize_are_inverse() {
    let service = Service::start(1, 1).await;
    let text = "the café<|endoftext|> the";
    let body = json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true});
    let answer = post(service.http, "/tokenize", &body).await.json();
    let tokens = answer["tokens"].clone();
    assert_eq!(tokens, json!(encode(text)));
    let ids: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
    // A special token in the text is one id.
    assert_eq!(ids.iter().filter(|&&id| id == EOS).count(), 1);
    assert_eq!(answer["count"], ids.len());
    assert_eq!(answer["max_model_len"], CONTEXT);
    let end = ids.iter().position(|&id| id == EOS).unwrap();
    assert_eq!(answer["token_strs"][end], "<|endoftext|>");
    let back = post(service.http, "/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(back.json(), json!({"prompt": text}));
}

/// Tools cut long texts themselves: they are tokenised in turn with prompts, and need not fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_longer_than_the_context_are_tokenised() {
    let service = Service::start(1, 1).await;
    let text = "the café ".repeat(10_000);
    let body = json!({"prompt": text, "add_special_tokens": false});
    let asked = [(); 4].map(|()| post(service.http, "/tokenize", &body));
    let [a, b, c, d] = asked;
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    for answer in [a, b, c, d] {
        let answer = answer.json();
        assert_eq!(answer["tokens"], json!(encode(&text)));
        assert_eq!(answer["token_strs"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_by_name() {
    let service = Service::start(1, 1).await;
    for (path, body, field) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        (
            "/tokenize",
            json!({"messages": [{"role": "user"}]}),
            "messages",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [EOS + 1]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
    ] {
        let answer = post(service.http, path, &body).await;
        assert_eq!(
            (answer.status, &answer.error()["param"]),
            (400, &json!(field))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenizer_info_is_the_config_completed() {
    let service = Service::start(1, 1).await;
    let info = get(service.http, "/tokenizer_info").await.json();
    assert_eq!(info["eos_token"], "<|endoftext|>");
    assert_eq!(info["bos_token"], "<|endoftext|>");
    assert_eq!(info["model_max_length"], CONTEXT);
    assert_eq!(info["chat_template"], Value::Null);
    let with_config = Service::with(1, 1, |_, fixture| {
        let config = json!({
            "tokenizer_class": "Own", "eos_token": {"content": "<e>"}, "model_max_length": 1e30,
            "chat_template": "{{ eos_token }}",
        });
        let path = fixture.model.join("tokenizer_config.json");
        std::fs::write(path, config.to_string()).unwrap();
    })
    .await;
    let info = get(with_config.http, "/tokenizer_info").await.json();
    assert_eq!(info["tokenizer_class"], "Own");
    assert_eq!(info["eos_token"]["content"], "<e>");
    assert_eq!(info["model_max_length"], CONTEXT);
    assert_eq!(info["chat_template"], "{{ eos_token }}");
}
