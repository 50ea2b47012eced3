//! Connections: how many, how old, how fast they are read.

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use scone_proto::embed::v1::{
    LookupResponse, embed_service_client::EmbedServiceClient, lookup_response,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::Code;

use crate::support::{
    LARGEST_ANSWER, Oracle, TestServer, TestStream, document, eventually, request,
};

/// Answers wait for their client in windows of this size, the smallest there is.
const WINDOW_BYTES: u32 = 65_535;

/// What a stream may hold: as much as its window lets go, which counts until the socket has taken it, and an
/// answer behind that waits.
const HELD_BYTES: u64 = WINDOW_BYTES as u64 + 2 * LARGEST_ANSWER;

/// It costs the server what is in its window and a few answers behind, however much it asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_itself_and_nobody_else() {
    const REQUESTS: u64 = 250;
    let server = TestServer::start_with(|config| {
        // What one stream may hold, and one answer for the others.
        config.capacity.max_inflight_bytes = HELD_BYTES + LARGEST_ANSWER;
    })
    .await;
    let endpoint = server.endpoint().initial_stream_window_size(WINDOW_BYTES);
    let mut client = EmbedServiceClient::new(endpoint.connect().await.unwrap());
    let mut slow = TestStream::open(&mut client).await.unwrap();
    let mut other = server.stream().await;
    let (oracle, ids) = (Oracle::new(), document(14, 2048));
    let size = slow.rows(request(0, &[(&ids, 0)])).await.encoded_len();
    for id in 1..=REQUESTS {
        slow.requests.send(request(id, &[(&ids, 0)])).await.unwrap();
    }
    // The window is full, and others are served all the while.
    let full = (WINDOW_BYTES as usize / size) as f64;
    eventually("the window is full", async || {
        let rows = other.rows(request(1, &[(&ids[..50], 0)])).await;
        oracle.check(&[(&ids[..50], 0)], &rows);
        let bytes = server.metric("scone_embed_inflight_bytes").await?;
        assert!(bytes <= (HELD_BYTES + LARGEST_ANSWER) as f64, "{bytes}");
        let answered = server.metric("scone_embed_positions_total").await?;
        (answered >= full * 2048.0).then_some(())
    })
    .await;
    for _ in 0..100 {
        other.rows(request(1, &[(&ids[..50], 0)])).await;
    }
    let answered = server.metric("scone_embed_positions_total").await.unwrap() / 2048.0;
    assert!(
        answered < REQUESTS as f64 / 2.0,
        "{answered} answers were made"
    );
    // It reads at last: each request was answered.
    let mut open: BTreeSet<u64> = (1..=REQUESTS).collect();
    while !open.is_empty() {
        let (id, _) = slow.next().await;
        assert!(open.remove(&id), "{id} was answered twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_and_free_again_when_closed() {
    let server = TestServer::start_with(|config| config.connections.max_connections = 1).await;
    let mut first = server.stream().await;
    // One more is accepted and closed at once.
    let mut refused = TcpStream::connect(server.listening.address).await.unwrap();
    let mut byte = [0];
    let read = refused.read(&mut byte).await;
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    let counted = server.metric("scone_embed_connections_refused_total");
    assert_eq!(counted.await, Some(1.0));
    first.rows(request(1, &[(&[1, 2], 0)])).await;
    drop(first);
    let mut second = eventually("a free connection", async || {
        let channel = server.endpoint().connect().await.ok()?;
        let mut client = EmbedServiceClient::new(channel);
        TestStream::open(&mut client).await.ok()
    })
    .await;
    second.rows(request(1, &[(&[1, 2], 0)])).await;
}

/// One call more than a connection may have waits at the client, by HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_connection_are_limited() {
    let server = TestServer::start_with(|config| config.max_connection_streams = 2).await;
    let mut client = server.client().await;
    let first = TestStream::open(&mut client).await.unwrap();
    let mut second = TestStream::open(&mut client).await.unwrap();
    second.rows(request(1, &[(&[1, 2], 0)])).await;
    let mut waiting_client = client.clone();
    let third = tokio::spawn(async move { TestStream::open(&mut waiting_client).await });
    for _ in 0..50 {
        second.rows(request(1, &[(&[1, 2], 0)])).await;
    }
    assert_eq!(server.metric("scone_embed_streams_open").await, Some(2.0));
    drop(first);
    let mut third = third.await.unwrap().unwrap();
    third.rows(request(1, &[(&[1, 2], 0)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_ends_its_streams_and_the_client_comes_back() {
    let server = TestServer::start_with(|config| {
        config.connections.max_age = Some(Duration::from_millis(300));
        config.connections.age_grace = Duration::from_secs(600);
    })
    .await;
    let (oracle, ids) = (Oracle::new(), document(15, 40));
    let mut client = server.client().await;
    for round in 1..=3 {
        // A call may meet the old connection at its end; the next one begins anew.
        let mut stream = eventually("a stream", async || {
            TestStream::open(&mut client).await.ok()
        })
        .await;
        // Each request is answered until the stream ends, and it ends without an error.
        loop {
            if stream
                .requests
                .send(request(7, &[(&ids, 0)]))
                .await
                .is_err()
            {
                break;
            }
            match stream.answers.message().await.unwrap() {
                Some(LookupResponse {
                    result: Some(lookup_response::Result::Rows(rows)),
                    ..
                }) => oracle.check(&[(&ids, 0)], &rows),
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        // The stream may end a moment before it is counted.
        let counted = async || {
            let aged = server.metric("scone_embed_connections_aged_total").await;
            aged.unwrap() >= f64::from(round)
        };
        while !counted().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_outlives_its_grace_is_cut() {
    let server = TestServer::start_with(|config| {
        config.connections.max_age = Some(Duration::from_millis(100));
        config.connections.age_grace = Duration::from_millis(100);
    })
    .await;
    let endpoint = server.endpoint().initial_stream_window_size(WINDOW_BYTES);
    let mut client = EmbedServiceClient::new(endpoint.connect().await.unwrap());
    let mut slow = TestStream::open(&mut client).await.unwrap();
    let ids = document(16, 2048);
    // Answers that are not read hold the stream open, until it is cut.
    for id in 0..100 {
        if slow.requests.send(request(id, &[(&ids, 0)])).await.is_err() {
            break;
        }
    }
    eventually("the connection is gone", async || {
        let open = server.metric("scone_embed_streams_open").await?;
        (open == 0.0).then_some(())
    })
    .await;
    let status = loop {
        match slow.answers.message().await {
            Ok(Some(_)) => continue,
            Ok(None) => panic!("it ended as if all was answered"),
            Err(status) => break status,
        }
    };
    assert!(
        matches!(
            status.code(),
            Code::Unknown | Code::Unavailable | Code::Internal
        ),
        "{status:?}"
    );
}
