//! The embed-service alone, over its own protocol.

use std::{fs, path::Path};

use integration_tests::{
    client::{self, channel},
    cluster::{ANY_PORT, Service, embed_command, refusal},
    fixtures::{DIM, MAX_N, VOCAB_SIZE, fixtures, manifest},
    rows::{Stream, document, info, lookup, request, row_of_each_position, span},
};
use scone_proto::embed::v1::{
    GetTableInfoResponse, LookupRequest, RowDtype, Span, embed_service_client::EmbedServiceClient,
    lookup_response::Result as Outcome,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn table_info_tells_the_facts_of_the_table() {
    let embed = Service::embed(&fixtures().table, &[]);
    let info = info(&client::embed(&embed.address).await).await;
    assert_eq!(info.vocab_size, VOCAB_SIZE);
    assert_eq!(info.max_n, MAX_N);
    assert_eq!(info.dim, DIM);
    assert_eq!(info.dtype(), RowDtype::F16);
    assert_eq!(info.row_bytes, 2 * DIM);
    assert_eq!((info.shard_index, info.shard_count), (0, 1));
    assert_eq!(info.store, "sled");
    assert!(info.rows > 500, "{} rows", info.rows);
    let manifest = manifest(&fixtures().table);
    assert_eq!(manifest["table_id"], info.table_id.as_str());
    assert_eq!(manifest["model_hash"], info.model_hash.as_str());
    assert_eq!(manifest["rows"], info.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_steps_get_the_rows_that_the_prompt_gets() {
    let embed = Service::embed(&fixtures().table, &[]);
    let client = client::embed(&embed.address).await;
    let row_bytes = info(&client).await.row_bytes as usize;
    let ids = document();
    let whole = lookup(&client, request(1, &ids)).await;
    let whole = row_of_each_position(&whole, row_bytes);
    assert!(
        whole.iter().any(|(length, _)| *length >= 3),
        "no long match"
    );
    assert!(whole.iter().any(|(length, _)| *length == 0), "no miss");

    // One message with the last K ids of every position: what a batch of decode steps sends.
    let k = MAX_N as usize;
    let windows: Vec<&[u32]> = (0..ids.len())
        .map(|i| &ids[(i + 1).saturating_sub(k)..=i])
        .collect();
    let mut steps = request(2, &windows.concat());
    steps.spans = windows
        .iter()
        .map(|w| span(w.len() as u32 - 1, 1))
        .collect();
    let steps = lookup(&client, steps).await;
    assert_eq!(row_of_each_position(&steps, row_bytes), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_answer_what_one_table_answers() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &[]);
    let client = client::embed(&embed.address).await;
    let whole_info = info(&client).await;
    let row_bytes = whole_info.row_bytes as usize;
    let ids = document();
    let whole = row_of_each_position(&lookup(&client, request(1, &ids)).await, row_bytes);

    let mut merged = vec![(0, Vec::new()); ids.len()];
    let mut rows = 0;
    for (index, table) in f.shards.iter().enumerate() {
        let shard = Service::embed(table, &[]);
        let client = client::embed(&shard.address).await;
        let info = info(&client).await;
        assert_eq!((info.shard_index, info.shard_count), (index as u32, 2));
        assert_eq!(info.table_id, whole_info.table_id);
        rows += info.rows;
        let part = lookup(&client, request(1, &ids)).await;
        let part = row_of_each_position(&part, row_bytes);
        for (position, answer) in part.into_iter().enumerate().filter(|(_, a)| a.0 > 0) {
            assert_eq!(merged[position].0, 0, "position {position} has two owners");
            merged[position] = answer;
        }
    }
    assert_eq!(rows, whole_info.rows);
    assert_eq!(merged, whole);
}

/// Malformed requests: what is wrong, the request, the code, and what the message must name.
fn malformed(info: &GetTableInfoResponse) -> Vec<(LookupRequest, Code, &'static str)> {
    let good = || request(1, &[1, 2, 3]);
    let change = |change: &dyn Fn(&mut LookupRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let spans = |spans: Vec<Span>| LookupRequest { spans, ..good() };
    let invalid = Code::InvalidArgument;
    let too_many = info.max_positions as usize + 1;
    let many_spans = info.max_spans as usize + 1;
    vec![
        (
            change(&|r| r.token_ids = vec![1; 7].into()),
            invalid,
            "token_ids",
        ),
        (change(&|r| r.token_ids = vec![].into()), invalid, "spans"),
        (request(1, &[1, VOCAB_SIZE, 2]), invalid, "token_ids"),
        (request(1, &[u32::MAX]), invalid, "token_ids"),
        (request(1, &vec![1; too_many]), invalid, "token_ids"),
        (spans(vec![]), invalid, "spans"),
        (spans(vec![span(0, 2)]), invalid, "spans"),
        (spans(vec![span(0, 4)]), invalid, "spans"),
        (spans(vec![span(3, 0)]), invalid, "answers"),
        (spans(vec![span(0, 3), span(0, 0)]), invalid, "answers"),
        (spans(vec![span(u32::MAX, u32::MAX)]), invalid, "spans"),
        (spans(vec![span(u32::MAX, 1), span(0, 3)]), invalid, "spans"),
        (
            LookupRequest {
                spans: vec![span(0, 1); many_spans],
                ..request(1, &vec![1; many_spans.min(too_many - 1)])
            },
            invalid,
            "spans",
        ),
        (
            change(&|r| r.table_id = Some("0123".to_owned())),
            Code::FailedPrecondition,
            "table_id",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_answered_and_the_stream_goes_on() {
    let embed = Service::embed(&fixtures().table, &[]);
    let client = client::embed(&embed.address).await;
    let info = info(&client).await;
    let mut stream = Stream::open(&client).await;
    for (request, code, name) in malformed(&info) {
        match stream.ask(request.clone()).await {
            Outcome::Error(error) => {
                assert_eq!(error.code, code as i32, "{name}: {error:?}");
                assert!(error.message.contains(name), "want {name}: {error:?}");
            }
            Outcome::Rows(_) => panic!("accepted, want a refusal that names {name}"),
        }
        let status = client.clone().lookup_once(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status}");
        assert!(status.message().contains(name), "want {name}: {status}");
        let good = stream.ask(request_of_the_stream()).await;
        assert!(matches!(good, Outcome::Rows(_)), "{good:?}");
    }
}

fn request_of_the_stream() -> LookupRequest {
    request(99, &[5, 6, 7])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_request_is_answered_and_a_larger_message_is_refused() {
    let embed = Service::embed(&fixtures().table, &[]);
    let client = client::embed(&embed.address).await;
    let info = info(&client).await;
    let most = vec![1; info.max_positions as usize];
    let rows = lookup(&client, request(1, &most)).await;
    assert_eq!(rows.match_lengths.len(), most.len());

    let huge = vec![1; info.max_request_bytes as usize / 4 + 1];
    let status = client
        .clone()
        .lookup_once(request(2, &huge))
        .await
        .unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
        ),
        "{status}"
    );
    lookup(&client, request(3, &[1, 2])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_reply_is_not_held_back() {
    // With Nagle's algorithm on, a small reply took 44 ms: the client's delayed acknowledgement.
    let embed = Service::embed(&fixtures().table, &[]);
    let client = EmbedServiceClient::new(channel(&embed.address).await);
    let mut times = Vec::new();
    for i in 0..21 {
        let start = std::time::Instant::now();
        lookup(&client, request(i, &[1, 2, 3])).await;
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[10].as_millis() < 30, "median {:?}", times[10]);
}

/// Flips a bit of every copy of these bytes in a file.
fn flip_copies(file: &Path, row: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let copies: Vec<usize> = (0..=bytes.len() - row.len())
        .filter(|&at| bytes[at..].starts_with(row))
        .collect();
    assert!(!copies.is_empty(), "the row is not in {}", file.display());
    for at in copies {
        bytes[at + row.len() / 2] ^= 1;
    }
    fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_row_is_found_and_never_served() {
    let ids = document();
    let mut embed = Service::embed(&fixtures().table, &[]);
    let client = client::embed(&embed.address).await;
    let row_bytes = info(&client).await.row_bytes as usize;
    let whole = row_of_each_position(&lookup(&client, request(1, &ids)).await, row_bytes);
    let (_, row) = whole.iter().find(|(length, _)| *length > 0).unwrap();
    embed.process.terminate();
    embed.process.wait();

    let table = embed.table.clone().unwrap();
    flip_copies(&table.join("rows.sled/db"), row);
    let message = refusal(
        "embed-service",
        embed_command(&table, ANY_PORT, &["--verify"]),
    );
    assert!(message.contains(table.to_str().unwrap()), "{message}");

    // Unverified it may start, since nobody reads all rows of a large table first.
    let command = embed_command(&table, ANY_PORT, &["--hot-bytes", "0"]);
    match Service::try_start("embed-service", command) {
        Err(ended) => assert!(ended.failure().contains("damaged")),
        Ok(embed) => {
            let mut client = client::embed(&embed.address).await;
            match client.lookup_once(request(2, &ids)).await {
                Err(status) => assert_eq!(status.code(), Code::DataLoss, "{status}"),
                Ok(response) => panic!("served from a damaged table: {response:?}"),
            }
        }
    }
}
