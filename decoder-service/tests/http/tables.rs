//! Tables by name: `model: "base:table"`, and the same over gRPC.

use decoder_service::config::EmbedSource;
use scone_fgram::table::NamedDir;
use scone_proto::decoder::v1::{
    GenerateRequest, GetModelInfoRequest, SamplingParameters, generate_request::Prompt,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    client::{get, greedy, post, with},
    common::{int4_table_of, small_table_of},
    service::Service,
};

const PROMPT: &str = "the bear sat near the river. the other fox was there and the end.";

/// The fixture's model with its table, and `int4` and `small`.
async fn service() -> Service {
    Service::with(4, 8, |config, fixture| {
        config.model.embed = EmbedSource::Table(fixture.table.clone());
        let named = |name: &str, dir| NamedDir {
            name: name.parse().unwrap(),
            dir,
        };
        config.model.tables = vec![
            named("int4", int4_table_of(fixture)),
            named("small", small_table_of(fixture)),
        ];
    })
    .await
}

fn of_model(model: &str) -> Value {
    let more = json!({"model": model, "return_token_ids": true, "return_match_lengths": true});
    with(greedy(PROMPT, 16), more)
}

async fn ids_over_grpc(service: &Service, table: &str) -> Result<Vec<u32>, tonic::Status> {
    let request = GenerateRequest {
        prompt: Some(Prompt::Text(PROMPT.into())),
        sampling: Some(SamplingParameters {
            max_tokens: Some(16),
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..SamplingParameters::default()
        }),
        table: table.to_owned(),
        ..GenerateRequest::default()
    };
    let mut stream = service.grpc().await.generate(request).await?.into_inner();
    let mut ids = Vec::new();
    while let Some(response) = stream.message().await? {
        ids.extend(response.tokens.iter().map(|token| token.id));
    }
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_with_a_table_is_asked_for_by_name_over_both_protocols() {
    let service = service().await;
    let mut seen = Vec::new();
    for (model, table) in [
        ("tiny", ""),
        ("tiny:int4", "int4"),
        ("tiny:small", "small"),
        ("tiny:none", "none"),
    ] {
        let answer = post(service.http, "/v1/completions", &of_model(model)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["model"], model);
        let choice = &answer["choices"][0];
        let matched = &answer["usage"]["scone"]["matched_positions"];
        assert_eq!(matched == 0, table == "none", "{model}: {matched}");
        let ids = ids_over_grpc(&service, table).await.unwrap();
        assert_eq!(choice["token_ids"], json!(ids), "{model}");
        seen.push(ids);
    }
    assert_ne!(seen[0], seen[3], "rows make a difference");
    let by_default = ids_over_grpc(&service, "default").await.unwrap();
    assert_eq!(by_default, seen[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_listed_and_others_are_refused() {
    let service = service().await;
    let models = get(service.http, "/v1/models").await.json();
    let models = models["data"].as_array().unwrap();
    let ids: Vec<&str> = models.iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "tiny:int4", "tiny:small", "tiny:none"]);
    let tables: Vec<&Value> = models.iter().map(|m| &m["scone"]["table_id"]).collect();
    assert_ne!(tables[0], tables[1]);
    assert_eq!(
        (tables[3], &models[3]["scone"]["max_n"]),
        (&json!(""), &Value::Null)
    );
    for model in models {
        let (id, parent) = (model["id"].as_str().unwrap(), &model["parent"]);
        assert_eq!(parent.is_null(), id == "tiny");
        let alone = get(service.http, &format!("/v1/models/{id}")).await;
        assert_eq!(alone.json(), *model);
    }
    let info = service
        .grpc()
        .await
        .get_model_info(GetModelInfoRequest {})
        .await;
    let tables = info.unwrap().into_inner().tables;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["", "int4", "small"]);

    for unknown in [
        "tiny:news",
        "tiny:",
        "tiny:a b",
        "other",
        "tin",
        "tiny:none:x",
    ] {
        let answer = post(service.http, "/v1/completions", &of_model(unknown)).await;
        assert_eq!(answer.status, 404, "{unknown}: {}", answer.body);
        assert_eq!(answer.error()["code"], "model_not_found");
        let message = answer.error()["message"].to_string();
        assert!(message.contains(unknown), "{message}");
    }
    let refused = ids_over_grpc(&service, "news").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("news"), "{refused}");
}
