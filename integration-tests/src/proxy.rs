//! A TCP proxy under the test's control: a network that is slow, swallows everything, or cuts.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
    time::sleep,
};

/// What the proxy does with what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Passes it on.
    Fair,
    /// Passes each piece on so much later.
    Slow(Duration),
    /// Takes it and passes nothing on; connections stay open, new ones are accepted.
    BlackHole,
    /// Resets every connection, also new ones.
    Reset,
}

/// A proxy in front of one address; connections end with it.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens, as `127.0.0.1:port`.
    pub address: String,
    weather: watch::Sender<Weather>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Starts one in front of `target`, in fair weather.
    ///
    /// # Panics
    /// When there is no port for it.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let target: SocketAddr = target.parse().expect("an address");
        let (weather, changes) = watch::channel(Weather::Fair);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target, changes.clone()));
            }
        });
        Self {
            address,
            weather,
            accepting: accepting.abort_handle(),
        }
    }

    /// Changes what happens to all connections from now on.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes both ways until one side ends, the test is over, or the weather resets it.
async fn connection(client: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let changes = weather.clone();
    let connect = async {
        let server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        // Closed without a word, as by a router that lost its table, when it is dropped.
        server.set_zero_linger()?;
        client.set_zero_linger()?;
        std::io::Result::Ok(server)
    };
    let Ok(server) = connect.await else { return };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        _ = weather.wait_for(|weather| *weather == Weather::Reset) => {}
        () = one_way(from_client, to_server, changes.clone()) => {}
        () = one_way(from_server, to_client, changes) => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
) {
    let mut piece = vec![0; 1 << 16];
    loop {
        let Ok(read @ 1..) = from.read(&mut piece).await else {
            return;
        };
        let now = *weather.borrow();
        match now {
            Weather::Fair | Weather::Reset => {}
            Weather::Slow(by) => sleep(by).await,
            // What is lost of a stream of bytes is lost for good: this connection stays silent.
            Weather::BlackHole => std::future::pending().await,
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
