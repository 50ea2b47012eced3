//! Bind, serve and drain, with the health service as the only service.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{error::Error as _, time::Duration};

use scone_service::{
    grpc::{self, Drained},
    health::Health,
    metrics::MetricsEndpoint,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
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
    let error = MetricsEndpoint::start(address, Default::default()).await;
    assert!(error.unwrap_err().to_string().contains("for metrics"));
}

/// A watcher learns of the drain, its stream ends, and so it does not hold the drain up.
#[tokio::test]
async fn health_watchers_do_not_hold_up_a_drain() {
    let listener = grpc::bind(ANY_PORT.parse().unwrap()).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (health, service) = Health::register(&["a.Service"]).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let ready = health.clone();
    let draining = CancellationToken::new();
    let seen = draining.clone();
    let server = tokio::spawn(async move {
        let router = grpc::server_builder().add_service(service);
        let shutdown = async { stopped.await.unwrap() };
        let timeout = Duration::from_secs(60);
        grpc::serve_until(router, listener, shutdown, &health, draining, timeout).await
    });

    let channel = Endpoint::from_shared(endpoint).unwrap().connect().await;
    let mut client = HealthClient::new(channel.unwrap());
    let service = "a.Service".to_owned();
    let request = HealthCheckRequest { service };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    let mut next = async || watch.message().await.unwrap().map(|m| m.status());
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    ready.set_serving().await;
    assert_eq!(next().await, Some(ServingStatus::Serving));

    stop.send(()).unwrap();
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    assert_eq!(server.await.unwrap(), Drained::Complete);
    assert!(seen.is_cancelled());
}
