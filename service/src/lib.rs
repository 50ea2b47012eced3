//! What both services share: logs, traces, progress, signals, connections, metrics endpoint, gRPC server settings.
//!
//! A service is put together like this:
//!
//! ```no_run
//! # async fn example(router: tonic::transport::server::Router) -> Result<(), scone_service::Error> {
//! use scone_service::{grpc, health::Health, signals::shutdown_signal};
//! use std::time::Duration;
//! use tokio_util::sync::CancellationToken;
//!
//! let listener = grpc::bind("127.0.0.1:0".parse().expect("an address")).await?;
//! // The names are in the generated code: `embed_service_server::SERVICE_NAME`.
//! let (health, health_service) = Health::register(&["a.Service"]).await;
//! let draining = CancellationToken::new(); // handlers with long streams watch it
//! health.set_serving().await; // when the table or model is loaded
//! let router = router.add_service(health_service);
//! let timeout = Duration::from_secs(25);
//! grpc::serve_until(router, listener, shutdown_signal(), &health, draining, timeout).await;
//! # Ok(())
//! # }
//! ```
//!
//! One that loads for long serves its port all the while, and is a [late service](late).
//!
//! It holds nothing that only one service needs, and no knowledge of tables or models.

pub mod announce;
pub mod args;
pub mod certificates;
pub mod client_tls;
pub mod connections;
mod error;
pub mod grpc;
pub mod guard;
pub mod health;
pub mod late;
mod listener;
pub mod metrics;
pub mod progress;
pub mod reflection;
pub mod signals;
pub mod started;
pub mod telemetry;
pub mod traces;
pub mod unsent;

pub use error::Error;
