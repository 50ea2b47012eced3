//! What HTTP is spoken over: a socket as it is, or TLS on it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use scone_tls::{Protocol, ServerStream, ServerTls};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{
    frames::Frames,
    socket::{ConnectionInfo, Socket},
};

/// First byte of every client that speaks TLS: a record with a part of the handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// A client with a call on its way tells the caller why that failed; one without often does not.
const REFUSAL_DELAY: Duration = Duration::from_millis(100);

/// How long a client may take to read why it is refused.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// GOAWAY with INADEQUATE_SECURITY and a text of 19 bytes (RFC 9113, 6.8 and 7). No SETTINGS before it,
/// though servers begin with them: with them the connection counts as made, and gRPC's C library
/// connects again at once, for ever, where now the call ends with UNAVAILABLE.
const REFUSAL_HTTP2: &[u8] = b"\0\0\x1b\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port needs TLS";

const REFUSAL_HTTP1: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 20\r\n\r\nthis port needs TLS\n";

/// A connection that HTTP can be spoken over. Counts what comes.
pub(super) struct Transport {
    stream: Stream,
    heard: Heard,
    flood: Option<Flood>,
}

/// What ends a connection of HTTP/2 over which too many frames come.
struct Flood {
    frames: Frames,
    /// Told when they do.
    met: Counter,
}

enum Stream {
    Plain(Socket),
    Tls(Box<ServerStream<Socket>>),
}

/// Bytes that came over a connection, without those of TLS; clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicU64>);

impl Heard {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection did not come to be.
#[derive(Debug)]
pub(super) enum NoTransport {
    /// The client said nothing in time, or the server drains.
    Silent,
    /// It speaks no TLS, or no certificate was good enough.
    Refused(io::Error),
}

impl Transport {
    /// Without TLS.
    pub(super) fn plain(socket: Socket) -> Self {
        Self::of(Stream::Plain(socket))
    }

    fn of(stream: Stream) -> Self {
        Self {
            stream,
            heard: Heard::default(),
            flood: None,
        }
    }

    /// Fails once a client of HTTP/2 floods it with frames that ask for nothing, and counts that.
    pub(super) fn without_floods(self, met: &Counter) -> Self {
        let flood = Some(Flood {
            frames: Frames::new(Instant::now()),
            met: met.clone(),
        });
        Self { flood, ..self }
    }

    /// Bytes were given to the stream.
    fn sent(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(flood), Poll::Ready(Ok(bytes))) = (&mut self.flood, &written) {
            flood.frames.sent(*bytes);
        }
        written
    }

    /// Has the client show that it speaks TLS, and who it is if it must, within `longest` and
    /// before the server drains.
    pub(super) async fn secure(
        socket: Socket,
        tls: &ServerTls,
        protocol: Protocol,
        longest: Duration,
        ending: &CancellationToken,
    ) -> Result<Self, NoTransport> {
        tokio::select! {
            secured = shake_hands(socket, tls, protocol) => {
                let stream = secured.map_err(NoTransport::Refused)?;
                Ok(Self::of(Stream::Tls(Box::new(stream))))
            }
            () = sleep(longest) => Err(NoTransport::Silent),
            () = ending.cancelled() => Err(NoTransport::Silent),
        }
    }

    /// What has come over it.
    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

async fn shake_hands(
    socket: Socket,
    tls: &ServerTls,
    protocol: Protocol,
) -> io::Result<ServerStream<Socket>> {
    match socket.first_byte().await? {
        Some(HANDSHAKE_RECORD) => match tls.accept(protocol, socket).await {
            Ok(stream) => Ok(stream),
            Err((error, socket)) => {
                refuse(socket, b"").await;
                Err(error)
            }
        },
        Some(_) => {
            let refusal = match protocol {
                Protocol::Http1 => REFUSAL_HTTP1,
                Protocol::Http2 => REFUSAL_HTTP2,
            };
            sleep(REFUSAL_DELAY).await;
            refuse(socket, refusal).await;
            Err(io::Error::other("no TLS"))
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Says what is wrong, and ends so that it can be read: to close a connection with something unread on
/// it resets it.
async fn refuse(mut socket: Socket, refusal: &[u8]) {
    let refused = async {
        socket.write_all(refusal).await?;
        socket.shutdown().await?;
        let mut unread = [0; 1024];
        while socket.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // A client that is slow to read it is cut without, and one that has left does not care.
    let _ = timeout(REFUSAL_TIME, refused).await;
}

impl Connected for Transport {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        match &self.stream {
            Stream::Plain(socket) => socket.connect_info(),
            Stream::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let more = &buf.filled()[before..];
        self.heard.0.fetch_add(more.len() as u64, Ordering::Relaxed);
        if let Some(flood) = &mut self.flood
            && flood.frames.came(more, Instant::now())
        {
            flood.met.inc();
            let flood = io::Error::other("a flood of frames that ask for nothing");
            return Poll::Ready(Err(flood));
        }
        read
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(socket) => socket.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
