//! Replicas that fail, lag and are full.

use std::time::Duration;

use scone_embed_client::{EmbedClient, LookupError};
use scone_test_support::Behaviour;
use tokio::task::JoinSet;

use crate::asking::{OLD, Server, assert_rows_of, connect, eventually, lookup, options};

/// Starts look-ups until `server` holds some that it does not answer.
async fn stuck_at(client: &EmbedClient, server: &Server) -> JoinSet<()> {
    server.behave(Behaviour::Silent);
    let before = server.lookups();
    let mut lookups = JoinSet::new();
    while server.lookups() == before {
        let client = client.clone();
        lookups.spawn(async move {
            assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lookups
}

async fn all_answered(mut lookups: JoinSet<()>) {
    while let Some(done) = lookups.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn lookups_at_a_killed_replica_are_answered_by_another() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let client = connect(&[&first, &second]).await;
    let lookups = stuck_at(&client, &first).await;
    first.kill();
    all_answered(lookups).await;
    assert!(client.monitor().stats().retries > 0);
    eventually("one replica", || client.monitor().replicas() == [1]).await;
}

#[tokio::test]
async fn lookups_left_by_a_stream_that_ended_in_good_order_are_answered_elsewhere() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let client = connect(&[&first, &second]).await;
    let lookups = stuck_at(&client, &first).await;
    first.end_streams();
    all_answered(lookups).await;
    assert!(client.monitor().stats().retries > 0);
    first.behave(Behaviour::Answer);
    eventually("it is back", || client.monitor().replicas() == [2]).await;
}

#[tokio::test]
async fn the_only_replica_may_end_its_streams() {
    let server = Server::start(OLD);
    let client = connect(&[&server]).await;
    for _ in 0..5 {
        let lookups = stuck_at(&client, &server).await;
        server.behave(Behaviour::Answer);
        server.end_streams();
        all_answered(lookups).await;
    }
}

#[tokio::test]
async fn a_late_lookup_is_sent_to_a_second_replica_whose_answer_is_used() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let mut options = options(&[&first, &second]);
    options.hedge = true;
    let client = EmbedClient::connect(options).await.unwrap();
    for _ in 0..200 {
        assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    }
    let before = client.monitor().stats();
    let lookups = stuck_at(&client, &first).await;
    all_answered(lookups).await;
    let stats = client.monitor().stats();
    assert!(stats.hedges_won > before.hedges_won, "{stats:?}");
    assert_eq!(stats.retries, 0, "nothing failed");
}

#[tokio::test]
async fn a_replica_that_hangs_is_passed_over_for_a_while() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let mut options = options(&[&first, &second]);
    options.timeout = Duration::from_secs(2);
    let client = EmbedClient::connect(options).await.unwrap();
    first.behave(Behaviour::Silent);
    for _ in 0..100 {
        assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    }
    let asked = first.lookups();
    assert!((1..10).contains(&asked), "asked {asked} times of 100");
}

#[tokio::test]
async fn without_hedging_no_lookup_is_sent_twice() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let client = connect(&[&first, &second]).await;
    for _ in 0..200 {
        assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    }
    assert_eq!(first.lookups() + second.lookups(), 200);
    assert_eq!(client.monitor().stats().hedges_sent, 0);
}

#[tokio::test]
async fn a_full_replica_is_passed_over_at_once() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let client = connect(&[&first, &second]).await;
    first.behave(Behaviour::Exhausted {
        times: u64::MAX,
        retry_delay_ms: u32::MAX,
    });
    while first.lookups() < 3 {
        assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    }
    assert!(client.monitor().stats().retries >= 3);
}

#[tokio::test]
async fn the_only_replica_is_asked_again_after_the_delay_it_names() {
    let server = Server::start(OLD);
    let client = connect(&[&server]).await;
    server.behave(Behaviour::Exhausted {
        times: 2,
        retry_delay_ms: 1,
    });
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    assert_eq!(server.lookups(), 3);

    // A delay beyond the time limit is not waited for.
    server.behave(Behaviour::Exhausted {
        times: 1,
        retry_delay_ms: u32::MAX,
    });
    let answers = lookup(&client, &client.current()).await;
    let Some(LookupError::Unavailable(text)) = answers.error() else {
        panic!("{:?}", answers.error());
    };
    assert!(text.contains("ResourceExhausted"), "{text}");
}

#[tokio::test]
async fn a_shard_without_a_replica_fails_its_positions_and_no_others() {
    let zero = Server::start(OLD.shard(0, 2));
    let one = Server::start(OLD.shard(1, 2));
    let mut options = options(&[&zero, &one]);
    options.timeout = Duration::from_millis(200);
    let client = EmbedClient::connect(options).await.unwrap();
    assert_eq!(client.monitor().replicas(), [1, 1]);
    let whole = lookup(&client, &client.current()).await;
    assert_rows_of(&OLD, &whole);

    zero.kill();
    eventually("it is gone", || client.monitor().replicas() == [0, 1]).await;
    let partial = lookup(&client, &client.current()).await;
    assert!(matches!(partial.error(), Some(LookupError::Unavailable(_))));
    let (mut failed, mut answered) = (0, 0);
    for (position, &length) in whole.match_lengths().iter().enumerate() {
        match partial.match_lengths()[position] {
            0 if length > 0 => {
                assert!(partial.failed()[position]);
                failed += 1;
            }
            got => {
                assert_eq!(got, length);
                assert!(!partial.failed()[position]);
                answered += u32::from(got > 0);
            }
        }
    }
    assert!(failed > 0 && answered > 0, "both shards own some");
}
