//! Tables in the mapped store.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use integration_tests::{
    binaries::binaries,
    client::{self, generate, seeded},
    cluster::{ANY_PORT, Service, decoder_command, embed_command, refusal},
    fixtures::{evaluate, fixtures},
    folders::{copy_of, scratch},
    process::run,
    rows::{document, info, lookup, request, row_of_each_position},
};

fn mapped(model: &Path, flags: &[&str]) -> PathBuf {
    let table = scratch("mapped").join("table");
    fixtures().precompute(model, &table, &[&["--store", "mapped"], flags].concat());
    table
}

/// Names, lengths and times of all files.
fn state(dir: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let facts = entry.metadata().unwrap();
        (entry.path(), facts.len(), facts.modified().unwrap())
    });
    let mut state: Vec<_> = entries.collect();
    state.sort();
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_one_mapped_table_and_write_nothing() {
    let f = fixtures();
    let table = mapped(&f.model, &[]);
    let before = state(&table);
    let sled = Service::decoder(&[]);
    let client = client::decoder(&sled.address).await;
    let ask = || seeded("The clockmaker said that", 60, 7);
    let expected = generate(&client, ask()).await.unwrap();

    let embeds = [(); 2].map(|()| start(&table));
    let both = embeds.each_ref().map(|s| s.address.clone()).join(",");
    let remote = Service::decoder_remote(&f.model, &both, &[]);
    let mut command = decoder_command(&f.model, ANY_PORT, &[]);
    command.arg("--table").arg(&table);
    let embedded = Service::try_start("decoder-service", command).unwrap();
    for decoder in [&remote, &embedded] {
        let client = client::decoder(&decoder.address).await;
        let actual = generate(&client, ask()).await.unwrap();
        assert_eq!(expected.outcome(), actual.outcome());
    }
    assert_eq!(
        info(&client::embed(&embeds[0].address).await).await.store,
        "mapped"
    );
    assert_eq!(state(&table), before);
}

fn start(table: &Path) -> Service {
    Service::try_start("embed-service", embed_command(table, ANY_PORT, &[])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_answer_the_same_bytes_in_every_dtype() {
    let f = fixtures();
    let ids = document();
    for dtype in ["f32", "f16", "bf16", "int8", "int4"] {
        let sled = scratch("sled").join("table");
        f.precompute(&f.model, &sled, &["--dtype", dtype]);
        let mut answers = Vec::new();
        for table in [sled, mapped(&f.model, &["--dtype", dtype])] {
            let embed = start(&table);
            let client = client::embed(&embed.address).await;
            let row_bytes = info(&client).await.row_bytes as usize;
            let rows = lookup(&client, request(1, &ids)).await;
            answers.push(row_of_each_position(&rows, row_bytes));
        }
        assert_eq!(answers[0], answers[1], "{dtype}");
        assert!(answers[0].iter().any(|(length, _)| *length > 2), "{dtype}");
    }
}

#[test]
fn a_mapped_table_evaluates_like_live_a_rounded_to_its_type() {
    let f = fixtures();
    let table = mapped(&f.model, &["--dtype", "int8"]);
    let table = evaluate(&f.model, &f.heldout, &["--table", table.to_str().unwrap()]);
    let live = evaluate(&f.model, &f.heldout, &["--row-dtype", "int8"]);
    let nats = |result: &serde_json::Value| result["nats_per_token"].as_f64().unwrap();
    let (table, live) = (nats(&table), nats(&live));
    assert!((table / live - 1.0).abs() < 1e-6, "{table} {live}");
}

#[test]
fn damage_of_any_file_is_found_and_named() {
    let whole = mapped(&fixtures().model, &[]);
    for (path, length, _) in state(&whole) {
        let name = path.file_name().unwrap().to_str().unwrap();
        for damage in ["truncated", "flipped", "removed"] {
            let table = copy_of(&whole);
            let file = table.join(name);
            let mut bytes = fs::read(&file).unwrap();
            match damage {
                "truncated" => fs::write(&file, &bytes[..length as usize / 2]).unwrap(),
                "flipped" => {
                    bytes[length as usize / 2] ^= 1;
                    fs::write(&file, bytes).unwrap();
                }
                _ => fs::remove_file(&file).unwrap(),
            }
            // A damaged row is named by its f-gram.
            let names = |said: &str| said.contains(name) || said.contains("the row of [");
            let command = embed_command(&table, ANY_PORT, &["--verify"]);
            let said = refusal("embed-service", command);
            assert!(names(&said), "{damage} {name}: {said}");
            let mut command = Command::new(&binaries().embed_service);
            command.arg("verify").arg("--table").arg(&table);
            let said = run("embed-service-verify", command).failure();
            assert!(names(&said), "{damage} {name}: {said}");
        }
    }
}

#[test]
fn a_mapped_table_of_another_model_is_refused() {
    let f = fixtures();
    let mut command = decoder_command(&f.model, ANY_PORT, &[]);
    command.arg("--table").arg(mapped(&f.other_model, &[]));
    let said = refusal("decoder-service", command);
    assert!(said.contains("model_hash"), "{said}");
}
