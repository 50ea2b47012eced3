//! What the two endpoints that generate have in common, from a request's fields to its answer.

use std::sync::Arc;

use axum::{
    http::{Extensions, HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use scone_proto::{TRACEPARENT, TraceContext};
use scone_service::connections::far_end;
use serde_json::Value;

use super::{
    Http, Ready,
    answer::{Answer, Details},
    error::Refusal,
    fields::Fields,
    respond::{Delivery, respond},
    write::{Endpoint, Writer},
};
use crate::{error::Error, intake::Intake, keys::Key, places::Client, request::Draft};

/// A client's own name of a request, for logs; the answer has it too.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request that was read.
pub(super) struct Generation {
    pub(super) endpoint: Endpoint,
    /// One for each prompt.
    pub(super) drafts: Vec<Draft>,
    /// Completions of each prompt.
    pub(super) n: u32,
    pub(super) details: Details,
    pub(super) delivery: Delivery,
    /// The model asked for.
    pub(super) model: Option<String>,
}

impl Details {
    /// The fields that ask for more than text, but for those that endpoints have of their own.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Refusal> {
        Ok(Self {
            tokens_as_ids: fields.is_set("return_tokens_as_token_ids")?,
            token_ids: fields.is_set("return_token_ids")?,
            match_lengths: fields.is_set("return_match_lengths")?,
            ..Self::default()
        })
    }
}

impl Delivery {
    /// `stream` and `stream_options`.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Refusal> {
        let stream = fields.is_set("stream")?;
        let options: Option<Value> = fields.take("stream_options")?;
        if options.is_some() && !stream {
            return Err(Refusal::field("stream_options", "needs stream to be true"));
        }
        let include_usage = match options {
            None => false,
            Some(options) => match &options["include_usage"] {
                Value::Null => false,
                Value::Bool(set) => *set,
                _ => {
                    let problem = "has an include_usage that is neither true nor false";
                    return Err(Refusal::field("stream_options", problem));
                }
            },
        };
        Ok(Self {
            stream,
            include_usage,
        })
    }
}

/// The table that a model's name asks for: none by the name of the model served, `TABLE` by
/// `model:TABLE`. No name at all is the model served.
///
/// # Errors
/// When there is no such model, or no such table.
pub(super) fn table_of(intake: &Intake, model: Option<&str>) -> Result<Option<String>, Refusal> {
    let served = &intake.info().name;
    let Some(model) = model.filter(|model| model != served) else {
        return Ok(None);
    };
    let of_served = model.strip_prefix(served.as_str());
    let table = of_served.and_then(|rest| rest.strip_prefix(':'));
    let table = table.filter(|table| !table.is_empty());
    match table {
        Some(table) if intake.check_table(Some(table)).is_ok() => Ok(Some(table.to_owned())),
        _ => {
            let model: String = model.chars().take(128).collect();
            let problem = match table {
                Some(_) => "GET /v1/models lists the tables".to_owned(),
                None => format!("{served:?} does"),
            };
            Err(Refusal::not_found(
                format!("the model {model:?} does not exist here; {problem}"),
                "model_not_found",
            ))
        }
    }
}

/// A field has another name in conversations.
fn renamed(error: Error, endpoint: Endpoint) -> Error {
    match error {
        Error::InvalidField {
            field: "logprobs",
            problem,
        } if endpoint == Endpoint::Chat => Error::InvalidField {
            field: "top_logprobs",
            problem,
        },
        error => error,
    }
}

/// Who asks, as all drafts of a request are signed.
pub(super) struct Caller {
    id: Option<HeaderValue>,
    client: Option<Client>,
    key: Option<Arc<Key>>,
}

impl Caller {
    /// Of a request with these headers, and what its connection and the check of its key left with it.
    pub(super) fn new(headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self {
            id: headers.get(REQUEST_ID).cloned(),
            client: far_end(extensions).map(Client::Connection),
            key: extensions.get::<Arc<Key>>().cloned(),
        }
    }

    /// Signs a draft.
    pub(super) fn sign(&self, draft: &mut Draft) {
        let text = self.id.as_ref().and_then(|id| id.to_str().ok());
        draft.request_id = text.unwrap_or_default().to_owned();
        draft.client = self.client;
        draft.key = self.key.clone();
    }

    /// Gives an answer the name that its request has.
    pub(super) fn answer(self, response: &mut Response) {
        if let Some(id) = self.id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }
}

/// Submits a request and answers it.
pub(super) async fn answer(
    http: &Http,
    ready: &Ready,
    headers: &HeaderMap,
    extensions: &Extensions,
    generation: Generation,
) -> Result<Response, Refusal> {
    let intake = &ready.intake;
    let table = table_of(intake, generation.model.as_deref())?;
    let Generation {
        endpoint,
        mut drafts,
        n,
        details,
        delivery,
        model,
    } = generation;
    let trace = headers.get(TRACEPARENT);
    let trace = trace.and_then(|text| TraceContext::read(text.to_str().ok()?));
    let caller = Caller::new(headers, extensions);
    for draft in &mut drafts {
        caller.sign(draft);
        draft.table = table.clone();
        draft.caller = trace;
    }
    let deltas = intake.start_all(drafts, None).await;
    let deltas = deltas.map_err(|error| renamed(error, endpoint))?;
    let answer = Answer::new(deltas, n, details, ready.pieces.clone());
    let model = model.as_ref().unwrap_or(&intake.info().name);
    let writer = Writer::new(endpoint, model, answer.choices());
    let mut response = respond(answer, writer, delivery, http.heartbeat).await?;
    caller.answer(&mut response);
    Ok(response)
}
