//! Connections with TLS: who is let in, what the others hear, and that nobody waits for them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing};
use scone_service::{
    connections::{ConnectionLimits, ConnectionMetrics, Connections},
    grpc::{self, Drained},
    health::Health,
};
use scone_test_support::{PATIENCE, certificates::Authority};
use scone_tls::{ClientFiles, ClientTls, Connector, ServerFiles, ServerTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Error};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const SILENCE: Duration = Duration::from_millis(200);

/// A server of health over gRPC with TLS.
struct Server {
    address: SocketAddr,
    metrics: ConnectionMetrics,
    stop: CancellationToken,
    task: JoinHandle<Drained>,
}

async fn connections(files: ServerFiles) -> Connections {
    let any_port = "127.0.0.1:0".parse().unwrap();
    Connections {
        listener: grpc::bind(any_port).await.unwrap(),
        limits: ConnectionLimits {
            silence: SILENCE,
            ..ConnectionLimits::default()
        },
        metrics: ConnectionMetrics::default(),
        tls: Some(ServerTls::open(files).unwrap()),
    }
}

impl Server {
    async fn start(files: ServerFiles) -> Self {
        let connections = connections(files).await;
        let (address, metrics) = (
            connections.listener.local_addr().unwrap(),
            connections.metrics.clone(),
        );
        let (health, service) = Health::register(&[]).await;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            let router = grpc::server_builder().add_service(service);
            let draining = CancellationToken::new();
            grpc::serve_until(router, connections, stopped, &health, draining, PATIENCE).await
        });
        Self {
            address,
            metrics,
            stop,
            task,
        }
    }

    /// Connects and asks; what went wrong with that.
    async fn ask(&self, files: ClientFiles) -> Result<(), String> {
        let connector = Connector {
            tls: ClientTls::open(files).unwrap(),
            name: "localhost".to_owned(),
            address: self.address.to_string(),
        };
        let endpoint = Endpoint::from_static("https://localhost");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| chain(&error))?;
        let mut client = HealthClient::new(channel);
        let answer = client.check(HealthCheckRequest::default()).await;
        answer.map(drop).map_err(|status| chain(&status))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn the_wrong_certificate_and_none_are_refused() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = Server::start(servers.server(Some(&clients))).await;
    server.ask(servers.client(Some(&clients))).await.unwrap();
    let none = server.ask(servers.client(None)).await.unwrap_err();
    assert!(none.contains("CertificateRequired"), "{none}");
    let wrong = server.ask(servers.client(Some(&strangers))).await;
    let wrong = wrong.unwrap_err();
    assert!(wrong.contains("UnknownCA"), "{wrong}");
    let distrusts = server.ask(strangers.client(Some(&clients))).await;
    assert!(distrusts.unwrap_err().contains("UnknownIssuer"));
    while server.metrics.tls_failed.get() < 3 {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    assert_eq!(server.task.await.unwrap(), Drained::Complete);
}

/// Neither a hang nor a reset: the client's own protocol says what is wrong.
#[tokio::test]
async fn a_client_without_tls_is_told_so() {
    let server = Server::start(Authority::new().server(None)).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let asked = async {
        let mut client = HealthClient::new(endpoint.connect().await?);
        let answer = client.check(HealthCheckRequest::default()).await;
        // What it says is up to tonic, which may have had no call on its way yet.
        Ok::<_, Error>(answer.unwrap_err())
    };
    let _ = tokio::time::timeout(PATIENCE, asked).await.unwrap();
    let mut garbage = TcpStream::connect(server.address).await.unwrap();
    garbage.write_all(&[7; 300]).await.unwrap();
    let mut answer = Vec::new();
    garbage.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"this port needs TLS"));
    // GOAWAY alone: after SETTINGS, gRPC's C library would connect again and again.
    assert_eq!(answer[..5], [0, 0, 27, 7, 0]);
    assert_eq!(answer.len(), 9 + 27);
}

#[tokio::test]
async fn http_has_tls_as_well_and_says_so_without() {
    let servers = Authority::new();
    let connections = connections(servers.server(None)).await;
    let address = connections.listener.local_addr().unwrap();
    let router = Router::new().route("/", routing::get(async || "here"));
    tokio::spawn(connections.serve_http(router, CancellationToken::new()));
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let text = String::from_utf8_lossy(request);
    let over_tls = servers.https(&address.to_string(), &text).await.unwrap();
    assert!(over_tls.ends_with("\r\n\r\nhere"), "{over_tls}");
    let strangers = Authority::new();
    assert!(strangers.https(&address.to_string(), &text).await.is_err());
    let mut answer = String::new();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(request).await.unwrap();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nthis port needs TLS\n"),
        "{answer}"
    );
}

/// Clients that begin a handshake and stop are cut, and meanwhile others are served; so is a drain.
#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_and_holds_nobody_up() {
    let servers = Authority::new();
    let server = Server::start(servers.server(None)).await;
    let mut stuck = Vec::new();
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        stuck.push(stream);
    }
    server.ask(servers.client(None)).await.unwrap();
    for mut stream in stuck {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(server.metrics.silent.get(), 3);
    // One that has shaken hands and says no HTTP/2 is cut as one without TLS would be.
    let tls = ClientTls::open(servers.client(None)).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut mute = tls.connect("localhost", stream).await.unwrap();
    let _ = mute.read_to_end(&mut Vec::new()).await;
    assert_eq!(server.metrics.silent.get(), 4);
    let _begun = TcpStream::connect(server.address).await.unwrap();
    server.stop.cancel();
    assert_eq!(server.task.await.unwrap(), Drained::Complete);
}
