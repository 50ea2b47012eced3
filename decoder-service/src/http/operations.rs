//! What is served beside generation: models, health, metrics, version, the API's description.

use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use scone_service::started;
use serde_json::{Value, json};

use super::{Shared, error::Refusal, generate::table_of, respond::json_response};
use crate::{embed_tier::TableFacts, error::Error, intake::Intake, request::TableChoice};

/// The OpenAPI description of the routes.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// The model served, with a table; `None` is no table, `name` what a request calls it.
fn model(intake: &Intake, created: u64, name: Option<&str>, table: Option<&TableFacts>) -> Value {
    let (info, tier) = (intake.info(), intake.tier());
    let id = name.map(|name| format!("{}:{name}", info.name));
    json!({
        "id": id.as_ref().unwrap_or(&info.name),
        "object": "model",
        "created": created,
        "owned_by": "scone",
        "root": info.name,
        "parent": id.as_ref().map(|_| &info.name),
        "max_model_len": info.context_tokens,
        "scone": {
            "table_id": table.map_or("", |table| &table.table_id),
            "embed_mode": tier.mode(),
            "max_n": table.map(|table| table.max_n),
            "vocab_size": info.vocab_size,
            "has_chat_template": info.chat_template.is_some(),
        },
    })
}

/// The model with its default table, with each other one, and without.
fn models_of(intake: &Intake, created: u64) -> Vec<Value> {
    let tables = intake.tier().tables();
    let (default, named): (Vec<_>, Vec<_>) = tables.iter().partition(|t| t.name.is_default());
    let default = default.first().map(|facts| &***facts);
    let mut models = vec![model(intake, created, None, default)];
    models.extend(named.iter().map(|facts| {
        let name = facts.name.as_str();
        model(intake, created, Some(name), Some(facts.as_ref()))
    }));
    models.push(model(intake, created, Some("none"), None));
    models
}

/// `GET /v1/models`.
pub(super) async fn models(State(http): State<Shared>) -> Result<Response, Refusal> {
    let ready = http.ready()?;
    let models = models_of(&ready.intake, http.started);
    Ok(json_response(&json!({"object": "list", "data": models})))
}

/// `GET /v1/models/{model}`.
pub(super) async fn model_by_name(
    State(http): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let ready = http.ready()?;
    let intake = &ready.intake;
    let table = table_of(intake, Some(&name))?;
    let answer = match TableChoice::read(table.as_deref())? {
        TableChoice::None => model(intake, http.started, Some("none"), None),
        TableChoice::Named(table) => {
            let facts = intake.tier().table(&table);
            let name = (!table.is_default()).then(|| table.as_str());
            model(intake, http.started, name, facts.as_deref())
        }
    };
    Ok(json_response(&answer))
}

/// `GET /health`: 200 when requests are answered, 503 while the model loads or the service drains.
pub(super) async fn health(State(http): State<Shared>) -> Result<Response, Refusal> {
    if http.ready()?.intake.is_draining() {
        return Err(Error::Draining.into());
    }
    Ok(StatusCode::OK.into_response())
}

/// `GET /version`.
pub(super) async fn version() -> Response {
    json_response(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": started::REVISION,
    }))
}

/// `GET /metrics`, the same as on the port of `--metrics-listen`.
pub(super) async fn metrics(State(http): State<Shared>) -> Response {
    scone_service::metrics::exposition(&http.registry)
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
