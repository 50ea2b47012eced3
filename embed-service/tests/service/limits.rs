//! Malformed and excessive requests are refused by name, and hurt nobody else.

use std::time::Duration;

use prost::Message as _;
use scone_proto::embed::v1::{
    LookupRequest, Span, embed_service_client::EmbedServiceClient, lookup_response,
};
use tonic::Code;

use crate::support::{
    LARGEST_ANSWER, Oracle, RETRY_DELAY, TestServer, TestStream, document, eventually, request,
};

/// Requests that are wrong in one field each, with what the refusal must name.
fn malformed() -> Vec<(LookupRequest, Code, &'static str)> {
    let good = || request(5, &[(&[1, 2, 3], 1)]);
    let spans = |spans: &[(u32, u32)]| {
        let span = |&(context, answers): &(u32, u32)| Span { context, answers };
        spans.iter().map(span).collect()
    };
    let mut partial = good();
    partial.token_ids.truncate(11);
    let mut other = good();
    other.table_id = Some("0".repeat(32));
    let mut empty = good();
    (empty.token_ids, empty.spans) = Default::default();
    let with_spans = |list: &[(u32, u32)]| LookupRequest {
        spans: spans(list),
        ..good()
    };
    let invalid = Code::InvalidArgument;
    vec![
        (partial, invalid, "token_ids has 11 bytes"),
        (other, Code::FailedPrecondition, "table_id"),
        (empty, invalid, "spans is empty"),
        (request(5, &[(&[1, 9], 0)]), invalid, "vocab_size - 1 = 8"),
        (with_spans(&[(3, 0)]), invalid, "spans[0].answers"),
        (with_spans(&[(0, 2)]), invalid, "spans cover 2"),
        (
            with_spans(&[(u32::MAX, u32::MAX); 2]),
            invalid,
            "spans cover",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_and_the_stream_goes_on() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(6, 50));
    let mut stream = server.stream().await;
    for (bad, code, words) in malformed() {
        let (got, message) = stream.refusal(bad).await;
        assert_eq!(got, code, "{message}");
        assert!(message.contains(words), "{message:?} lacks {words:?}");
        let good = [(&ids[..], 3)];
        let rows = stream.rows(request(6, &good)).await;
        oracle.check(&good, &rows);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unary_twin_has_the_same_codes_as_statuses() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    for (bad, code, words) in malformed() {
        let status = client.lookup_once(bad).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(words), "{status:?}");
    }
}

/// A request of exactly so many encoded bytes, wrong only in its table id.
fn padded(bytes: usize) -> LookupRequest {
    let sizes = (bytes - 40..bytes).map(|padding| LookupRequest {
        table_id: Some("0".repeat(padding)),
        ..request(1, &[(&[1, 2], 0)])
    });
    let mut fitting = sizes.filter(|request| request.encoded_len() == bytes);
    fitting.next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_at_the_limit_and_one_above() {
    let server = TestServer::start().await;
    let mut stream = server.stream().await;
    let ids = document(7, 2049);

    stream.rows(request(1, &[(&ids[..2048], 0)])).await;
    let (code, message) = stream.refusal(request(1, &[(&ids, 0)])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("max_positions = 2048"), "{message}");

    stream.rows(request(1, &[(&ids[..2], 1); 16])).await;
    let (code, message) = stream.refusal(request(1, &[(&ids[..2], 1); 17])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("max_spans = 16"), "{message}");

    // At the limit the size is fine, and the padding is found to be no table id.
    let (code, _) = stream.refusal(padded(16 << 10)).await;
    assert_eq!(code, Code::FailedPrecondition);
    let (code, message) = stream.refusal(padded((16 << 10) + 1)).await;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("max_request_bytes = 16384"), "{message}");
}

/// Above the transport's limit only the stream of the offender ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_message_ends_its_stream_but_not_the_server() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    let mut stream = TestStream::open(&mut client).await.unwrap();
    let mut other = TestStream::open(&mut client).await.unwrap();
    stream.requests.send(padded(5 << 20)).await.unwrap();
    let status = stream.answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    other.rows(request(1, &[(&[1, 2], 0)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_at_once_with_a_delay_and_passes() {
    let server = TestServer::start_with(|config| {
        config.capacity.max_inflight_bytes = LARGEST_ANSWER;
    })
    .await;
    let ids = document(8, 2048);
    // Each request takes the whole capacity, so any two at one time are one too many.
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.stream().await);
    }
    let refused = eventually("a refusal", async || {
        let mut refused = None;
        for stream in &clients {
            let request = request(1, &[(&ids, 0)]);
            stream.requests.send(request).await.unwrap();
        }
        for stream in &mut clients {
            let answer = stream.answers.message().await.unwrap().unwrap();
            if let Some(lookup_response::Result::Error(error)) = answer.result {
                refused = Some(error);
            }
        }
        refused
    })
    .await;
    assert_eq!(Code::from(refused.code), Code::ResourceExhausted);
    assert_eq!(refused.retry_delay_ms, Some(RETRY_DELAY.as_millis() as u32));
    let limit = format!("max_inflight_bytes = {LARGEST_ANSWER}");
    assert!(refused.message.contains(&limit), "{}", refused.message);
    // The others went on, and the refused stream is as good as ever.
    let oracle = Oracle::new();
    for stream in &mut clients {
        let rows = stream.rows(request(2, &[(&ids, 0)])).await;
        oracle.check(&[(&ids, 0)], &rows);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_limited_and_free_again_when_closed() {
    let server = TestServer::start_with(|config| config.capacity.max_streams = 1).await;
    let mut client = server.client().await;
    let first = TestStream::open(&mut client).await.unwrap();
    let refused = TestStream::open(&mut client).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let pushback = refused.metadata().get(scone_proto::RETRY_PUSHBACK);
    assert_eq!(pushback.unwrap(), "7");
    // The client goes away without a word: its stream is free soon after.
    drop(first);
    let mut second = eventually("a free stream", async || {
        TestStream::open(&mut client).await.ok()
    })
    .await;
    second.rows(request(1, &[(&[1, 2], 0)])).await;
}

/// Answers that nobody reads take the bytes that there may be in flight, until somebody else asks.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_keep_nobody_out() {
    let server = TestServer::start_with(|config| {
        config.capacity.max_inflight_bytes = LARGEST_ANSWER;
        config.capacity.max_streams = 1024;
        // Long enough to see the answer wait, whatever else this machine does.
        config.stall_time = Duration::from_secs(3);
    })
    .await;
    let ids = document(8, 2048);
    let all = || request(1, &[(&ids, 0)]);
    let narrow = server.endpoint().initial_stream_window_size(1 << 10);
    let mut narrow = EmbedServiceClient::new(narrow.connect().await.unwrap());
    let mut unread = Vec::new();
    let inflight = "scone_embed_inflight_bytes ";
    // More and more, until an answer has to wait for its client: how many are on their way before is up
    // to the transport.
    eventually("an answer that waits", async || {
        let stream = TestStream::open(&mut narrow).await.unwrap();
        while stream.requests.try_send(all()).is_ok() {}
        unread.push(stream);
        for _ in 0..5 {
            server.metric(inflight).await.filter(|taken| *taken > 0.0)?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(())
    })
    .await;
    let mut other = server.stream().await;
    let (code, _) = other.refusal(all()).await;
    assert_eq!(code, Code::ResourceExhausted);
    eventually("an answer for somebody else", async || {
        let answer = other.ask(all()).await;
        matches!(answer, lookup_response::Result::Rows(_)).then_some(())
    })
    .await;
    let cut = server
        .metric("scone_embed_connections_stalled_total ")
        .await;
    assert_eq!(cut, Some(1.0));
    drop(unread);
}

/// Prompts without end are refused before they wait long, and steps beside them never.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_shed_before_steps() {
    let server = TestServer::start_with(|config| {
        config.max_prompt_wait = Duration::from_micros(100);
        config.capacity.max_inflight_bytes = 64 * LARGEST_ANSWER;
    })
    .await;
    let ids = document(8, 2048);
    let mut prompts = Vec::new();
    for _ in 0..8 {
        let mut stream = server.stream().await;
        for _ in 0..32 {
            let prompt = request(1, &[(&ids, 0)]);
            stream.requests.send(prompt).await.unwrap();
        }
        prompts.push(tokio::spawn(async move {
            let (mut answered, mut refused) = (0, 0);
            for _ in 0..32 {
                match stream.next().await.1 {
                    lookup_response::Result::Rows(_) => answered += 1,
                    lookup_response::Result::Error(error) => {
                        assert!(error.message.contains("max_prompt_wait"), "{error:?}");
                        refused += 1;
                    }
                }
            }
            (answered, refused)
        }));
    }
    let mut steps = server.stream().await;
    for _ in 0..50 {
        steps.rows(request(2, &[(&ids[..5], 4); 16])).await;
    }
    let (mut answered, mut refused) = (0, 0);
    for one in prompts {
        let (a, r) = one.await.unwrap();
        (answered, refused) = (answered + a, refused + r);
    }
    assert_eq!(answered + refused, 256);
    assert!(
        answered > 0 && refused > 0,
        "{answered} answered, {refused} refused"
    );
}
