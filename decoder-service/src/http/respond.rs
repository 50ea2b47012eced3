//! One answer over the wire: whole, or as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{answer::Answer, error::Refusal, write::Writer};

/// How an answer is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivery {
    /// As it grows.
    pub(super) stream: bool,
    /// A stream ends with a chunk of counts.
    pub(super) include_usage: bool,
}

/// Sends an answer.
pub(super) async fn respond(
    mut answer: Answer,
    mut writer: Writer,
    delivery: Delivery,
    heartbeat: Duration,
) -> Result<Response, Refusal> {
    if delivery.stream {
        return Ok(event_stream(answer, writer, delivery, heartbeat));
    }
    let all = answer.whole().await?;
    Ok(json_response(&writer.whole(&answer, &all)))
}

/// 200 and a JSON body.
pub(super) fn json_response(body: &Value) -> Response {
    json_text(body.to_string())
}

/// An answer that is written already.
pub(super) fn json_text(body: String) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, body).into_response()
}

fn event_stream(
    answer: Answer,
    writer: Writer,
    delivery: Delivery,
    heartbeat: Duration,
) -> Response {
    let events = Events {
        answer,
        writer,
        delivery,
        heartbeat,
        over: false,
    };
    let body = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies must not collect the events.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// The events of one answer. Dropped with the connection, it cancels the request.
struct Events {
    answer: Answer,
    writer: Writer,
    delivery: Delivery,
    /// Silence after which a comment is sent, so that proxies and clients do not give up.
    heartbeat: Duration,
    over: bool,
}

impl Events {
    /// The next bytes; `None` after the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let news = tokio::select! {
            biased;
            news = self.answer.next() => news,
            () = sleep_until(Instant::now() + self.heartbeat) => {
                return Some(Bytes::from_static(b": still here\n\n"));
            }
        };
        let mut out = String::new();
        match news {
            Some(Ok(news)) => {
                let details = *self.answer.details();
                for mut chunk in self.writer.chunks(&details, &news) {
                    if self.delivery.include_usage {
                        chunk["usage"] = Value::Null;
                    }
                    event(&mut out, &chunk);
                }
            }
            Some(Err(error)) => {
                debug!(error = %error, "a stream ends early");
                self.over = true;
                out.push_str("event: error\n");
                event(&mut out, &Refusal::from(error).json());
            }
            None => {
                self.over = true;
                if self.delivery.include_usage {
                    event(&mut out, &self.writer.usage_chunk(&self.answer));
                }
                out.push_str("data: [DONE]\n\n");
            }
        }
        Some(out.into())
    }
}

fn event(out: &mut String, data: &Value) {
    out.push_str("data: ");
    // JSON has its line breaks escaped.
    out.push_str(&data.to_string());
    out.push_str("\n\n");
}
