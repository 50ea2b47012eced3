//! More work than the decoder takes, and clients that go away.

use integration_tests::{
    client::{self, begin, finish, generate, greedy},
    cluster::Service,
    eventually::eventually,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_the_accepted_ones_finish() {
    let decoder = Service::decoder(&["--max-batch", "1", "--max-queue", "1"]);
    let client = client::decoder(&decoder.address).await;
    let (head, rest) = begin(&client, greedy("The harbour", 1000)).await;

    // One place in the batch is taken, one in the queue is free: one of these three gets it.
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
    assert_eq!(finish(head, rest).await.unwrap().ids.len(), 1000);
    generate(&client, greedy("The boats", 5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_its_slot() {
    let decoder = Service::decoder(&["--max-batch", "1", "--max-queue", "1"]);
    let client = client::decoder(&decoder.address).await;
    let (_, rest) = begin(&client, greedy("The harbour", 2000)).await;
    drop(rest);

    // Had the slot not been freed, the queue would hold this request until the 2,000 tokens are done.
    let completion = eventually("a free slot", async || {
        generate(&client, greedy("The boats", 5)).await.ok()
    })
    .await;
    let timings = completion.finish.unwrap().timings.unwrap();
    let step_us = (timings.decode_us / 5).max(1);
    assert!(timings.queue_us < 200 * step_us, "{timings:?}");
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
