//! The retry hint of both services: when a refused call may be tried again.

use std::time::Duration;

use tonic::{Status, metadata::MetadataValue};

/// Metadata of a RESOURCE_EXHAUSTED or UNAVAILABLE status: milliseconds to wait before the next
/// try. gRPC's own name for it (proposal A6, server pushback), which generated clients with a
/// retry policy follow.
pub const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The status with the hint to wait `delay`, in whole milliseconds.
#[must_use]
pub fn with_retry_pushback(mut status: Status, delay: Duration) -> Status {
    let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let metadata = status.metadata_mut();
    metadata.insert(RETRY_PUSHBACK, MetadataValue::from(ms));
    status
}

/// The hint of a status; none when it has none, or one that is no number of milliseconds.
#[must_use]
pub fn retry_pushback(status: &Status) -> Option<Duration> {
    let hint = status.metadata().get(RETRY_PUSHBACK)?.to_str().ok()?;
    hint.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_read_as_it_was_written() {
        let refused = Status::unavailable("not yet");
        assert_eq!(retry_pushback(&refused), None);
        let hinted = with_retry_pushback(refused, Duration::from_millis(250));
        let written = hinted.metadata().get("grpc-retry-pushback-ms");
        assert_eq!(written.and_then(|hint| hint.to_str().ok()), Some("250"));
        assert_eq!(retry_pushback(&hinted), Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_hint_that_is_no_number_is_none() {
        let mut refused = Status::unavailable("not yet");
        let metadata = refused.metadata_mut();
        metadata.insert(RETRY_PUSHBACK, MetadataValue::from_static("-1"));
        assert_eq!(retry_pushback(&refused), None);
    }
}
