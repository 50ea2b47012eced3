//! Starts that must be refused: with a message that helps and an exit code, not with a panic.

use integration_tests::{
    cluster::{ANY_PORT, Service, decoder_command, embed_command, refusal},
    fixtures::{fixtures, manifest},
    folders::{copy_of, scratch},
};

/// The message must name what does not fit: the model's hash and the table's.
fn assert_names_both(message: &str) {
    let f = fixtures();
    let hashes = [&f.table, &f.other_table].map(|table| manifest(table)["model_hash"].clone());
    assert_ne!(
        hashes[0], hashes[1],
        "the fixture's models have the same hash"
    );
    for hash in hashes {
        let hash = hash.as_str().unwrap();
        assert!(message.contains(&hash[..8]), "want {hash}: {message}");
    }
}

#[test]
fn a_table_of_another_model_is_refused_embedded() {
    let f = fixtures();
    let mut command = decoder_command(&f.other_model, ANY_PORT, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    assert_names_both(&refusal("decoder-service", command));
}

#[test]
fn a_table_of_another_model_is_refused_remote() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &[]);
    let mut command = decoder_command(&f.other_model, ANY_PORT, &[]);
    command.args(["--embed", &embed.address]);
    assert_names_both(&refusal("decoder-service", command));
}

#[test]
fn a_port_in_use_is_named() {
    let f = fixtures();
    let holder = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let taken = holder.local_addr().unwrap().to_string();

    let message = refusal(
        "embed-service",
        embed_command(&copy_of(&f.table), &taken, &[]),
    );
    assert!(message.contains(&taken), "{message}");

    let mut command = decoder_command(&f.model, &taken, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    let message = refusal("decoder-service", command);
    assert!(message.contains(&taken), "{message}");

    let flags = ["--metrics-listen", taken.as_str()];
    let message = refusal(
        "embed-service",
        embed_command(&copy_of(&f.table), ANY_PORT, &flags),
    );
    assert!(message.contains(&taken), "{message}");
}

#[test]
fn a_table_that_another_process_has_open_is_refused() {
    let embed = Service::embed(&fixtures().table, &[]);
    let table = embed.table.clone().unwrap();
    let message = refusal("embed-service", embed_command(&table, ANY_PORT, &[]));
    assert!(message.contains(table.to_str().unwrap()), "{message}");
    assert!(message.contains("another process"), "{message}");
}

#[test]
fn missing_folders_are_named() {
    let f = fixtures();
    let empty = scratch("empty");
    let missing = empty.join("missing");
    for dir in [&empty, &missing] {
        let name = dir.to_str().unwrap();
        let message = refusal("embed-service", embed_command(dir, ANY_PORT, &[]));
        assert!(message.contains(name), "{message}");

        let mut command = decoder_command(dir, ANY_PORT, &[]);
        command.arg("--table").arg(copy_of(&f.table));
        let message = refusal("decoder-service", command);
        assert!(message.contains(name), "{message}");

        let mut command = decoder_command(&f.model, ANY_PORT, &[]);
        command.arg("--table").arg(dir);
        let message = refusal("decoder-service", command);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn one_shard_of_two_is_not_a_whole_table() {
    let f = fixtures();
    let shard = Service::embed(&f.shards[0], &[]);
    let flags = ["--embed-start-timeout", "2s"];
    let mut command = decoder_command(&f.model, ANY_PORT, &flags);
    command.args(["--embed", &shard.address]);
    let message = refusal("decoder-service", command);
    assert!(message.contains("shard"), "{message}");

    let mut command = decoder_command(&f.model, ANY_PORT, &[]);
    command.arg("--table").arg(copy_of(&f.shards[1]));
    let message = refusal("decoder-service", command);
    assert!(message.contains("shard"), "{message}");
}

#[test]
fn nobody_at_the_address_of_the_embed_service() {
    let holder = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let address = holder.local_addr().unwrap().to_string();
    drop(holder);
    let flags = ["--embed-start-timeout", "2s"];
    let mut command = decoder_command(&fixtures().model, ANY_PORT, &flags);
    command.args(["--embed", &address]);
    let message = refusal("decoder-service", command);
    assert!(message.contains(&address), "{message}");
}
