//! What the row of an f-gram did, over both protocols.

use std::sync::Mutex;

use decoder_service::config::EmbedSource;
use scone_fgram::{FgramSet, table::NamedDir};
use scone_proto::decoder::v1::{
    DescribeFgramRequest, ExplainRequest, ExplainResponse, TokenIds, TokenLogprob,
    explain_request::Prompt,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    client::{get, greedy, post, with},
    common::{encode, small_table_of},
    service::Service,
};

const TEXT: &str = "the bear sat near the river. the other";
const PATH: &str = "/v1/fgrams/explain";

/// The fixture's model with its table and `small`, one place for a client, and all its f-grams.
async fn service() -> (Service, FgramSet) {
    let set = Mutex::new(None);
    let service = Service::with(2, 2, |config, fixture| {
        config.engine.max_per_client = 1;
        config.model.embed = EmbedSource::Table(fixture.table.clone());
        config.model.tables = vec![NamedDir {
            name: "small".parse().unwrap(),
            dir: small_table_of(fixture),
        }];
        let read = FgramSet::read(fixture.model.join("fgrams.bin"));
        *set.lock().unwrap() = read.ok();
    });
    let service = service.await;
    let set = set.into_inner().unwrap().unwrap();
    (service, set)
}

async fn explain(service: &Service, body: Value) -> Value {
    let answer = post(service.http, PATH, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

async fn over_grpc(service: &Service, ids: &[u32], table: &str) -> Result<ExplainResponse, Status> {
    let request = ExplainRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: ids.to_vec() })),
        table: table.to_owned(),
        ..ExplainRequest::default()
    };
    let response = service.grpc().await.explain(request).await?;
    Ok(response.into_inner())
}

/// Ids and log probabilities.
fn predicted(list: &Value) -> Vec<(u64, f32)> {
    let each = list.as_array().unwrap().iter();
    each.map(|one| {
        let logprob = one["logprob"].as_f64().unwrap() as f32;
        (one["token_id"].as_u64().unwrap(), logprob)
    })
    .collect()
}

fn of_grpc(list: &[TokenLogprob]) -> Vec<(u64, f32)> {
    let each = list.iter();
    each.map(|one| (u64::from(one.id), one.logprob)).collect()
}

