//! Models, health, metrics, version, cross-origin calls, limits of connections.

use scone_service::connections::ConnectionLimits;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    client::{Answer, get, receive, request, send},
    common::{CONTEXT, MAX_N},
    service::Service,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_version_and_metrics() {
    let service = Service::start(2, 2).await;
    let models = get(service.http, "/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("tiny"), &json!("model"))
    );
    assert_eq!(model["max_model_len"], CONTEXT);
    assert_eq!(model["scone"]["max_n"], MAX_N);
    assert_eq!(model["scone"]["embed_mode"], "embedded");
    assert_eq!(get(service.http, "/v1/models/tiny").await.json(), *model);
    let version = get(service.http, "/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    // Null, but in a build that was told its commit.
    assert_eq!(version["revision"], json!(scone_service::started::REVISION));
    let metrics = get(service.http, "/metrics").await;
    assert!(metrics.headers["content-type"].starts_with("application/openmetrics-text"));
    assert!(
        metrics
            .body
            .contains("scone_decoder_http_connections_open 1"),
        "{}",
        metrics.body
    );
    assert!(metrics.body.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_work_stops_at_once_and_without_an_error() {
    for _ in 0..5 {
        let mut service = Service::start(1, 1).await;
        get(service.http, "/version").await;
        service.stop();
        service.ended().await;
    }
}

async fn from(service: &Service, method: &str, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type",
        ),
    ];
    let headers = if method == "OPTIONS" {
        &headers[..]
    } else {
        &headers[..1]
    };
    let text = request(method, "/version", headers, "");
    receive(send(service.http, &text).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_origins_may_call_only_when_they_are_named() {
    const ALLOWED: &str = "access-control-allow-origin";
    let none = Service::start(1, 1).await;
    assert!(
        !from(&none, "GET", "https://a.example")
            .await
            .headers
            .contains_key(ALLOWED)
    );
    let some = Service::with(1, 1, |config, _| {
        config.http.as_mut().unwrap().cors_origins = vec!["https://a.example".into()];
    })
    .await;
    for method in ["GET", "OPTIONS"] {
        let answer = from(&some, method, "https://a.example").await;
        assert_eq!(answer.headers[ALLOWED], "https://a.example");
        assert!(answer.headers["vary"].contains("origin"));
        let other = from(&some, method, "https://b.example").await;
        assert!(!other.headers.contains_key(ALLOWED));
    }
    let preflight = from(&some, "OPTIONS", "https://a.example").await;
    assert_eq!(preflight.status, 204);
    let headers = &preflight.headers["access-control-allow-headers"];
    assert_eq!(headers, "authorization,content-type");
    let any = Service::with(1, 1, |config, _| {
        config.http.as_mut().unwrap().cors_origins = vec!["*".into()];
    })
    .await;
    assert_eq!(
        from(&any, "GET", "https://b.example").await.headers[ALLOWED],
        "*"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_more_than_allowed_is_closed() {
    let service = Service::with(1, 1, |config, _| {
        config.connections = ConnectionLimits {
            max_connections: 1,
            ..ConnectionLimits::default()
        };
    })
    .await;
    let mut status = [0; 12];
    let _first = loop {
        // Kept alive: it stays open after its answer. The connection before may still be closing.
        let mut first = TcpStream::connect(service.http).await.unwrap();
        let sent = first.write_all(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n");
        if sent.await.is_ok() && first.read_exact(&mut status).await.is_ok() {
            break first;
        }
    };
    assert_eq!(&status, b"HTTP/1.1 200");
    let mut second = TcpStream::connect(service.http).await.unwrap();
    assert_eq!(second.read(&mut status).await.unwrap_or(0), 0);
}
