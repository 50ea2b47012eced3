//! The description at `/openapi.json` against what the service does.

use serde_json::{Map, Value, json};

use crate::{
    client::{get, post, receive, request, send, with},
    service::Service,
};

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

/// Where a schema's fields are read.
const REQUESTS: [(&str, &str); 6] = [
    ("/v1/completions", "CompletionRequest"),
    ("/v1/chat/completions", "ChatCompletionRequest"),
    ("/v1/fgrams/explain", "ExplainRequest"),
    ("/v1/fgrams/describe", "DescribeFgramRequest"),
    ("/tokenize", "TokenizeRequest"),
    ("/detokenize", "DetokenizeRequest"),
];

async fn service() -> Service {
    Service::with(4, 12, |_, fixture| {
        std::fs::write(fixture.model.join("chat_template.jinja"), TEMPLATE).unwrap();
    })
    .await
}

fn properties(openapi: &Value, schema: &str) -> Map<String, Value> {
    let properties = &openapi["components"]["schemas"][schema]["properties"];
    properties.as_object().unwrap().clone()
}

fn smallest(path: &str) -> Value {
    match path {
        "/v1/chat/completions" => {
            json!({"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4})
        }
        "/detokenize" => json!({"tokens": [1]}),
        "/v1/fgrams/describe" => json!({"token_ids": [116, 104]}),
        _ => json!({"prompt": "the fox"}),
    }
}

/// What a field of these types cannot be.
fn wrong(schema: &Value) -> Value {
    let types = [&schema["type"], &schema["oneOf"]]
        .map(Value::to_string)
        .concat();
    match types {
        types if !types.contains("object") => json!({"no": "such"}),
        _ => json!(["no such"]),
    }
}

/// What the description says of a field is what the service reads: its example is taken, another
/// type is refused under its name, and null is as if it were not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_described_is_read() {
    let service = service().await;
    let openapi = get(service.http, "/openapi.json").await.json();
    for (path, schema) in REQUESTS {
        for (name, field) in properties(&openapi, schema) {
            // Any value would do: templates alone read them.
            if ["tools", "documents"].contains(&name.as_str()) {
                continue;
            }
            let mut base = smallest(path);
            let of_text = ["prompt", "add_special_tokens", "return_token_strs"];
            if path == "/tokenize" && !of_text.contains(&name.as_str()) {
                base = json!({"messages": [{"role": "user", "content": "the fox"}]});
            }
            if name == "top_logprobs" {
                base["logprobs"] = json!(true);
            }
            if let Some(example) = field.get("example") {
                let body = with(base.clone(), json!({&name: example}));
                let answer = post(service.http, path, &body).await;
                assert_eq!(answer.status, 200, "{path} {name}: {answer:?}");
            }
            // A prompt of another type would be looked for among messages.
            let body = with(base.clone(), json!({&name: wrong(&field)}));
            let answer = post(service.http, path, &body).await;
            assert_eq!(answer.status, 400, "{path} {name}: {answer:?}");
            let param = answer.error()["param"].clone();
            // Templates' variables are read together.
            let together = name == "chat_template_kwargs" && param == "messages";
            assert!(param == *name || together, "{path} {name}: {answer:?}");
            if base.get(&name).is_none() {
                let answer = post(service.http, path, &with(base, json!({&name: null}))).await;
                assert_eq!(answer.status, 200, "{path} {name}: {answer:?}");
            }
        }
    }
}

/// Each path answers its methods, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_are_those_of_the_routes() {
    let service = service().await;
    let openapi = get(service.http, "/openapi.json").await.json();
    for (path, item) in openapi["paths"].as_object().unwrap() {
        let real = path.replace("{model}", "tiny");
        for method in ["get", "post"] {
            let body = if method == "post" {
                smallest(&real).to_string()
            } else {
                String::new()
            };
            let text = request(&method.to_uppercase(), &real, &[], &body);
            let answer = receive(send(service.http, &text).await).await;
            match item.get(method) {
                Some(described) => {
                    assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
                    assert!(described["responses"].get("200").is_some());
                }
                None => assert_eq!(answer.status, 405, "{method} {path}"),
            }
        }
    }
}

/// The fields of answers are those of their schemas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_have_the_fields_described() {
    let service = service().await;
    let openapi = get(service.http, "/openapi.json").await.json();
    let names =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let more = json!({"return_token_ids": true, "return_match_lengths": true});
    for (path, schema) in [
        ("/v1/completions", "Completion"),
        ("/v1/chat/completions", "ChatCompletion"),
    ] {
        let answer = post(service.http, path, &with(smallest(path), more.clone()))
            .await
            .json();
        let described = properties(&openapi, schema);
        assert_eq!(names(&answer), names(&json!(described)));
        let choice = &described["choices"]["items"]["properties"];
        assert_eq!(names(&answer["choices"][0]), names(choice));
        let usage = json!(properties(&openapi, "Usage"));
        assert_eq!(names(&answer["usage"]), names(&usage));
        assert_eq!(
            names(&answer["usage"]["scone"]),
            names(&usage["scone"]["properties"])
        );
    }
    let body = smallest("/v1/fgrams/explain");
    let answer = post(service.http, "/v1/fgrams/explain", &body).await.json();
    let described = properties(&openapi, "Explanation");
    assert_eq!(names(&answer), names(&json!(described)));
    let fgram = json!(properties(&openapi, "Fgram"));
    assert_eq!(names(&answer["fgram"]), names(&fgram));
    let body = smallest("/v1/fgrams/describe");
    let described = post(service.http, "/v1/fgrams/describe", &body)
        .await
        .json();
    assert_eq!(names(&described), names(&fgram));
    let probable = json!(properties(&openapi, "Probable"));
    for list in ["with_row", "with_token_embedding"] {
        assert_eq!(names(&answer[list][0]), names(&probable));
    }
    let model = get(service.http, "/v1/models/tiny").await.json();
    assert_eq!(names(&model), names(&json!(properties(&openapi, "Model"))));
}
