//! A socket that can be cut, and lets requests know when it is to end.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Extensions, transport::server::Connected};

/// When the connection of a request is to end: at its age, or when the server drains. Handlers
/// of long-lived streams watch it and finish; a request from elsewhere gets a token that is
/// never cancelled.
#[must_use]
pub fn ending(extensions: &Extensions) -> CancellationToken {
    let found = extensions.get::<ConnectionInfo>();
    found.map(|info| info.ending.clone()).unwrap_or_default()
}

/// One of the connections allowed, shown by a gauge.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Slot {
    pub(super) fn take(permit: OwnedSemaphorePermit, open: &Gauge) -> Self {
        open.inc();
        Self {
            _permit: permit,
            open: open.clone(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// A TCP connection that can be cut from outside.
pub(super) struct Socket {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    cutter: CancellationToken,
    ending: CancellationToken,
    _slot: Slot,
    /// Whoever serves it waits for `ending`, and must not outlive it.
    _closed: DropGuard,
}

/// What requests know of their connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    ending: CancellationToken,
    cut: CancellationToken,
    far_end: Option<SocketAddr>,
}

/// Cuts the connection of a request when it is cancelled: for clients that do not read. That of a
/// request from elsewhere does nothing.
#[must_use]
pub fn cutter(extensions: &Extensions) -> CancellationToken {
    let found = extensions.get::<ConnectionInfo>();
    found.map(|info| info.cut.clone()).unwrap_or_default()
}

/// Where the connection of a request comes from.
#[must_use]
pub fn far_end(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<ConnectionInfo>()?.far_end
}

impl Connected for Socket {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo {
            ending: self.ending.clone(),
            cut: self.cutter.clone(),
            far_end: self.stream.peer_addr().ok(),
        }
    }
}

impl Socket {
    /// A socket that fails once `cut` is cancelled, whose requests see `ending`, and which cancels
    /// `ending` when it is closed.
    pub(super) fn new(
        stream: TcpStream,
        slot: Slot,
        cut: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        Self {
            stream,
            cutter: cut.clone(),
            cut: Box::pin(cut.cancelled_owned()),
            _slot: slot,
            _closed: ending.clone().drop_guard(),
            ending,
        }
    }

    /// What comes first, which stays to be read; `None` at the end.
    pub(super) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let read = self.stream.peek(&mut byte).await?;
        Ok((read > 0).then_some(byte[0]))
    }

    /// The socket, or an error once it was cut; the caller's task is woken then.
    fn uncut(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.uncut(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.uncut(cx)?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.uncut(cx)?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.uncut(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
