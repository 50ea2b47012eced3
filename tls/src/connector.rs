//! Opens connections for a gRPC client.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::ClientTls;

/// How long a server may take to say what it thinks of the client's certificate.
const VERDICT: Duration = Duration::from_millis(250);

/// Opens a connection to one server whenever it is called, whatever for: for tonic's
/// `connect_with_connector`, whose endpoint should have an origin of `https://NAME`.
#[derive(Clone, Debug)]
pub struct Connector {
    /// The client's side.
    pub tls: ClientTls,
    /// What the server's certificate must say: a host name or an IP address.
    pub name: String,
    /// Where it is: `host:port`.
    pub address: String,
}

impl Connector {
    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        // With Nagle's algorithm on, a small request waits for a delayed acknowledgement.
        stream.set_nodelay(true)?;
        let mut stream = self.tls.connect(&self.name, stream).await?;
        // In TLS 1.3 the client is done before the server has looked at its certificate. Most servers
        // begin to speak at once; what others think shows later.
        match timeout(VERDICT, stream.fill_buf()).await {
            Ok(Ok([])) => Err(io::Error::other(
                "it closed the connection after the handshake",
            )),
            Ok(Err(refused)) => Err(refused),
            Ok(Ok(_)) | Err(_) => Ok(stream),
        }
    }
}

impl<R> Service<R> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Self::Future {
        let connected = self.clone().connect();
        Box::pin(async { Ok(TokioIo::new(connected.await?)) })
    }
}
