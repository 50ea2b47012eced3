//! The connections of a server: how many, and how old they may get.
//!
//! A client keeps its connections, so replicas that are added later would get no work. A
//! connection therefore ends after a time: its long-lived streams end first, GOAWAY tells the
//! client to open another, and what still runs after a grace period is cut.
//!
//! This is ours because what there is cannot do it:
//!
//! - hyper-util's `GracefulShutdown` tells all connections of a server to end, at one time. It
//!   has no age, no end of a single connection, no limit at accept and no cut after a grace
//!   period. It also wants hyper's connection, which tonic's `Router` keeps to itself; one built
//!   beside tonic would lose the deadlines (`grpc-timeout`) and settings of tonic's server.
//! - tonic's `max_connection_age` is the same for all connections, which then come back all at
//!   once; and with a grace period (0.14) it cuts them without a GOAWAY.
//!
//! So each connection gets a tonic server of its own, whose graceful shutdown is that of the
//! connection. tonic runs it in a task that nobody can stop, so the socket can be cut instead.
//!
//! Where TLS is asked for, its handshake comes before all that, in the task of the connection: one that
//! is slow or fails holds up nobody else.
//!
//! Connections of HTTP/1 have the same life: see [`Connections::serve_http`].

mod args;
mod frames;
mod http;
mod limits;
mod names;
mod serve;
mod socket;
mod tls_args;
mod transport;

pub use args::ConnectionArgs;
pub use limits::{ConnectionLimits, ConnectionMetrics};
pub use names::ConnectionNames;
pub use serve::Connections;
pub use socket::{cutter, ending, far_end};
pub use tls_args::TlsArgs;
