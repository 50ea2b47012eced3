//! The embed tier goes away in the middle of a generation.

use integration_tests::{
    client::{self, begin, finish, generate, greedy},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
    fixtures::fixtures,
    folders::copy_of,
};
use scone_proto::decoder::v1::FinishReason;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn generation_fails_with_unavailable_and_serves_again_when_it_is_back() {
    let f = fixtures();
    let mut embed = Service::embed(&f.table, &[]);
    let decoder = Service::decoder_remote(&f.model, &embed.address, &[]);
    let client = client::decoder(&decoder.address).await;
    let request = || greedy("The harbour town wakes before", 30);
    let expected = generate(&client, request()).await.unwrap();

    let (head, rest) = begin(&client, greedy("The harbour", 1900)).await;
    embed.process.kill();
    let status = finish(head, rest).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let status = generate(&client, request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let table = embed.table.clone().unwrap();
    let _embed = Service::embed_at(&embed.address, table, &[]);
    let again = eventually("generation", async || {
        generate(&client, request()).await.ok()
    })
    .await;
    assert_eq!(expected.outcome(), again.outcome());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_embedding_goes_on_and_counts() {
    let f = fixtures();
    let mut embed = Service::embed(&f.table, &[]);
    let flags = ["--on-lookup-failure", "token-embedding"];
    let flags = [&flags[..], &["--metrics-listen", ANY_PORT]].concat();
    let decoder = Service::decoder_remote(&f.model, &embed.address, &flags);
    let client = client::decoder(&decoder.address).await;
    let whole = generate(&client, greedy("The harbour", 30)).await.unwrap();
    assert_eq!(whole.fallback_positions(), 0);

    let (head, rest) = begin(&client, greedy("The harbour", 1900)).await;
    embed.process.kill();
    let completion = finish(head, rest).await.unwrap();
    assert_eq!(completion.reason(), FinishReason::Length);
    assert_eq!(completion.ids.len(), 1900);
    let fallbacks = completion.fallback_positions();
    assert!(fallbacks > 0);
    let counted = decoder
        .metric("scone_decoder_fallback_positions_total")
        .await;
    assert_eq!(counted, Some(f64::from(fallbacks)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embed_service_of_another_model_in_its_place_is_not_used() {
    let f = fixtures();
    let mut embed = Service::embed(&f.table, &[]);
    let decoder = Service::decoder_remote(&f.model, &embed.address, &[]);
    let client = client::decoder(&decoder.address).await;
    generate(&client, greedy("The boats", 10)).await.unwrap();

    embed.process.kill();
    let other = copy_of(&f.other_table);
    let _other = Service::embed_at(&embed.address, other, &[]);
    // Whether the decoder has looked at the new peer already or not: no tokens come out of it.
    for _ in 0..3 {
        let status = generate(&client, greedy("The boats", 10))
            .await
            .unwrap_err();
        assert!(
            matches!(status.code(), Code::Unavailable | Code::FailedPrecondition),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_is_not_waited_for() {
    let f = fixtures();
    let replicas = [(); 2].map(|()| Service::embed(&f.table, &[]));
    let both = replicas.each_ref().map(|s| s.address.clone()).join(",");
    let flags = ["--lookup-timeout", "2s"];
    let decoder = Service::decoder_remote(&f.model, &both, &flags);
    let client = client::decoder(&decoder.address).await;
    let request = || greedy("The harbour town wakes before", 20);
    let expected = generate(&client, request()).await.unwrap();
    replicas[0].process.freeze();
    for _ in 0..2 {
        let actual = generate(&client, request()).await.unwrap();
        assert_eq!(expected.outcome(), actual.outcome());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embed_service_that_hangs_ends_the_generation_in_time() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &[]);
    let flags = ["--lookup-timeout", "300ms"];
    let decoder = Service::decoder_remote(&f.model, &embed.address, &flags);
    let client = client::decoder(&decoder.address).await;
    let (head, rest) = begin(&client, greedy("The harbour", 1900)).await;
    embed.process.freeze();
    let status = finish(head, rest).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}
