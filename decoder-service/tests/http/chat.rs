//! `POST /v1/chat/completions`: conversations as the model's template writes them.

use scone_proto::decoder::v1::{Chat, ChatMessage, GenerateRequest, generate_request::Prompt};
use serde_json::{Value, json};

use crate::{
    client::{greedy, post, with},
    service::Service,
};

const PATH: &str = "/v1/chat/completions";
const TEMPLATE: &str = "{% for m in messages %}\n<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}\n\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

async fn service() -> Service {
    Service::with(2, 4, |_, fixture| {
        std::fs::write(fixture.model.join("chat_template.jinja"), TEMPLATE).unwrap();
    })
    .await
}

fn messages() -> Value {
    json!([
        {"role": "system", "content": "a fox"},
        {"role": "user", "content": [{"type": "text", "text": " the"}, {"type": "text", "text": "bear"}]},
    ])
}

fn body(more: Value) -> Value {
    let base = json!({
        "messages": messages(), "max_tokens": 10, "temperature": 0, "ignore_eos": true,
    });
    with(base, more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_the_template_s_text() {
    let service = service().await;
    let rendered = "<system>a fox\n<user>the\nbear\n<assistant>";
    let expected = post(service.http, "/v1/completions", &greedy(rendered, 10)).await;
    let expected = expected.json();
    let answer = post(service.http, PATH, &body(json!({}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], expected["choices"][0]["text"]);
    assert_eq!(choice["finish_reason"], "length");
    let usage = |answer: &Value| answer["usage"]["prompt_tokens"].clone();
    assert_eq!(usage(&answer), usage(&expected));

    let tokenized = post(service.http, "/tokenize", &json!({"messages": messages()})).await;
    assert_eq!(tokenized.json()["count"], usage(&expected));
    let request = GenerateRequest {
        prompt: Some(Prompt::Chat(Chat {
            messages: vec![
                ChatMessage {
                    role: "system".into(),
                    content: "a fox".into(),
                },
                ChatMessage {
                    role: "user".into(),
                    content: "the\nbear".into(),
                },
            ],
        })),
        sampling: Some(scone_proto::decoder::v1::SamplingParameters {
            max_tokens: Some(10),
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..Default::default()
        }),
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
    let mut text = String::new();
    while let Some(response) = stream.message().await.unwrap() {
        text += &response.text;
    }
    assert_eq!(text, expected["choices"][0]["text"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_with_the_role() {
    let service = service().await;
    let whole = post(service.http, PATH, &body(json!({}))).await.json();
    let streamed = body(json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}}));
    let mut chunks = post(service.http, PATH, &streamed).await.events();
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 20);
    for index in 0..2 {
        let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let choices: Vec<&Value> = choices.filter(|choice| choice["index"] == index).collect();
        assert_eq!(
            choices[0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        let text: String = choices[1..]
            .iter()
            .map(|choice| {
                assert!(choice["delta"].get("role").is_none());
                choice["delta"]["content"].as_str().unwrap_or_default()
            })
            .collect();
        assert_eq!(
            text,
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
        let (last, before) = choices.split_last().unwrap();
        assert_eq!(last["finish_reason"], "length");
        assert!(
            before
                .iter()
                .all(|choice| choice["finish_reason"].is_null())
        );
    }
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&usage["id"], &usage["created"])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_carry_bytes_and_the_most_probable() {
    let service = service().await;
    let answer = post(
        service.http,
        PATH,
        &body(json!({"logprobs": true, "top_logprobs": 2})),
    )
    .await;
    let choice = answer.json()["choices"][0].clone();
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 10);
    let mut bytes = Vec::new();
    for token in content {
        let own: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        bytes.extend(own);
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy takes the first of them.
        for field in ["token", "logprob", "bytes"] {
            assert_eq!(top[0][field], token[field]);
        }
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
    }
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_that_cannot_be_are_refused_by_name() {
    let service = service().await;
    for (more, field) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": ["hello"]}), "messages"),
        (json!({"messages": [{"content": "no role"}]}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"chat_template": "{{ x }}"}), "chat_template"),
        (json!({"max_completion_tokens": 0}), "max_tokens"),
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "messages",
        ),
    ] {
        let answer = post(service.http, PATH, &body(more.clone())).await;
        assert_eq!(
            (answer.status, &answer.error()["param"]),
            (400, &json!(field)),
            "{more}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_template_refuses_by_its_name() {
    let service = Service::start(1, 1).await;
    let answer = post(service.http, PATH, &body(json!({}))).await;
    assert_eq!(answer.status, 400);
    let message = answer.error()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("tiny") && message.contains("chat template"),
        "{message}"
    );
}
