//! OpenAI's API over HTTP, and a page that shows the method. Like gRPC it decodes, submits and
//! encodes, and nothing else: checks and limits are [`request`](crate::request)'s, and both come in
//! by the [`Intake`].
//!
//! ```text
//! body ──bounded──> fields ──> Draft ──Intake──> Answer: news of all choices ──> whole | events
//! ```
//!
//! Bodies are bounded before they are parsed. A client that goes away drops its answer, and with it
//! the generation, within a step. Fields that nobody knows are ignored, as others do; known ones
//! that are wrong are refused by name. docs/http.md has the fields and what differs from OpenAI's.

mod answer;
mod auth;
mod body;
mod caller;
mod completions;
mod conversation;
mod cors;
mod error;
mod explain;
mod fields;
mod generate;
mod logprobs;
mod operations;
mod page;
mod respond;
mod tokens;
mod write;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::Uri,
    middleware,
    response::Response,
    routing::{MethodRouter, get, post},
};
use prometheus_client::registry::Registry;

use self::{
    body::Bodies,
    caller::Caller,
    cors::Origins,
    error::Refusal,
    fields::Fields,
    respond::{json_response, json_text},
};
use crate::{error::Error, intake::Intake, keys::ApiKeys, text::Pieces};

/// How HTTP is served.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address and port.
    pub listen: std::net::SocketAddr,
    /// Origins whose pages may call; `*` is any.
    pub cors_origins: Vec<String>,
    /// Silence of a stream after which a comment is sent.
    pub heartbeat: Duration,
}

/// What generates, once the model is loaded.
struct Ready {
    intake: Arc<Intake>,
    pieces: Arc<Pieces>,
}

/// What all requests share.
struct Http {
    ready: Arc<OnceLock<Ready>>,
    registry: Arc<Registry>,
    bodies: Bodies,
    heartbeat: Duration,
    /// When the service started, in seconds since 1970.
    started: u64,
}

type Shared = Arc<Http>;

impl Http {
    fn ready(&self) -> Result<&Ready, Refusal> {
        self.ready.get().ok_or_else(|| Error::Loading.into())
    }

    /// Makes something of a request's body, once there is what answers; nothing is read before.
    async fn read<T: Send + 'static>(
        &self,
        request: Request,
        read: impl FnOnce(Fields, &[u8]) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(&Ready, T), Refusal> {
        let ready = self.ready()?;
        let (head, body) = request.into_parts();
        Ok((ready, self.bodies.parse(&head.headers, body, read).await?))
    }
}

/// Tells HTTP that the model is loaded.
pub struct SetReady(Arc<OnceLock<Ready>>);

impl fmt::Debug for SetReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SetReady")
    }
}

impl SetReady {
    /// Requests that come from now on are answered by this intake.
    pub fn set(self, intake: Arc<Intake>) {
        let pieces = Arc::new(Pieces::new(intake.info().tokenizer.clone()));
        // Nobody else can set it: there is one of this, and it ends here.
        self.0.get_or_init(|| Ready { intake, pieces });
    }
}

/// All routes. Until the model is loaded they refuse, but for those that need none.
/// With keys, a request that needs one and has none is refused before anything is looked at.
pub fn router(
    config: &HttpConfig,
    registry: Arc<Registry>,
    keys: Option<ApiKeys>,
) -> (Router, SetReady) {
    let ready = Arc::default();
    let http = Arc::new(Http {
        ready: Arc::clone(&ready),
        registry,
        bodies: Bodies::default(),
        heartbeat: config.heartbeat,
        started: write::unix_seconds(),
    });
    let mut router = Router::new();
    for (_, path, handler) in routes() {
        router = router.route(path, handler);
    }
    let origins = Origins::new(&config.cors_origins);
    let mut router = router
        .merge(page::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    if let Some(keys) = keys {
        router = router.layer(middleware::from_fn_with_state(keys, auth::authenticated));
    }
    // Outside: browsers ask without a key whether they may send one.
    let router = router
        .layer(middleware::from_fn_with_state(origins, cors::cross_origin))
        .with_state(http);
    (router, SetReady(ready))
}

/// Method, path and handler of all that programs call.
fn routes() -> [(&'static str, &'static str, MethodRouter<Shared>); 13] {
    [
        ("post", "/v1/completions", post(completions)),
        ("post", "/v1/chat/completions", post(chat_completions)),
        ("post", "/v1/fgrams/describe", post(describe_fgram)),
        ("post", "/v1/fgrams/explain", post(explain_fgram)),
        ("get", "/v1/models", get(operations::models)),
        ("get", "/v1/models/{model}", get(operations::model_by_name)),
        ("post", "/tokenize", post(tokenize)),
        ("post", "/detokenize", post(detokenize)),
        ("get", "/tokenizer_info", get(tokenizer_info)),
        ("get", "/health", get(operations::health)),
        ("get", "/metrics", get(operations::metrics)),
        ("get", "/version", get(operations::version)),
        ("get", "/openapi.json", get(operations::openapi)),
    ]
}

async fn completions(
    State(http): State<Shared>,
    caller: Caller,
    request: Request,
) -> Result<Response, Refusal> {
    let read = |fields, _: &[u8]| completions::read(fields);
    let (ready, generation) = http.read(request, read).await?;
    generate::answer(&http, ready, caller, generation).await
}

async fn chat_completions(
    State(http): State<Shared>,
    caller: Caller,
    request: Request,
) -> Result<Response, Refusal> {
    let (ready, generation) = http.read(request, conversation::read).await?;
    generate::answer(&http, ready, caller, generation).await
}

async fn explain_fgram(
    State(http): State<Shared>,
    caller: Caller,
    request: Request,
) -> Result<Response, Refusal> {
    let read = |fields, _: &[u8]| explain::Question::read(fields);
    let (ready, question) = http.read(request, read).await?;
    explain::answer(ready, caller, question).await
}

async fn describe_fgram(State(http): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let read = |fields, _: &[u8]| explain::read_fgram(fields);
    let (ready, question) = http.read(request, read).await?;
    Ok(json_response(&explain::described(ready, question).await?))
}

async fn tokenize(State(http): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let (ready, asked) = http.read(request, tokens::Tokenize::read).await?;
    let (bytes, model) = (asked.text_bytes(), ready.intake.info().clone());
    let answer = ready.intake.tokenise(bytes, move || asked.answer(&model));
    Ok(json_text(answer.await??))
}

async fn detokenize(State(http): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let model = http.ready()?.intake.info().clone();
    let answer = move |fields, _: &[u8]| {
        let ids = tokens::read_detokenize(fields)?;
        tokens::detokenized(&model, &ids)
    };
    let (_, answer) = http.read(request, answer).await?;
    Ok(json_response(&answer))
}

async fn tokenizer_info(State(http): State<Shared>) -> Result<Response, Refusal> {
    let ready = http.ready()?;
    Ok(json_response(&tokens::tokenizer_info(ready.intake.info())))
}

async fn not_found(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(128).collect();
    Refusal::not_found(format!("there is no {path} here"), "not_found")
}

async fn method_not_allowed(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(128).collect();
    Refusal::method_not_allowed(format!("{path} is not for this method"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_every_description_is_a_route() {
        let openapi: serde_json::Value = serde_json::from_str(operations::OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in openapi["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys();
            described.extend(methods.map(|method| (method.as_str(), path.as_str())));
        }
        let routes = routes();
        let routed = routes.iter().map(|(method, path, _)| (*method, *path));
        assert_eq!(routed.collect::<BTreeSet<_>>(), described);
        assert_eq!(openapi["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
