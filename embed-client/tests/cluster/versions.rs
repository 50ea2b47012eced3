//! Replicas that switch to another version of the table.

use scone_embed_client::LookupError;
use scone_test_support::tables::Rows as _;

use crate::asking::{FOREIGN, NEW, OLD, Server, assert_rows_of, connect, eventually, lookup};

#[tokio::test]
async fn work_begun_stays_on_its_version_and_new_work_moves_when_all_replicas_have() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let client = connect(&[&first, &second]).await;
    let pinned = client.current();
    assert_eq!(pinned.table_id, OLD.id());

    first.serve(&[NEW, OLD]);
    first.polled().await;
    assert_eq!(client.current().table_id, OLD.id(), "one of two has moved");
    let (at_first, at_second) = (first.lookups(), second.lookups());
    while first.lookups() == at_first || second.lookups() == at_second {
        assert_rows_of(&OLD, &lookup(&client, &pinned).await);
    }

    second.serve(&[NEW, OLD]);
    let moved = || client.current().table_id == NEW.id();
    eventually("new work moves", moved).await;
    assert_eq!(client.monitor().replicas(), [2]);
    for _ in 0..20 {
        assert_rows_of(&NEW, &lookup(&client, &client.current()).await);
        assert_rows_of(&OLD, &lookup(&client, &pinned).await);
    }

    // One still serves the old version: it gets all the work of it.
    first.serve(&[NEW]);
    for _ in 0..20 {
        assert_rows_of(&OLD, &lookup(&client, &pinned).await);
    }
    second.serve(&[NEW]);
    let answers = lookup(&client, &pinned).await;
    assert!(matches!(answers.error(), Some(LookupError::Unavailable(_))));
    assert_rows_of(&NEW, &lookup(&client, &client.current()).await);
}

#[tokio::test]
async fn a_switch_without_retention_moves_new_work_as_soon_as_the_old_version_is_incomplete() {
    let zero = Server::start(OLD.shard(0, 2));
    let one = [(); 2].map(|()| Server::start(OLD.shard(1, 2)));
    let client = connect(&[&zero, &one[0], &one[1]]).await;
    one[0].serve(&[NEW.shard(1, 2)]);
    one[0].polled().await;
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    zero.serve(&[NEW.shard(0, 2)]);
    eventually("it moves", || client.current().table_id == NEW.id()).await;
    assert_rows_of(&NEW, &lookup(&client, &client.current()).await);
}

#[tokio::test]
async fn a_version_of_another_model_is_not_taken() {
    let server = Server::start(OLD);
    let client = connect(&[&server]).await;
    server.serve(&[FOREIGN, OLD]);
    server.polled().await;
    assert_eq!(client.current().table_id, OLD.id());
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);

    server.serve(&[FOREIGN]);
    eventually("nobody is left", || client.monitor().replicas() == [0]).await;
    let answers = lookup(&client, &client.current()).await;
    assert!(matches!(answers.error(), Some(LookupError::Unavailable(_))));
    server.serve(&[NEW]);
    eventually("it moves", || client.current().table_id == NEW.id()).await;
    assert_rows_of(&NEW, &lookup(&client, &client.current()).await);
}
