//! The gRPC contracts of SCONE: `.proto` files, the code generated from them, and the one piece of
//! metadata that both services send; nothing else.
//!
//! The protos under `proto/scone/` are the reference for every field's unit, shape and limit.

mod retry;

pub use retry::{RETRY_PUSHBACK, retry_pushback, with_retry_pushback};

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

/// The decoder tier.
pub mod decoder {
    /// `scone.decoder.v1`: `DecoderService` and its messages.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("scone.decoder.v1");
    }
}
