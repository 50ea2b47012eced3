//! The gRPC contracts of SCONE: `.proto` files, the code generated from them, and the two pieces of
//! metadata that calls have; nothing else.
//!
//! The protos under `proto/scone/` are the reference for every field's unit, shape and limit.

mod retry;
mod trace;

pub use retry::{RETRY_PUSHBACK, retry_pushback, with_retry_pushback};
pub use trace::{TRACEPARENT, TraceContext};

/// The descriptors of all protos, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The embedding tier.
pub mod embed {
    /// `scone.embed.v1`: `EmbedService` and its messages.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("scone.embed.v1");
    }
}

/// OpenTelemetry's protocol, as far as we send it.
pub mod otlp {
    /// `opentelemetry.proto.collector.trace.v1`: `TraceService` and its messages.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
    }
}

/// The decoder tier.
pub mod decoder {
    /// `scone.decoder.v1`: `DecoderService` and its messages.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("scone.decoder.v1");
    }
}
