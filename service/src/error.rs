use std::{io, net::SocketAddr};

/// Why a service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port could not be bound.
    #[error("cannot listen on {address} for {purpose}{hint}", hint = hint(.source))]
    Bind {
        /// What the port is for: "gRPC", "HTTP" or "metrics".
        purpose: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// `--log` is not a filter.
    #[error("--log {filter:?} is not a filter such as \"info\" or \"warn,embed_service=debug\"")]
    LogFilter {
        /// What was given.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up twice in one process.
    #[error("logging is already set up in this process")]
    LogInit(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What to do about the usual failure.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => " (another process has the port: stop it or choose another)",
        _ => "",
    }
}
