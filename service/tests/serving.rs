//! Bind, serve and drain, with the health service as the only service.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{error::Error as _, time::Duration};

use prometheus_client::registry::Registry;
use scone_service::{
    connections::{ConnectionLimits, ConnectionMetrics, Connections},
    grpc::{self, Drained},
    guard::MessageBudget,
    health::Health,
    late::late_service,
    metrics::MetricsEndpoint,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    codegen::{
        Service as _,
        http::{Method, Request, Response, StatusCode},
    },
    transport::Endpoint,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

const ANY_PORT: &str = "127.0.0.1:0";

/// Nagle's algorithm costs 44 ms a reply: this looks at the socket option, not at a clock.
#[tokio::test]
async fn accepted_connections_have_nodelay() {
    let listener = grpc::bind(ANY_PORT.parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).await.unwrap();
    let accepted = grpc::incoming(listener).next().await.unwrap().unwrap();
    assert!(accepted.nodelay().unwrap());
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = grpc::bind(address).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("another process has the port"), "{text}");
    assert!(error.source().is_some());
    let (health, _) = Health::register(&[]).await;
    let error = MetricsEndpoint::start(address, Registry::default(), health).await;
    assert!(error.unwrap_err().to_string().contains("for metrics"));
}

/// Probes over plain HTTP see what those over gRPC see.
#[tokio::test]
async fn health_is_told_beside_the_metrics() {
    let (health, _) = Health::register(&["a.Service"]).await;
    let registry = Registry::default();
    let address = ANY_PORT.parse().unwrap();
    let endpoint = MetricsEndpoint::start(address, registry, health.clone())
        .await
        .unwrap();
    let status = async |path: &str| {
        let mut stream = TcpStream::connect(endpoint.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer[9..12].to_owned()
    };
    assert_eq!(status("/health/ready").await, "503");
    assert_eq!(status("/health/live").await, "200");
    health.set_serving().await;
    assert_eq!(status("/health/ready").await, "200");
    health.set_not_serving().await;
    assert_eq!(status("/health/ready").await, "503");
    assert_eq!(status("/health/live").await, "200");
}

/// A server of nothing but health.
struct HealthServer {
    ready: Health,
    draining: CancellationToken,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl HealthServer {
    async fn limited(
        listener: TcpListener,
        limits: ConnectionLimits,
        metrics: &ConnectionMetrics,
    ) -> Self {
        Self::start(Connections {
            listener,
            limits,
            metrics: metrics.clone(),
            tls: None,
        })
        .await
    }

    async fn start(connections: impl Into<Connections>) -> Self {
        let connections = connections.into();
        let (health, service) = Health::register(&["a.Service"]).await;
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, draining) = (health.clone(), CancellationToken::new());
        let seen = draining.clone();
        let task = tokio::spawn(async move {
            let budget = MessageBudget::new(&connections.limits, &connections.metrics);
            let router = grpc::server_builder().add_service(budget.guard(service));
            let shutdown = async { stopped.await.unwrap() };
            let timeout = Duration::from_secs(60);
            grpc::serve_until(router, connections, shutdown, &health, seen, timeout).await
        });
        Self {
            ready,
            draining,
            stop,
            task,
        }
    }

    /// Tells it to stop, and waits until all has ended.
    async fn drain(self) {
        self.stop.send(()).unwrap();
        assert_eq!(self.task.await.unwrap(), Drained::Complete);
    }
}

async fn bind() -> (TcpListener, String) {
    let listener = grpc::bind(ANY_PORT.parse().unwrap()).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// A stream that the server keeps open.
async fn watch(endpoint: &str) -> Streaming<HealthCheckResponse> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    let service = "a.Service".to_owned();
    let request = HealthCheckRequest { service };
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    client.watch(request).await.unwrap().into_inner()
}

/// A watcher learns of the drain, its stream ends, and so it does not hold the drain up.
#[tokio::test]
async fn health_watchers_do_not_hold_up_a_drain() {
    let (listener, endpoint) = bind().await;
    let server = HealthServer::start(listener).await;
    let mut watch = watch(&endpoint).await;
    let mut next = async || watch.message().await.unwrap().map(|m| m.status());
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    server.ready.set_serving().await;
    assert_eq!(next().await, Some(ServingStatus::Serving));

    server.stop.send(()).unwrap();
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    assert_eq!(server.task.await.unwrap(), Drained::Complete);
    assert!(server.draining.is_cancelled());
}

/// Windows pace a message that is larger than they are, and do not stop it.
#[tokio::test]
async fn a_message_of_several_windows_arrives() {
    let (listener, endpoint) = bind().await;
    let server = HealthServer::start(listener).await;
    let endpoint = Endpoint::from_shared(endpoint).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    // As large as tonic decodes, but for its length; that it was read shows in the answer.
    let service = "x".repeat((4 << 20) - 16);
    let answer = client.check(HealthCheckRequest { service }).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
    drop(client);
    server.drain().await;
}

/// A stream that does not end by itself is cut after the grace period; others may connect.
#[tokio::test]
async fn an_old_connection_is_ended() {
    let (listener, endpoint) = bind().await;
    let metrics = ConnectionMetrics::default();
    let limits = ConnectionLimits {
        max_connections: 1,
        max_age: Some(Duration::from_millis(50)),
        age_grace: Duration::from_millis(50),
        ..ConnectionLimits::default()
    };
    let server = HealthServer::limited(listener, limits, &metrics).await;
    for aged in 1..=2 {
        let mut watch = watch(&endpoint).await;
        while let Ok(Some(_)) = watch.message().await {}
        assert_eq!(metrics.aged.get(), aged);
        // The only connection allowed is free again; a test that never sees that hangs, and fails by its log.
        while metrics.open.get() > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(metrics.refused.get(), 0);
    server.drain().await;
}

/// The port answers before what it serves is there; then calls on the same connection succeed.
#[tokio::test]
async fn a_late_service_refuses_calls_until_it_is_set() {
    let (listener, endpoint) = bind().await;
    let mut refusal = Status::unavailable("the model is being loaded");
    let hint = "100".parse().unwrap();
    refusal
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", hint);
    let (late, setter) = late_service(refusal);
    let router = grpc::server_builder().add_service(late);
    let server = tokio::spawn(router.serve_with_incoming(grpc::incoming(listener)));

    let endpoint = Endpoint::from_shared(endpoint).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let refused = client.check(HealthCheckRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "the model is being loaded");
    let hint = refused.metadata().get("grpc-retry-pushback-ms");
    assert_eq!(hint.unwrap(), "100");
    let refused = client.watch(HealthCheckRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);

    let (_health, service) = Health::register(&[]).await;
    setter.set(service);
    let answer = client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::NotServing);
    server.abort();
}

/// What a peer sees of a connection that is cut: its end, or a reset.
async fn until_cut(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

/// Silent ones, and such that begin to greet and stop, are cut; they do not hold up a drain either.
#[tokio::test]
async fn connections_that_say_nothing_are_cut() {
    let (listener, endpoint) = bind().await;
    let address = listener.local_addr().unwrap();
    let metrics = ConnectionMetrics::default();
    let limits = ConnectionLimits {
        silence: Duration::from_millis(50),
        ..ConnectionLimits::default()
    };
    let server = HealthServer::limited(listener, limits, &metrics).await;
    let mut speaks = watch(&endpoint).await;
    for greeting in ["", "PRI * HTTP/2.0\r\n"] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(greeting.as_bytes()).await.unwrap();
        until_cut(&mut silent).await;
    }
    assert_eq!(metrics.silent.get(), 2);
    assert!(speaks.message().await.unwrap().is_some(), "others live on");
    drop(speaks);
    server.drain().await;
}

#[tokio::test]
async fn silent_connections_do_not_hold_up_a_drain() {
    let (listener, endpoint) = bind().await;
    let address = listener.local_addr().unwrap();
    let server = HealthServer::start(listener).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    // One that greets, asks nothing, and hears nothing: it does not answer that it is to end.
    let mut deaf = TcpStream::connect(address).await.unwrap();
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    deaf.write_all(settings).await.unwrap();
    let mut watch = watch(&endpoint).await;
    assert!(watch.message().await.unwrap().is_some());
    server.stop.send(()).unwrap();
    // Within its limit of a minute.
    assert_eq!(server.task.await.unwrap(), Drained::Complete);
    until_cut(&mut silent).await;
    until_cut(&mut deaf).await;
}

/// Bodies that stop half way share a budget, and one more is told so.
#[tokio::test]
async fn messages_that_do_not_end_take_a_bounded_amount_of_memory() {
    let (listener, endpoint) = bind().await;
    let metrics = ConnectionMetrics::default();
    let limits = ConnectionLimits {
        unfinished_bytes: 20_000,
        ..ConnectionLimits::default()
    };
    let server = HealthServer::limited(listener, limits, &metrics).await;
    let endpoint = Endpoint::from_shared(endpoint).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let service = "x".repeat(15_000);
    let answer = client.check(HealthCheckRequest { service }).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound, "it fits");
    assert_eq!(metrics.unfinished.get(), 0);
    let service = "x".repeat(60_000);
    let answer = client.check(HealthCheckRequest { service }).await;
    let refused = answer.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("20000 bytes"), "{refused}");
    drop(client);
    server.drain().await;
    assert_eq!(metrics.unfinished.get(), 0);
}

