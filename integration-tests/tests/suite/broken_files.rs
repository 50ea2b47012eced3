//! Truncated and bit-flipped files, and a disk that is full: a clear error, never a panic, never a
//! table that only looks complete.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use integration_tests::{
    client::{self, generate, greedy, seeded},
    cluster::{ANY_PORT, Service, decoder_command, embed_command, refusal},
    fixtures::{fixtures, manifest, precompute_command, trainer},
    folders::{copy_of, scratch},
    process::run,
};
use scone_proto::decoder::v1::GetModelInfoRequest;
use tonic::Code;

/// Ways to damage a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// Half of it is missing.
    Truncated,
    /// Nothing is left.
    Emptied,
    /// One bit in the middle is another.
    Flipped,
}

impl Damage {
    const ALL: [Damage; 3] = [Damage::Truncated, Damage::Emptied, Damage::Flipped];

    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Damage::Truncated => bytes.truncate(middle),
            Damage::Emptied => bytes.clear(),
            Damage::Flipped => bytes[middle] ^= 1,
        }
        fs::write(path, bytes).unwrap();
    }
}

/// All files under `dir`, by path below it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn damaged_table_files_are_refused_when_the_table_is_verified() {
    let f = fixtures();
    for name in ["table.json", "keys.bin"] {
        for damage in Damage::ALL {
            let table = copy_of(&f.table);
            damage.apply(&table.join(name));
            let message = refusal(
                "embed-service",
                embed_command(&table, ANY_PORT, &["--verify"]),
            );
            assert!(message.contains(name), "{name} {damage:?}: {message}");

            let mut command = Command::new(&integration_tests::binaries::binaries().embed_service);
            command.arg("verify").arg("--table").arg(&table);
            let message = run("embed-service-verify", command).failure();
            assert!(message.contains(name), "{name} {damage:?}: {message}");
        }
    }
}

#[test]
fn damaged_rows_are_found_by_verify() {
    let f = fixtures();
    let rows = files(&f.table.join("rows.sled"));
    assert!(!rows.is_empty(), "no files in rows.sled");
    // The log file of sled, the largest, is the one with rows.
    let size = |path: &PathBuf| {
        fs::metadata(f.table.join("rows.sled").join(path))
            .unwrap()
            .len()
    };
    let largest = rows.iter().max_by_key(|path| size(path)).unwrap();
    for damage in [Damage::Truncated, Damage::Emptied] {
        let table = copy_of(&f.table);
        damage.apply(&table.join("rows.sled").join(largest));
        let message = refusal(
            "embed-service",
            embed_command(&table, ANY_PORT, &["--verify"]),
        );
        let path = table.to_str().unwrap();
        assert!(message.contains(path), "{damage:?}: {message}");
    }
}

#[test]
fn damaged_model_files_are_refused() {
    let f = fixtures();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "scone.json",
    ] {
        for damage in [Damage::Truncated, Damage::Emptied] {
            let model = copy_of(&f.model);
            damage.apply(&model.join(name));
            let mut command = decoder_command(&model, ANY_PORT, &[]);
            command.arg("--table").arg(copy_of(&f.table));
            let message = refusal("decoder-service", command);
            assert!(message.contains(name), "{name} {damage:?}: {message}");
        }
    }
}

