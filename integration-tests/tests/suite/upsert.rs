//! Rows of a sled table replaced in place, and killed at any moment.

use std::{path::Path, process::Command, time::Duration};

use integration_tests::{
    binaries::binaries,
    client,
    cluster::{ANY_PORT, Service, embed_command},
    fixtures::{fixtures, manifest},
    folders::copy_of,
    process::{Process, run},
    rows::{document, info, lookup, request, row_of_each_position},
};

fn upsert(table: &Path, from: &Path) -> Command {
    let mut command = Command::new(&binaries().embed_service);
    command.arg("upsert").arg("--table").arg(table);
    command.arg("--from").arg(from);
    command
}

/// The answer for each position of the held-out text.
async fn rows(table: &Path) -> Vec<(u8, Vec<u8>)> {
    let command = embed_command(table, ANY_PORT, &[]);
    let embed = Service::try_start("embed-service", command).unwrap();
    let client = client::embed(&embed.address).await;
    let row_bytes = info(&client).await.row_bytes as usize;
    row_of_each_position(&lookup(&client, request(1, &document())).await, row_bytes)
}

fn verify(table: &Path) {
    let mut command = Command::new(&binaries().embed_service);
    command.arg("verify").arg("--table").arg(table);
    run("embed-service-verify", command).success();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_each_row_is_the_old_or_the_new_one() {
    let f = fixtures();
    let from = copy_of(&f.other_table);
    let (old, new) = (rows(&copy_of(&f.table)).await, rows(&from).await);
    assert_ne!(old, new);
    let table = copy_of(&f.table);
    for delay_ms in [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64] {
        let mut process = Process::spawn("upsert", upsert(&table, &from));
        std::thread::sleep(Duration::from_millis(delay_ms));
        process.kill();
        for (position, row) in rows(&table).await.iter().enumerate() {
            let either = [&old[position], &new[position]];
            assert!(either.contains(&row), "after {delay_ms} ms: {position}");
        }
    }
    run("upsert", upsert(&table, &from)).success();
    assert_eq!(rows(&table).await, new);
    verify(&table);
    // Every row is now the other model's, and the table says so.
    let hash = |table: &Path| manifest(table)["model_hash"].clone();
    assert_eq!(hash(&table), hash(&f.other_table));
}

#[test]
fn a_table_in_use_or_of_another_kind_is_left_alone() {
    let f = fixtures();
    let table = copy_of(&f.table);
    let serving = Service::embed_at(ANY_PORT, table.clone(), &[]);
    let said = run("upsert", upsert(&table, &copy_of(&f.other_table))).failure();
    assert!(said.contains(table.to_str().unwrap()), "{said}");
    drop(serving);

    let said = run("upsert", upsert(&table, &copy_of(&f.shards[0]))).failure();
    assert!(said.contains("shard"), "{said}");
    let before = manifest(&f.table);
    assert_eq!(manifest(&table), before);
}
