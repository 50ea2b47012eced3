//! Who calls over gRPC, and for how long they wait: the same for all methods that generate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use scone_proto::{TRACEPARENT, TraceContext};
use scone_service::connections::far_end;
use tonic::{Request, metadata::MetadataMap};

use crate::{client::Client, keys::Key, request::Draft};

/// What is beside the message of a call.
pub(super) struct Call {
    /// When the client stops waiting.
    pub(super) deadline: Option<Instant>,
    client: Option<Client>,
    key: Option<Arc<Key>>,
    /// The caller's span.
    trace: Option<TraceContext>,
}

impl Call {
    /// That of a request.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let trace = request.metadata().get(TRACEPARENT);
        Self {
            deadline: timeout(request.metadata()).map(|limit| Instant::now() + limit),
            client: far_end(request.extensions()).map(Client::Connection),
            key: request.extensions().get::<Arc<Key>>().cloned(),
            trace: trace.and_then(|text| TraceContext::read(text.to_str().ok()?)),
        }
    }

    /// The draft, with who asks.
    pub(super) fn sign(self, draft: Draft) -> Draft {
        Draft {
            client: self.client,
            key: self.key,
            caller: self.trace,
            ..draft
        }
    }
}

/// The client's deadline of the `grpc-timeout` header: at most 8 digits and a unit (gRPC over
/// HTTP/2, "Timeout"). A header that is none is ignored, as other servers do.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn grpc_timeouts() {
        let parse = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "S", "12", "-1S", "123456789S", "1x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
