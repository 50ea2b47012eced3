//! Clients that mean harm: what they may make a server hold is bounded, and others are served. Run with
//! `-- hostile --nocapture` for the figures in `docs/limits.md`.

use std::{fs, path::PathBuf, time::Instant};

use integration_tests::{
    client::{self, generate, greedy},
    cluster::{ANY_PORT, Service, decoder_command, embed_command},
    eventually::{PATIENCE, eventually, eventually_within, in_time},
    fixtures::fixtures,
    folders::{copy_of, scratch},
    http2::{RawClient, data, grpc, window_update},
    memory::Watch,
    rows,
};
use prost::Message as _;
use scone_fgram::{
    FgramSet, NGram, RowDtype, SetHeader,
    table::{BuildOptions, StoreKind, build_table},
};
use scone_proto::decoder::v1::{GenerateRequest, decoder_service_client::DecoderServiceClient};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const GENERATE: &str = "/scone.decoder.v1.DecoderService/Generate";
const LOOKUP: &str = "/scone.embed.v1.EmbedService/Lookup";
const LOOKUP_ONCE: &str = "/scone.embed.v1.EmbedService/LookupOnce";

/// The largest message that both services decode.
const MESSAGE_BYTES: usize = 4 << 20;

/// `--max-unfinished-bytes` by default, in MiB.
const UNFINISHED: u64 = 64;
/// What the windows of one connection let it send ahead, in MiB.
const WINDOW: u64 = 4;
/// Everything else: heads, tasks, buffers that grew; in MiB.
const SLACK: u64 = 80;

/// Somebody else's request, until it is answered.
async fn served(client: &DecoderServiceClient<Channel>) {
    let began = Instant::now();
    eventually("a generation for somebody else", async || {
        generate(client, greedy("The boats", 5)).await.ok()
    })
    .await;
    println!("    somebody else: served in {:.0?}", began.elapsed());
}

/// A model whose tokens may stand for any number of bytes, so that no length tells whether a text fits.
fn model_without_longest_token() -> PathBuf {
    let model = copy_of(&fixtures().model);
    let path = model.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["normalizer"] = serde_json::json!({"type": "NFC"});
    fs::write(&path, json.to_string()).unwrap();
    // Its f-grams are those of another tokenizer now: it is served without.
    fs::remove_file(model.join("scone.json")).unwrap();
    model
}

fn prompt_of(bytes: usize) -> GenerateRequest {
    let text = "The ferryman is called Osk. ".repeat(bytes / 28 + 1);
    greedy(&text[..bytes], 5)
}

/// Six at once: 77 MB became 2,648 once.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_4_mib_are_refused_by_their_length() {
    let decoder = Service::decoder(&[]);
    let others = client::decoder(&decoder.address).await;
    served(&others).await;
    let watch = Watch::begin(&decoder.process);
    let refused = prompts_at_once(&decoder, &others).await;
    assert!(refused.contains("bytes"), "{refused}");
    watch.took_at_most("six prompts of 4 MiB", UNFINISHED + 3 * WINDOW + SLACK);
}

/// The same where their length says nothing: 4 MiB are tokenised at a time, and none whose client has
/// left.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_4_mib_are_tokenised_one_at_a_time() {
    let model = model_without_longest_token();
    let command = decoder_command(&model, ANY_PORT, &[]);
    let decoder = Service::try_start("decoder-service", command).unwrap();
    let others = client::decoder(&decoder.address).await;
    served(&others).await;
    let watch = Watch::begin(&decoder.process);
    let message = grpc(&prompt_of(MESSAGE_BYTES - 64).encode_to_vec());
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = RawClient::connect(&decoder.address, 65_535).await;
        let mut frames = Vec::new();
        let stream = client.open(&mut frames, GENERATE);
        client.send(&frames).await;
        assert_eq!(client.send_data(stream, &message).await, message.len());
        client.end(stream).await;
        clients.push(client);
    }
    served(&others).await;
    eventually_within(4 * PATIENCE, "answer to one of them", || {
        let answered = |client: &RawClient| client.seen().headers > 0;
        clients.iter().any(answered).then_some(())
    });
    drop(clients);
    served(&others).await;
    watch.took_at_most("six prompts of 4 MiB, tokenised", TOKENISED);
}

/// What 4 MiB of text may take while it is tokenised, in MiB.
const TOKENISED: u64 = 1000;

/// Sends six prompts, serves somebody else beside them, and says why the last one was refused.
async fn prompts_at_once(decoder: &Service, others: &DecoderServiceClient<Channel>) -> String {
    let mut sent = Vec::new();
    for _ in 0..6 {
        let client = client::decoder(&decoder.address).await;
        sent.push(tokio::spawn(async move {
            let prompt = prompt_of(MESSAGE_BYTES - 64);
            generate(&client, prompt).await.unwrap_err()
        }));
    }
    served(others).await;
    let mut refused = String::new();
    for one in sent {
        refused = one.await.unwrap().message().to_owned();
    }
    refused
}