/// The answer to a request over HTTP/2 with this method, type and body.
async fn answer(
    endpoint: &str,
    method: Method,
    kind: Option<&str>,
    body: &'static [u8],
) -> Response<Body> {
    let channel = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    let mut channel = channel.connect().await.unwrap();
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .unwrap();
    let mut request = Request::builder().method(method);
    request = request.uri(format!("{endpoint}/grpc.health.v1.Health/Check"));
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let body = Body::new(axum::body::Body::from(body));
    channel.call(request.body(body).unwrap()).await.unwrap()
}

#[tokio::test]
async fn what_is_no_grpc_is_refused_as_http_says() {
    let (listener, endpoint) = bind().await;
    let server = HealthServer::start(listener).await;
    let grpc = Some("application/grpc+proto");
    let get = answer(&endpoint, Method::GET, grpc, b"").await;
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
    for kind in [Some("text/plain"), None] {
        let plain = answer(&endpoint, Method::POST, kind, b"hello").await;
        assert_eq!(plain.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    // Field 1 with a length beyond the message's end.
    let malformed = b"\0\0\0\0\x02\x0a\x7f";
    let malformed = answer(&endpoint, Method::POST, grpc, malformed).await;
    let status = malformed.headers().get("grpc-status");
    assert_eq!(
        status.unwrap(),
        &(Code::InvalidArgument as i32).to_string()[..]
    );
    server.drain().await;
}
