//! SIGTERM: what runs is finished, what is new is refused, and the exit code is 0.

use integration_tests::{
    client::{self, begin, finish, generate, greedy},
    cluster::Service,
    eventually::eventually,
    fixtures::fixtures,
};
use scone_proto::decoder::v1::FinishReason;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_generation_finish() {
    let mut decoder = Service::decoder(&["--drain-timeout", "60s"]);
    let client = client::decoder(&decoder.address).await;
    let (head, rest) = begin(&client, greedy("The old lighthouse keeper", 1900)).await;
    decoder.process.terminate();

    // New work is refused while the old one goes on.
    let refused = eventually("refusal", async || {
        generate(&client, greedy("The", 1)).await.err()
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");

    let completion = finish(head, rest).await.unwrap();
    assert_eq!(completion.reason(), FinishReason::Length);
    assert_eq!(completion.ids.len(), 1900);
    assert_eq!(decoder.process.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_timeout_bounds_the_wait() {
    let mut decoder = Service::decoder(&["--drain-timeout", "100ms"]);
    let client = client::decoder(&decoder.address).await;
    let (head, rest) = begin(&client, greedy("The old lighthouse keeper", 1900)).await;
    decoder.process.terminate();
    assert_eq!(decoder.process.wait().code(), Some(0));
    let status = finish(head, rest).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_embed_service_under_an_idle_decoder() {
    let f = fixtures();
    let mut embed = Service::embed(&f.table, &[]);
    let mut decoder = Service::decoder_remote(&f.model, &embed.address, &[]);
    let client = client::decoder(&decoder.address).await;
    generate(&client, greedy("The boats", 10)).await.unwrap();
    // The decoder's look-up streams are open, but nothing is asked: the drain must not wait for them.
    embed.process.terminate();
    assert_eq!(embed.process.wait().code(), Some(0));
    decoder.process.terminate();
    assert_eq!(decoder.process.wait().code(), Some(0));
}
