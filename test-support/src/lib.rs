//! An embed-service for tests of its clients: it serves real or computed tables over the real
//! protocol, and misbehaves on request.
//!
//! - [`EmbedServer`] is a running server, with threads of its own, [`Service`] what it serves,
//! - [`certificates`] are for tests of TLS,
//! - [`tables`] are what it can serve: a [`scone_fgram::Table`], or every pair of ids.
//!
//! Steps that must succeed panic when they do not: this runs inside tests.
#![expect(clippy::unwrap_used, reason = "tests")]

mod behaviour;
pub mod certificates;
mod server;
mod service;
pub mod tables;

pub use behaviour::{Behaviour, Change};
pub use server::{EmbedServer, Setup};
pub use service::Service;

/// Longer than anything takes on a busy machine: a time limit that must not be what ends a wait.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