/// What a completion of one token says of the five most probable ones.
async fn completed(service: &Service, model: &str, ids: &[u32]) -> Vec<f32> {
    let more = json!({"model": model, "logprobs": 5, "return_tokens_as_token_ids": true});
    let answer = post(service.http, "/v1/completions", &with(greedy(ids, 1), more)).await;
    let top = answer.json()["choices"][0]["logprobs"]["top_logprobs"][0].clone();
    let mut logprobs: Vec<f32> = top
        .as_object()
        .unwrap()
        .values()
        .map(|logprob| logprob.as_f64().unwrap() as f32)
        .collect();
    logprobs.sort_by(|a, b| b.total_cmp(a));
    logprobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fgram_is_shown_with_its_rank_and_count_and_both_predictions() {
    let (service, set) = service().await;
    let ids = encode(TEXT);
    let answer = explain(&service, json!({"prompt": ids})).await;
    let fgram = &answer["fgram"];
    let length = fgram["token_ids"].as_array().unwrap().len();
    let own = &ids[ids.len() - length..];
    assert_eq!(fgram["token_ids"], json!(own));
    assert!(TEXT.ends_with(fgram["text"].as_str().unwrap()) && length >= 2);
    let rank = fgram["rank"].as_u64().unwrap();
    let expected = set.get(rank as usize);
    assert_eq!(expected.ids, own);
    assert_eq!(fgram["count"], expected.count);
    assert_eq!(fgram["match_count"], expected.match_count);
    assert_eq!(fgram["set_size"], set.len());

    let (with_row, without) = (
        predicted(&answer["with_row"]),
        predicted(&answer["with_token_embedding"]),
    );
    assert_eq!((with_row.len(), without.len()), (5, 5));
    assert_ne!(with_row, without);
    let logprobs: Vec<f32> = with_row.iter().map(|one| one.1).collect();
    assert_eq!(logprobs, completed(&service, "tiny", &ids).await);
    assert_eq!(answer["usage"]["completion_tokens"], 2);

    // The same as a text, and over gRPC.
    let as_text = explain(&service, json!({"prompt": TEXT})).await;
    assert_eq!(as_text["fgram"], *fgram);
    assert_eq!(predicted(&as_text["with_row"]), with_row);
    let grpc = over_grpc(&service, &ids, "").await.unwrap();
    assert_eq!(of_grpc(&grpc.with_row), with_row);
    assert_eq!(of_grpc(&grpc.with_token_embedding), without);
    assert_eq!(answer["table_id"], grpc.table_id.as_str());
    let grpc = grpc.fgram.unwrap();
    assert_eq!(
        (grpc.token_ids.as_slice(), &json!(grpc.text)),
        (own, &fgram["text"])
    );
    let grpc = grpc.rank.unwrap();
    assert_eq!((grpc.rank, grpc.count), (rank, expected.count));
    assert_eq!(grpc.set_size, set.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_fgram_the_token_embedding_is_all_there_is() {
    let (service, _) = service().await;
    let ids = encode(TEXT);
    // No table, and a beginning at which none can end.
    for (model, table, prompt) in [("tiny:none", "none", &ids[..]), ("tiny", "", &ids[..1])] {
        let answer = explain(
            &service,
            json!({"model": model, "prompt": prompt, "top": 5}),
        )
        .await;
        assert_eq!(answer["model"], model);
        assert_eq!(
            (&answer["fgram"], &answer["with_row"]),
            (&Value::Null, &Value::Null)
        );
        let said = predicted(&answer["with_token_embedding"]);
        let logprobs: Vec<f32> = said.iter().map(|one| one.1).collect();
        assert_eq!(logprobs, completed(&service, model, prompt).await);
        assert_eq!(answer["usage"]["completion_tokens"], 1, "one run is enough");
        let grpc = over_grpc(&service, prompt, table).await.unwrap();
        assert!(grpc.fgram.is_none() && grpc.with_row.is_empty());
        assert_eq!(of_grpc(&grpc.with_token_embedding), said);
        assert_eq!(answer["table_id"], grpc.table_id.as_str());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_are_those_of_the_tables_own_set_or_unknown() {
    let (service, set) = service().await;
    let ids = encode("the");
    // An f-gram of both sets.
    let often = set.iter().find(|fgram| fgram.count >= 2).unwrap().ids;
    let prompt = [often, &ids].concat();
    let prompt = &prompt[..often.len()];
    let known = explain(&service, json!({"prompt": prompt})).await;
    assert_eq!(known["fgram"]["rank"], 0);
    let other = explain(&service, json!({"model": "tiny:small", "prompt": prompt})).await;
    assert_eq!(other["fgram"]["token_ids"], json!(often));
    for unknown in ["rank", "count", "match_count", "set_size"] {
        assert_eq!(other["fgram"][unknown], Value::Null);
    }
    let grpc = over_grpc(&service, prompt, "small").await.unwrap();
    assert!(grpc.fgram.unwrap().rank.is_none());
    // As it is described on its own.
    for (model, table, of) in [("tiny", "", &known), ("tiny:small", "small", &other)] {
        let body = json!({"model": model, "token_ids": often});
        let described = post(service.http, "/v1/fgrams/describe", &body).await;
        assert_eq!(described.json(), of["fgram"]);
        let request = DescribeFgramRequest {
            token_ids: often.to_vec(),
            table: table.to_owned(),
        };
        let grpc = service.grpc().await.describe_fgram(request).await.unwrap();
        let grpc = grpc.into_inner().fgram.unwrap();
        assert_eq!(json!(grpc.text), described.json()["text"]);
        assert_eq!(
            json!(grpc.rank.map(|rank| rank.match_count)),
            described.json()["match_count"]
        );
    }
    let unseen = post(
        service.http,
        "/v1/fgrams/describe",
        &json!({"token_ids": [7, 7]}),
    )
    .await;
    assert_eq!(unseen.json()["rank"], Value::Null);
    for wrong in [json!([7]), json!([7, 7, 7, 7]), json!([7, 261]), json!("7")] {
        let body = json!({"token_ids": wrong});
        let refused = post(service.http, "/v1/fgrams/describe", &body).await;
        assert_eq!(refused.error()["param"], "token_ids", "{}", refused.body);
    }
    // Without the token before, it is another f-gram, or none.
    assert_ne!(
        known["fgram"],
        explain(&service, json!({"prompt": ids})).await["fgram"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_explained_is_refused_by_name() {
    let (service, _) = service().await;
    let (many, most) = (vec![1; 1024], vec![1; 1023]);
    for (body, field) in [
        (json!({}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": {"text": "a"}}), "prompt"),
        (json!({"prompt": [261]}), "prompt"),
        (json!({"prompt": many}), "prompt"),
        (json!({"prompt": "a", "top": 0}), "top"),
        (json!({"prompt": "a", "top": 21}), "top"),
    ] {
        let answer = post(service.http, PATH, &body).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.error()["param"], field, "{}", answer.body);
    }
    let answer = post(
        service.http,
        PATH,
        &json!({"prompt": "a", "model": "tiny:news"}),
    )
    .await;
    assert_eq!(answer.error()["code"], "model_not_found");
    let refused = over_grpc(&service, &[1], "news").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = over_grpc(&service, &[261], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    explain(&service, json!({"prompt": most})).await;
    // Both protocols take the places that everybody takes, and give them back.
    assert_eq!(service.metric("scone_decoder_running").await, 0.0);
    let metrics = get(service.http, "/metrics").await.body;
    assert!(
        metrics.contains("outcome=\"invalid_argument\""),
        "{metrics}"
    );
}