/// It took 4.8 GB once.
#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_pads_to_a_billion_tokens_pads_nothing() {
    let model = copy_of(&fixtures().model);
    let path = model.join("tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    });
    fs::write(&path, json.to_string()).unwrap();
    fs::remove_file(model.join("scone.json")).unwrap();
    let command = decoder_command(&model, ANY_PORT, &[]);
    let decoder = Service::try_start("decoder-service", command).unwrap();
    let others = client::decoder(&decoder.address).await;
    served(&others).await;
    let peak = Watch::peak(&decoder.process);
    assert!(peak < 256, "{peak} MiB at most since its start");
}

/// 71 MB became 930 once.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_heads_on_one_connection_are_not_kept() {
    let decoder = Service::decoder(&[]);
    let others = client::decoder(&decoder.address).await;
    served(&others).await;
    let watch = Watch::begin(&decoder.process);
    let mut client = RawClient::connect(&decoder.address, 65_535).await;
    let (mut sent, mut frames) = (0, Vec::new());
    while sent < 100_000 {
        frames.clear();
        for _ in 0..1000 {
            client.open(&mut frames, GENERATE);
        }
        if !client.send(&frames).await {
            break;
        }
        sent += 1000;
    }
    served(&others).await;
    println!("    {sent} heads were sent: {:?}", client.seen());
    watch.took_at_most("100,000 heads on one connection", SLACK);
}

/// Opens streams and sends most of a large message over each, as far as the server has room; how many MiB
/// that is in all.
async fn half_send(client: &mut RawClient, path: &str, streams: usize) -> usize {
    let message = grpc(&vec![0; MESSAGE_BYTES - 64]);
    let mut sent = 0;
    for _ in 0..streams {
        let mut frames = Vec::new();
        let stream = client.open(&mut frames, path);
        if !client.send(&frames).await {
            break;
        }
        let more = client
            .send_data(stream, &message[..message.len() - 1])
            .await;
        sent += more;
    }
    sent >> 20
}

/// 71 MB became 1,511 once, and would have gone on.
#[tokio::test(flavor = "multi_thread")]
async fn messages_half_sent_to_a_decoder_share_their_limit() {
    let decoder = Service::decoder(&[]);
    let others = client::decoder(&decoder.address).await;
    served(&others).await;
    let watch = Watch::begin(&decoder.process);
    let mut client = RawClient::connect(&decoder.address, 65_535).await;
    let sent = half_send(&mut client, GENERATE, 1000).await;
    println!("    {sent} MiB were sent: {:?}", client.seen());
    drop(client);
    served(&others).await;
    let most = UNFINISHED + WINDOW + SLACK;
    watch.took_at_most("half-sent messages of 4 MiB on one connection", most);
}

/// A table of 1,024 rows of 4 KiB: token ids that follow each other are an f-gram.
fn wide_table() -> PathBuf {
    let dir = scratch("wide").join("table");
    let pairs = (0..1024u32).map(|id| (NGram::from_slice(&[id, id + 1]).unwrap(), 1));
    let header = SetHeader {
        vocab_size: 1025,
        max_n: 2,
        tokenizer_hash: [3; 32],
        min_count: 1,
    };
    let set = FgramSet::new(header, pairs.collect()).unwrap();
    let options = BuildOptions {
        store: StoreKind::Mapped,
        dtype: RowDtype::F32,
        dim: 1024,
        model_hash: "ab".repeat(32),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        out.extend(batch.iter().flat_map(|ids| [ids[0] as f32; 1024]));
        Ok::<(), scone_fgram::Error>(())
    };
    build_table(&dir, &set, &options, rows, |_, _| {}).unwrap();
    dir
}

fn wide_embed_service() -> Service {
    let flags = ["--metrics-listen", ANY_PORT];
    let command = embed_command(&wide_table(), ANY_PORT, &flags);
    Service::try_start("embed-service", command).unwrap()
}

/// A look-up of 64 rows, 256 KiB.
fn wide_request() -> Vec<u8> {
    let ids: Vec<u32> = (0..=64).collect();
    rows::request(1, &ids).encode_to_vec()
}

/// Somebody else's look-up, until it is answered.
async fn looked_up(embed: &Service) {
    let began = Instant::now();
    let client = client::embed(&embed.address).await;
    let ids: Vec<u32> = (0..=64).collect();
    eventually("rows for somebody else", async || {
        let mut client = client.clone();
        client.lookup_once(rows::request(1, &ids)).await.ok()
    })
    .await;
    println!("    somebody else: served in {:.0?}", began.elapsed());
}

