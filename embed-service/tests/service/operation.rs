//! Health, reflection, metrics, start-up errors and draining.

use std::{error::Error as _, sync::Arc, time::Duration};

use embed_service::{RunError, run_with};
use prost::Message as _;
use scone_proto::{
    decoder::v1::decoder_service_server::SERVICE_NAME as DECODER,
    embed::v1::{
        embed_service_client::EmbedServiceClient, embed_service_server::SERVICE_NAME as EMBED,
    },
};
use scone_service::grpc::Drained;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{self, TestServer, TestStream, document, eventually, request, scrape};

#[tokio::test(flavor = "multi_thread")]
async fn health_is_serving_by_service_name() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in [EMBED, ""] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let service = DECODER.to_owned();
    let status = health.check(HealthCheckRequest { service }).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served_here() {
    let server = TestServer::start().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let ask = |message_request| {
        tokio_stream::once(ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        })
    };
    let list = ask(MessageRequest::ListServices(String::new()));
    let answers = client.server_reflection_info(list).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", EMBED]);

    let symbol = EMBED.to_owned();
    let file = ask(MessageRequest::FileContainingSymbol(symbol));
    let answers = client.server_reflection_info(file).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let found = answer.message_response.unwrap();
    assert!(
        matches!(found, MessageResponse::FileDescriptorResponse(_)),
        "{found:?}"
    );
}

fn metric(body: &str, name: &str) -> f64 {
    let line = body.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("{name} is missing in\n{body}"));
    value.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let server = TestServer::start().await;
    let ids = document(9, 200);
    let mut stream = server.stream().await;
    let rows = stream.rows(request(1, &[(&ids, 0)])).await;
    stream.refusal(request(2, &[(&[99], 0)])).await;

    let body = scrape(&server).await;
    let get = |name: &str| metric(&body, name);
    assert_eq!(get("scone_embed_requests_total{outcome=\"ok\"}"), 1.0);
    let invalid = "scone_embed_requests_total{outcome=\"invalid_argument\"}";
    assert_eq!(get(invalid), 1.0);
    assert_eq!(get("scone_embed_positions_total"), 200.0);
    let distinct = rows.rows.len() / (2 * support::DIM);
    assert_eq!(get("scone_embed_rows_total"), distinct as f64);
    for length in 2..=4_u8 {
        let count = rows.match_lengths.iter().filter(|&&n| n == length).count();
        let name = format!("scone_embed_matched_positions_total{{length=\"{length}\"}}");
        assert_eq!(get(&name), count as f64, "{name}");
    }
    assert_eq!(get("scone_embed_lookup_seconds_count"), 1.0);
    assert_eq!(get("scone_embed_streams_open"), 1.0);
    assert_eq!(get("scone_embed_inflight_bytes"), 0.0);
    let of_table = |name: &str| get(&format!("scone_embed_{name}{{table=\"default\"}}"));
    let read = of_table("hot_set_hits_total") + of_table("hot_set_misses_total");
    assert_eq!(read, distinct as f64);
    assert!(of_table("hot_set_bytes") <= 4096.0);
    assert!(of_table("hot_set_rows") > 0.0);
    assert!(of_table("hot_set_evictions_total") >= 0.0);
    assert_eq!(of_table("table_rows"), 400.0);

    drop(stream);
    eventually("the stream is closed", async || {
        let open = metric(&scrape(&server).await, "scone_embed_streams_open");
        (open == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_does_not_hold_up_a_drain() {
    let mut server = TestServer::start().await;
    let address = server.listening.address;
    let mut idle = server.stream().await;
    let mut used = server.stream().await;
    used.rows(request(1, &[(&[1, 2], 0)])).await;
    server.tell_to_stop();
    assert!(idle.answers.message().await.unwrap().is_none());
    assert!(used.answers.message().await.unwrap().is_none());
    assert_eq!(server.stopped().await, Drained::Complete);
    assert!(TcpStream::connect(address).await.is_err());
}

/// A client that has stopped reading keeps its stream open; the drain gives up on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_gives_up_after_its_timeout() {
    const WINDOW_BYTES: u32 = 65_535;
    let mut server = TestServer::start_with(|config| {
        config.drain_timeout = Duration::from_millis(200);
    })
    .await;
    let endpoint = server.endpoint().initial_stream_window_size(WINDOW_BYTES);
    let mut client = EmbedServiceClient::new(endpoint.connect().await.unwrap());
    let ids = document(10, 2048);
    let mut stream = TestStream::open(&mut client).await.unwrap();
    let answer = stream.rows(request(0, &[(&ids, 0)])).await;

    // Answers that are never read, until they cannot all be in the window.
    let window = WINDOW_BYTES as usize / answer.encoded_len();
    for id in 0..=window {
        let request = request(id as u64, &[(&ids, 0)]);
        stream.requests.send(request).await.unwrap();
    }
    let answered = ((window + 2) * ids.len()) as f64;
    eventually("the window is full", async || {
        let positions = metric(&scrape(&server).await, "scone_embed_positions_total");
        (positions == answered).then_some(())
    })
    .await;
    server.tell_to_stop();
    assert_eq!(server.stopped().await, Drained::TimedOut);
    // What is still open is cut, not left to the end of the process.
    let cut = loop {
        match stream.answers.message().await {
            Ok(Some(_)) => continue,
            ended => break ended,
        }
    };
    assert!(cut.is_err(), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_up_errors_say_what_is_wrong() {
    let start = async |change: &dyn Fn(&mut embed_service::Config)| {
        let dir = TempDir::new().unwrap();
        let mut config = support::config(dir.path());
        change(&mut config);
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let (never, reload) = (std::future::pending(), Arc::new(Notify::new()));
        let error = run_with(config, listener, never, reload, |_| panic!("is ready")).await;
        error.unwrap_err()
    };
    let error = start(&|_| {}).await;
    assert!(matches!(error, RunError::Table(_)), "{error}");
    let reason = error.source().unwrap().to_string();
    assert!(reason.contains("has no complete table"), "{reason}");

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = start(&|config| config.metrics_listen = Some(address)).await;
    let text = error.to_string();
    assert!(text.contains(&format!("{address} for metrics")), "{text}");
}
