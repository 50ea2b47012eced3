//! More work than the decoder takes, and clients that go away.

use integration_tests::{
    client::{self, begin, finish, generate, greedy, with},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
};
use scone_proto::decoder::v1::decoder_service_client::DecoderServiceClient;
use tonic::{Code, transport::Channel};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_the_accepted_ones_finish() {
    let decoder = Service::decoder(&["--max-batch", "1", "--max-queue", "1"]);
    let client = client::decoder(&decoder.address).await;
    let (head, rest) = begin(&client, greedy("The harbour", 1900)).await;

    // One slot of the batch is taken, one of the queue is free: one of these three gets it.
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { generate(&client, greedy("The boats", 5)).await })
        })
        .collect();
    let mut accepted = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(completion) => {
                assert_eq!(completion.ids.len(), 5);
                accepted += 1;
            }
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
    }
    assert_eq!(accepted, 1);
    assert_eq!(finish(head, rest).await.unwrap().ids.len(), 1900);
    generate(&client, greedy("The boats", 5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_its_slot() {
    let flags = ["--max-batch", "1", "--max-queue", "1"];
    let flags = [&flags[..], &["--metrics-listen", ANY_PORT]].concat();
    let decoder = Service::decoder(&flags);
    let client = client::decoder(&decoder.address).await;
    let (_, rest) = begin(&client, greedy("The harbour", 2000)).await;
    assert_eq!(decoder.metric("scone_decoder_running").await, Some(1.0));
    drop(rest);
    eventually("free slot", async || {
        let running = decoder.metric("scone_decoder_running").await?;
        (running == 0.0).then_some(())
    })
    .await;
    // Far fewer than the 2,000 tokens were made.
    let generated = "scone_decoder_generated_tokens_total";
    let generated = decoder.metric(generated).await.unwrap();
    assert!(generated < 1500.0, "{generated} tokens");
    generate(&client, greedy("The boats", 5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_does_not_stop_the_others() {
    let decoder = Service::decoder(&["--max-batch", "2"]);
    let slow = client::decoder(&decoder.address).await;
    let (_, unread) = begin(&slow, greedy("The harbour", 2000)).await;
    let client = client::decoder(&decoder.address).await;
    for _ in 0..3 {
        generate(&client, greedy("The boats", 20)).await.unwrap();
    }
    drop(unread);
}

/// A client whose streams have room for so many bytes that it has not read.
async fn with_window(decoder: &Service, bytes: u32) -> DecoderServiceClient<Channel> {
    let address = format!("http://{}", decoder.address);
    let channel = Channel::from_shared(address).unwrap();
    let channel = channel.initial_stream_window_size(bytes).connect().await;
    DecoderServiceClient::new(channel.unwrap())
}

/// A request whose stream has no room for a byte takes every place, and others get theirs all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_window_stays_closed_keeps_nobody_out() {
    let flags = [
        "--max-batch",
        "4",
        "--max-queue",
        "4",
        "--max-per-client",
        "8",
    ];
    let decoder = Service::decoder(&flags);
    let mut closed = with_window(&decoder, 0).await;
    let eight = with(greedy("The harbour", 1500), |sampling| sampling.n = Some(8));
    let unread = closed.generate(eight.clone()).await.unwrap();

    let client = client::decoder(&decoder.address).await;
    for _ in 0..5 {
        eventually("a place", async || {
            generate(&client, greedy("The boats", 20)).await.ok()
        })
        .await;
    }
    // They stand beside the others, and still count as its client's.
    let refused = closed.generate(eight).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("--max-per-client"), "{refused}");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_too_late_is_told_why_it_ended() {
    let flags = ["--client-timeout", "1s", "--metrics-listen", ANY_PORT];
    let decoder = Service::decoder(&flags);
    let client = with_window(&decoder, 1 << 15).await;
    let many = with(greedy("The harbour", 1900), |sampling| {
        sampling.n = Some(16)
    });
    let mut late = client.clone().generate(many).await.unwrap().into_inner();
    eventually("the end of those that nobody reads", async || {
        let stalled = "scone_decoder_requests_total{outcome=\"client_stalled\"}";
        decoder.metric(stalled).await.filter(|ended| *ended > 0.0)
    })
    .await;
    let status = loop {
        match late.message().await {
            Ok(message) => assert!(message.is_some(), "it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("did not read"), "{status}");
}
