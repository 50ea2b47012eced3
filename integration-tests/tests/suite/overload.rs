//! More work than the decoder takes, and clients that go away.

use integration_tests::{
    client::{self, begin, finish, generate, greedy},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
};
use tonic::Code;

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