#[test]
fn a_damaged_tokenizer_is_another_tokenizer() {
    // Still valid JSON, but not the file the table was made with.
    let f = fixtures();
    let model = copy_of(&f.model);
    let path = model.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n")).unwrap();
    let mut command = decoder_command(&model, ANY_PORT, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    let message = refusal("decoder-service", command);
    assert!(message.contains("tokenizer"), "{message}");
}

/// Flips a high bit of the exponent of some number of a tensor.
/// Flips bits of the highest byte, sign and exponent, of one number.
fn flip_in_tensor(file: &Path, tensor: &str, bits: u8) {
    let mut bytes = fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(json[tensor]["dtype"], "F32");
    let offset = json[tensor]["data_offsets"][0].as_u64().unwrap();
    bytes[8 + header + offset as usize + 4 * 7 + 3] ^= bits;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_the_token_embedding_is_another_model() {
    // T and A are what the model's hash covers.
    let f = fixtures();
    let model = copy_of(&f.model);
    flip_in_tensor(
        &model.join("model.safetensors"),
        "model.embed_tokens.weight",
        0x40,
    );
    let mut command = decoder_command(&model, ANY_PORT, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    let message = refusal("decoder-service", command);
    assert!(message.contains("hash"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_another_weight_does_not_stop_the_server() {
    // No checksum covers these in Hugging Face layout: logits may be anything.
    let f = fixtures();
    let model = copy_of(&f.model);
    flip_in_tensor(&model.join("model.safetensors"), "model.norm.weight", 0x20);
    let decoder = Service::decoder_embedded(&model, &f.table, &[]);
    let client = client::decoder(&decoder.address).await;
    for request in [greedy("The boats", 5), seeded("The boats", 5, 1)] {
        if let Err(status) = generate(&client, request).await {
            assert_eq!(status.code(), Code::Internal, "{status}");
        }
    }
    let info = client.clone().get_model_info(GetModelInfoRequest {}).await;
    assert!(info.is_ok(), "{info:?}");
    decoder.process.assert_no_panic();
}

#[test]
fn a_weight_that_is_no_number_is_refused_by_name() {
    let f = fixtures();
    let model = copy_of(&f.model);
    // 1.0 becomes infinite.
    flip_in_tensor(&model.join("model.safetensors"), "model.norm.weight", 0x40);
    let mut command = decoder_command(&model, ANY_PORT, &[]);
    command.arg("--table").arg(copy_of(&f.table));
    let message = refusal("decoder-service", command);
    assert!(message.contains("model.norm.weight"), "{message}");
}

#[test]
fn damaged_fgram_sets_are_refused_by_the_trainer() {
    let f = fixtures();
    for damage in Damage::ALL {
        let set = scratch("fgrams").join("fgrams.bin");
        fs::copy(&f.fgrams, &set).unwrap();
        damage.apply(&set);
        let mut command = trainer(&["fgrams"]);
        command.arg("--fgrams").arg(&set);
        let message = run("trainer-fgrams", command).failure();
        assert!(message.contains("fgrams.bin"), "{damage:?}: {message}");
    }
    for name in ["fgrams.bin", "fgram_model.safetensors"] {
        for damage in [Damage::Truncated, Damage::Emptied] {
            let model = copy_of(&f.model);
            damage.apply(&model.join(name));
            let out = scratch("table").join("table");
            let command = precompute_command(&model, &out, &[]);
            let message = run("trainer-precompute", command).failure();
            assert!(message.contains(name), "{name} {damage:?}: {message}");
            assert!(!out.join("table.json").exists());
        }
    }
}

/// The command under a limit on the size of any file, as a full disk would have it: writes beyond
/// fail with an error (EFBIG) and not with a signal.
fn with_file_limit(kib: u64, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    // dash and POSIX count blocks of 512 bytes; the signal is ignored so that `write` returns.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
    limited.args(["-c", &script, "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_full_disk_leaves_no_table() {
    let f = fixtures();
    // The first limit hits the keys, the second one the rows.
    let keys_kib = fs::metadata(f.table.join("keys.bin")).unwrap().len() / 1024;
    for kib in [keys_kib / 2, keys_kib + 16] {
        let out = scratch("full").join("table");
        let command = precompute_command(&f.model, &out, &[]);
        let limited = with_file_limit(kib, &command);
        let message = run("trainer-precompute", limited).failure();
        assert!(message.contains("table"), "{message}");
        assert!(!out.join("table.json").exists(), "{kib} KiB were enough");
        refusal("embed-service", embed_command(&out, ANY_PORT, &[]));

        // With room again, the same command completes the table.
        run("trainer-precompute", command).success();
        assert_eq!(manifest(&out)["table_id"], manifest(&f.table)["table_id"]);
        assert_eq!(
            manifest(&out)["rows_sha256"],
            manifest(&f.table)["rows_sha256"]
        );
    }
}
