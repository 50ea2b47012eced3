//! What is served beside generation: models, health, metrics, version, the API's description.

use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use scone_service::started;
use serde_json::{Value, json};

use super::{Shared, error::Refusal, generate::check_model, respond::json_response};
use crate::{error::Error, intake::Intake};

/// The OpenAPI description of the routes.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

fn model(intake: &Intake, created: u64) -> Value {
    let (info, tier) = (intake.info(), intake.tier());
    json!({
        "id": info.name,
        "object": "model",
        "created": created,
        "owned_by": "scone",
        "root": info.name,
        "parent": null,
        "max_model_len": info.context_tokens,
        "scone": {
            "table_id": tier.table_id(),
            "embed_mode": tier.mode(),
            "max_n": info.max_n,
            "vocab_size": info.vocab_size,
            "has_chat_template": info.chat_template.is_some(),
        },
    })
}

/// `GET /v1/models`.
pub(super) async fn models(State(http): State<Shared>) -> Result<Response, Refusal> {
    let ready = http.ready()?;
    let models = [model(&ready.intake, http.started)];
    Ok(json_response(&json!({"object": "list", "data": models})))
}

/// `GET /v1/models/{model}`.
pub(super) async fn model_by_name(
    State(http): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let ready = http.ready()?;
    check_model(&ready.intake, Some(&name))?;
    Ok(json_response(&model(&ready.intake, http.started)))
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
