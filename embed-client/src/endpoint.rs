//! How connections to an embed-service are set up.

use std::{fmt, net::SocketAddr, time::Duration};

use scone_tls::{ClientTls, Connector};
use tonic::transport::{Channel, Endpoint, Error};

/// HTTP/2 window of one stream. What a client has room for bounds what a server sends, and a
/// prompt's rows are some MiB: the default of 64 KiB would stop them for a round trip every 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of one connection, shared by its streams.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 frame accepted: rows come in few, large ones.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// A peer that leaves pings unanswered this long is gone, though its connection looks open.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client opens its connections: by TCP, but for simulated networks.
#[tonic::async_trait]
pub trait Open: fmt::Debug + Send + Sync {
    /// Opens one to an address.
    ///
    /// # Errors
    /// When there is none.
    async fn open(&self, endpoint: Endpoint, address: SocketAddr) -> Result<Channel, Error>;
}

/// Over the network of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

#[tonic::async_trait]
impl Open for Tcp {
    async fn open(&self, endpoint: Endpoint, _: SocketAddr) -> Result<Channel, Error> {
        endpoint.connect().await
    }
}

/// The embed-service at `address` (`host:port`), with the windows, frames and pings that
/// [`EmbedClient`](crate::EmbedClient) uses; for tools that speak to one server themselves. A
/// connection that is not there within `connect_timeout` is given up.
///
/// # Errors
/// When `address` is not a host and a port.
pub fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, Error> {
    configured(format!("http://{address}"), connect_timeout)
}

/// Connects to the embed-service at `address` as [`endpoint`] says: over TLS, to a server whose
/// certificate has this name, or plain.
///
/// # Errors
/// When `address` is not a host and a port, or there is no connection.
pub async fn connect(
    address: &str,
    tls: Option<(&ClientTls, &str)>,
    connect_timeout: Duration,
) -> Result<Channel, Error> {
    let Some((tls, name)) = tls else {
        return endpoint(address, connect_timeout)?.connect().await;
    };
    let port = address.rsplit_once(':').map_or("443", |(_, port)| port);
    let endpoint = configured(format!("https://{name}:{port}"), connect_timeout)?;
    let connector = Connector {
        tls: tls.clone(),
        name: name.to_owned(),
        address: address.to_owned(),
    };
    endpoint.connect_with_connector(connector).await
}

fn configured(origin: String, connect_timeout: Duration) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(origin)?
        .connect_timeout(connect_timeout)
        // With Nagle's algorithm on, a small request waits for a delayed acknowledgement.
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}
