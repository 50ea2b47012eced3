//! The port of a gRPC server.

use std::{net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use crate::Error;

/// A peer that is silent this long is pinged, so that connections to vanished hosts end.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Binds the port of a gRPC server; port 0 takes a free one.
///
/// # Errors
/// When the port is in use or not allowed, naming the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    bind_for("gRPC", address).await
}

/// As [`bind`], for something else, which the error names.
///
/// # Errors
/// When the port is in use or not allowed, naming the address.
pub async fn bind_for(purpose: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Bind {
            purpose,
            address,
            source,
        })
}

/// The connections of a listener, with TCP_NODELAY: with Nagle's algorithm on, a small reply
/// waits for the client's delayed acknowledgement, 44 ms instead of 0.15 ms.
#[must_use]
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(KEEPALIVE_INTERVAL))
}