/// 153 MB became 1,589 once.
#[tokio::test(flavor = "multi_thread")]
async fn messages_half_sent_to_an_embed_service_share_their_limit() {
    let embed = wide_embed_service();
    looked_up(&embed).await;
    let watch = Watch::begin(&embed.process);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = RawClient::connect(&embed.address, 65_535).await;
        let sent = half_send(&mut client, LOOKUP, 128).await;
        println!("    {sent} MiB were sent: {:?}", client.seen());
        clients.push(client);
    }
    drop(clients);
    looked_up(&embed).await;
    let most = UNFINISHED + 3 * WINDOW + SLACK;
    watch.took_at_most("half-sent messages on three connections", most);
}

/// `--max-inflight-bytes` by default, in MiB.
const INFLIGHT: u64 = 256;

/// Others were refused for ten minutes once.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_keep_nobody_out() {
    let embed = wide_embed_service();
    looked_up(&embed).await;
    let watch = Watch::begin(&embed.process);
    for window in [0, 1, 1 << 20] {
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = RawClient::connect(&embed.address, window).await;
            if window > 1 {
                client.read_nothing();
            }
            for _ in 0..128 {
                if !client.call(LOOKUP, &wide_request()).await {
                    break;
                }
            }
            clients.push(client);
        }
        looked_up(&embed).await;
        looked_up(&embed).await;
        let most = INFLIGHT + SLACK;
        let what = format!("1,024 streams with an unread answer, windows of {window}");
        watch.took_at_most(&what, most);
    }
}

/// 396 MB became 1,122 once.
#[tokio::test(flavor = "multi_thread")]
async fn unary_answers_that_nobody_reads_count_until_they_are_sent() {
    let embed = wide_embed_service();
    looked_up(&embed).await;
    let watch = Watch::begin(&embed.process);
    for window in [0, 1, 1 << 20] {
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = RawClient::connect(&embed.address, window).await;
            if window > 1 {
                client.read_nothing();
            }
            for _ in 0..120 {
                if !client.call(LOOKUP_ONCE, &wide_request()).await {
                    break;
                }
            }
            clients.push(client);
        }
        looked_up(&embed).await;
        let most = INFLIGHT + SLACK;
        let what = format!("2,400 unread LookupOnce, windows of {window}");
        watch.took_at_most(&what, most);
    }
}

/// Others' look-ups took 25 ms instead of 3 once, for as long as it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_window_updates_end_their_connections() {
    const CLIENTS: usize = 4;
    let embed = wide_embed_service();
    looked_up(&embed).await;
    let mut updates = Vec::new();
    for _ in 0..10_000 {
        window_update(&mut updates, 0, 1);
    }
    let mut flooding = JoinSet::new();
    for _ in 0..CLIENTS {
        let (address, updates) = (embed.address.clone(), updates.clone());
        flooding.spawn(async move {
            let mut client = RawClient::connect(&address, 65_535).await;
            let mut sent = 0;
            while client.send(&updates).await {
                sent += 10_000;
            }
            sent
        });
    }
    looked_up(&embed).await;
    while let Some(sent) = in_time("end of a flood", flooding.join_next()).await {
        println!("    cut after {} frames", sent.unwrap());
    }
    let cut = embed.metric("scone_embed_connections_flooded_total").await;
    assert_eq!(cut, Some(CLIENTS as f64));
    looked_up(&embed).await;
}

/// The smallest look-ups, one after the other, and two WINDOW_UPDATEs for each answer, as the most
/// talkative client would.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_client_that_makes_room_for_each_answer_is_not_cut() {
    const AT_ONCE: usize = 100;
    let embed = wide_embed_service();
    let mut client = RawClient::connect(&embed.address, 65_535).await;
    let mut frames = Vec::new();
    let stream = client.open(&mut frames, LOOKUP);
    assert!(client.send(&frames).await);
    // No row: the next id is another one.
    let request = grpc(&rows::request(1, &[7, 3]).encode_to_vec());
    // The first alone tells how long an answer is.
    let (mut answer_bytes, mut answered) = (0, 0);
    for round in 0..=150 {
        let count = if round == 0 { 1 } else { AT_ONCE };
        let mut frames = Vec::new();
        for _ in 0..count {
            data(&mut frames, stream, &request, false);
            window_update(&mut frames, stream, 64);
            window_update(&mut frames, 0, 64);
        }
        assert!(client.send(&frames).await, "{:?}", client.seen());
        answered += count;
        eventually("answers to all", async || {
            let bytes = client.seen().data_bytes;
            if round == 0 {
                answer_bytes = bytes;
            }
            (bytes > 0 && bytes == answered * answer_bytes).then_some(())
        })
        .await;
    }
    let cut = embed.metric("scone_embed_connections_flooded_total").await;
    assert_eq!(cut, Some(0.0));
}
