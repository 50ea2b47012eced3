//! Table adapters: f-gram models trained apart over one base, served side by side by a decoder that
//! has the base alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use integration_tests::{
    binaries::binaries,
    client::{self, Completion, generate, greedy, seeded},
    cluster::{ANY_PORT, Service, decoder_command, http_get, http_post, refusal},
    eventually::eventually,
    fixtures::{evaluate, fixtures, manifest, text, trainer},
    folders::{run_dir, scratch},
    process::run,
};
use scone_proto::{
    decoder::v1::{DescribeFgramRequest, GenerateRequest, GetModelInfoRequest},
    embed::v1::GetTableInfoRequest,
};
use serde_json::{Value, json};
use tonic::Code;

/// Two adapters over one base, made once per test run.
struct Adapters {
    /// The model directory of the fixtures as somebody else has it: config, weights, tokenizer.
    base: PathBuf,
    one: Adapter,
    two: Adapter,
}

struct Adapter {
    /// What training left: a model directory of its own.
    model: PathBuf,
    /// Its table.
    table: PathBuf,
}

/// A base model of the files that have nothing to do with f-grams.
fn base_of(model: &Path, base: &Path) {
    fs::create_dir_all(base).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(model.join(name), base.join(name)).unwrap();
    }
}

/// Trains an adapter over `base` on texts and with f-grams of its own, and makes its table.
fn adapter(dir: &Path, base: &Path, (seed, steps): (u64, u32), max_n: u32) -> Adapter {
    let f = fixtures();
    fs::create_dir_all(dir).unwrap();
    let path = |name: &str| dir.join(name);
    let (corpus, fgrams, model, table) = (
        path("corpus.txt"),
        path("fgrams.bin"),
        path("adapter"),
        path("table"),
    );
    fs::write(&corpus, text::documents(seed, 60).join("\n\n")).unwrap();
    let mut command = trainer(&["mine", "--min-count", "3", "--max-fgrams", "1000"]);
    command.args(["--max-n", &max_n.to_string()]);
    command.arg("--input").arg(&corpus);
    command.arg("--tokenizer").arg(base.join("tokenizer.json"));
    command.arg("--out").arg(&fgrams);
    run("trainer-mine", command).success();
    let changes = [
        format!("base={}", base.display()),
        "model=null".to_owned(),
        "tokenizer=null".to_owned(),
        "trainable=fgram_model".to_owned(),
        format!("fgrams={}", fgrams.display()),
        format!("data.train=[{}]", corpus.display()),
        format!("training.seed={seed}"),
        format!("training.steps={steps}"),
        "training.eval_tokens=64".to_owned(),
        "optimizer.lr=2e-2".to_owned(),
    ];
    f.train(&model, &changes.each_ref().map(String::as_str));
    f.precompute(&model, &table, &["--store", "mapped"]);
    Adapter { model, table }
}

fn adapters() -> &'static Adapters {
    static ADAPTERS: LazyLock<Adapters> = LazyLock::new(|| {
        let dir = run_dir().join("adapters");
        let base = dir.join("base");
        base_of(&fixtures().model, &base);
        Adapters {
            one: adapter(&dir.join("one"), &base, (11, 20), 3),
            two: adapter(&dir.join("two"), &base, (12, 20), 4),
            base,
        }
    });
    &ADAPTERS
}

impl Adapters {
    /// `--table` of both, by name.
    fn tables(&self) -> [String; 2] {
        [("one", &self.one), ("two", &self.two)]
            .map(|(name, of)| format!("{name}={}", of.table.display()))
    }

    fn embed(&self) -> Service {
        embed(&self.tables())
    }
}

fn embed(tables: &[String]) -> Service {
    let mut command = Command::new(&binaries().embed_service);
    command.args(["serve", "--listen", ANY_PORT]);
    command.args(tables.iter().flat_map(|table| ["--table", table]));
    Service::try_start("embed-service", command).unwrap()
}

/// What is asked of every table: prompts that match, hardly match, and are long.
fn requests(table: &str) -> Vec<GenerateRequest> {
    let long = text::documents(5, 4).join(" ");
    let requests = vec![
        seeded("The ferryman is called Osk. He", 80, 7),
        seeded("On Monday the clockmaker", 80, 8),
        seeded(&long, 40, 9),
        seeded("xqzj vv", 40, 10),
        greedy("The harbour town", 40),
    ];
    let of_table = |request| GenerateRequest {
        table: table.to_owned(),
        ..request
    };
    requests.into_iter().map(of_table).collect()
}

/// All of them, one after the other.
async fn alone(service: &Service, table: &str) -> Vec<Completion> {
    let client = client::decoder(&service.address).await;
    let mut completions = Vec::new();
    for request in requests(table) {
        completions.push(generate(&client, request).await.unwrap());
    }
    completions
}

/// All requests of all tables at once, which come out as those of each did alone.
async fn assert_together(service: &Service, expected: &[(&str, &Vec<Completion>)]) {
    let client = client::decoder(&service.address).await;
    let started = expected.iter().flat_map(|(table, expected)| {
        let client = &client;
        requests(table)
            .into_iter()
            .zip(expected.iter())
            .map(move |(request, expected)| {
                let client = client.clone();
                let running =
                    tokio::spawn(async move { generate(&client, request).await.unwrap() });
                (*table, running, expected)
            })
    });
    for (table, running, expected) in started.collect::<Vec<_>>() {
        let got = running.await.unwrap();
        assert_eq!(got.outcome(), expected.outcome(), "{table:?}");
        assert_eq!(got.fallback_positions(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_trained_apart_are_served_together_over_the_base_alone() {
    let a = adapters();
    // What each gives on its own: its own model directory, its own table, one request at a time.
    let mut expected = Vec::new();
    for of in [&a.one, &a.two] {
        let decoder = Service::decoder_embedded(&of.model, &of.table, &[]);
        expected.push(alone(&decoder, "").await);
    }
    let command = decoder_command(&a.base, ANY_PORT, &[]);
    let plain = Service::try_start("decoder-service", command).unwrap();
    let plain = alone(&plain, "").await;
    let [one, two] = &expected[..] else {
        panic!("two adapters");
    };
    for (left, right) in [(one, two), (one, &plain), (two, &plain)] {
        for (left, right) in left.iter().zip(right).take(3) {
            assert_ne!(left.ids, right.ids, "rows make a difference");
        }
    }
    for (completions, longest) in [(one, 3), (two, 4)] {
        let lengths = completions.iter().flat_map(|of| &of.match_lengths);
        assert_eq!(lengths.max(), Some(&longest), "K is that of the table");
    }

    let all = [("one", one), ("two", two), ("none", &plain), ("", &plain)];
    let tier = a.embed();
    let flags = ["--max-batch", "16", "--max-step-tokens", "64"];
    let remote = Service::decoder_remote(&a.base, &tier.address, &flags);
    assert_together(&remote, &all).await;
    // Once more: what is computed of a text is shared, with the same table alone.
    assert_together(&remote, &all).await;
    let mut command = decoder_command(&a.base, ANY_PORT, &[]);
    let tables = a.tables();
    command.args(tables.iter().flat_map(|table| ["--table", table]));
    let embedded = Service::try_start("decoder-service", command).unwrap();
    assert_together(&embedded, &all).await;

    for decoder in [&remote, &embedded] {
        assert_told(decoder, one).await;
    }
}

/// What a decoder over the base says of itself and of its tables; `one` is what the first gives.
async fn assert_told(decoder: &Service, one: &[Completion]) {
    let a = adapters();
    let http = decoder.http.as_deref().unwrap();
    let listed = http_get(http, "/v1/models").await;
    let (_, body) = listed.split_once("\r\n\r\n").unwrap();
    let models: Value = serde_json::from_str(body).unwrap();
    let models = models["data"].as_array().unwrap();
    let told: Vec<Value> = models
        .iter()
        .map(|model| json!([model["id"], model["scone"]["max_n"]]))
        .collect();
    let expected = json!([
        ["base", null],
        ["base:one", 3],
        ["base:two", 4],
        ["base:none", null]
    ]);
    assert_eq!(Value::from(told), expected);
    let body = json!({
        "model": "base:one", "prompt": "The ferryman is called Osk. He", "max_tokens": 80, "seed": 7,
        "temperature": 1, "top_k": 50, "top_p": 0.95, "ignore_eos": true, "return_token_ids": true,
    });
    let answer = http_post(http, "/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["token_ids"], json!(one[0].ids));

    let mut client = client::decoder(&decoder.address).await;
    let info = client.get_model_info(GetModelInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert_eq!(
        info.base_hash,
        manifest(&a.one.table)["base_hash"].as_str().unwrap()
    );
    assert_eq!((info.model_hash.as_str(), info.max_n), ("", 0));
    for (table, longest) in [("one", 3), ("two", 4), ("none", 8)] {
        for length in [longest, longest + 1] {
            let request = DescribeFgramRequest {
                token_ids: vec![7; length],
                table: table.to_owned(),
            };
            let described = client.describe_fgram(request).await;
            let code = described.err().map(|status| status.code());
            let refused = (length > longest).then_some(Code::InvalidArgument);
            assert_eq!(code, refused, "{table} {length}");
        }
    }
}

#[test]
fn the_terminal_gives_the_same_tokens_over_the_base_as_over_the_adapter() {
    let a = adapters();
    let said = |model: &Path, table: &Path| {
        let mut command = Command::new(&binaries().decoder_service);
        command.args(["generate", "--json", "--max-tokens", "60", "--ignore-eos"]);
        command.args([
            "--temperature",
            "1",
            "--seed",
            "7",
            "--prompt",
            "The old rope",
        ]);
        command.arg("--model").arg(model).arg("--table").arg(table);
        let stdout = run("generate", command).success();
        let line: Value = serde_json::from_str(stdout.trim()).unwrap();
        line["token_ids"].clone()
    };
    let alone = [&a.one, &a.two].map(|of| said(&of.model, &of.table));
    assert_ne!(alone[0], alone[1], "rows make a difference");
    for (of, alone) in [&a.one, &a.two].into_iter().zip(&alone) {
        assert_eq!(alone.as_array().unwrap().len(), 60);
        assert_eq!(&said(&a.base, &of.table), alone);
    }
    // Over the other adapter's directory as well: its weights are the base's.
    assert_eq!(said(&a.two.model, &a.one.table), alone[0]);
}

#[test]
fn a_table_is_evaluated_over_the_base_as_over_its_adapter() {
    let a = adapters();
    let input = scratch("evaluated").join("text.txt");
    fs::write(&input, text::documents(14, 2).join("\n\n")).unwrap();
    let nats = |model: &Path| {
        let table = a.one.table.to_str().unwrap();
        let report = evaluate(model, &input, &["--table", table]);
        report["nats_per_token"].as_f64().unwrap()
    };
    assert_eq!(nats(&a.base).to_bits(), nats(&a.one.model).to_bits());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_the_same_in_all_that_is_said_of_a_table() {
    let (a, f) = (adapters(), fixtures());
    let base_hash = |table: &Path| manifest(table)["base_hash"].clone();
    let expected = base_hash(&a.one.table);
    assert_eq!(expected.as_str().unwrap().len(), 64);
    // The fixtures' model is the base with an f-gram model; the other one has weights of its own.
    assert_eq!(base_hash(&a.two.table), expected);
    assert_eq!(base_hash(&f.table), expected);
    assert_eq!(base_hash(&f.shards[1]), expected);
    assert_ne!(base_hash(&f.other_table), expected);
    let mut command = Command::new(&binaries().embed_service);
    command
        .args(["inspect", "--json", "--table"])
        .arg(&a.one.table);
    let facts: Value = serde_json::from_str(&run("inspect", command).success()).unwrap();
    assert_eq!(facts["base_hash"], expected);
    let tier = a.embed();
    let request = GetTableInfoRequest {
        table: "two".to_owned(),
        ..GetTableInfoRequest::default()
    };
    let info = client::embed(&tier.address)
        .await
        .get_table_info(request)
        .await;
    assert_eq!(expected, info.unwrap().into_inner().base_hash.as_str());
}

/// The message must name both hashes of the model and of the table.
fn assert_says_why(message: &str, base: &Path, table: &Path) {
    let (of_base, of_table) = (manifest(base), manifest(table));
    for hash in [
        &of_base["base_hash"],
        &of_table["base_hash"],
        &of_table["model_hash"],
    ] {
        let hash = hash.as_str().unwrap();
        assert!(message.contains(hash), "want {hash}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_base_is_refused_with_the_reason() {
    let (a, f) = (adapters(), fixtures());
    let dir = scratch("other-base");
    let other_base = dir.join("base");
    base_of(&f.other_model, &other_base);
    let other = adapter(&dir, &other_base, (13, 1), 3);
    let mut command = decoder_command(&a.base, ANY_PORT, &[]);
    command.arg("--table").arg(&other.table);
    let message = refusal("decoder-service", command);
    assert_says_why(&message, &a.one.table, &other.table);

    let alone = embed(&[format!("other={}", other.table.display())]);
    let mut command = decoder_command(&a.base, ANY_PORT, &[]);
    command.args(["--embed", &alone.address]);
    let message = refusal("decoder-service", command);
    assert_says_why(&message, &a.one.table, &other.table);

    // Beside others it is left out, and they are served.
    let mut tables = a.tables().to_vec();
    tables.push(format!("other={}", other.table.display()));
    let tier = embed(&tables);
    let decoder = Service::decoder_remote(&a.base, &tier.address, &[]);
    let client = client::decoder(&decoder.address).await;
    let of_table = |table: &str| GenerateRequest {
        table: table.to_owned(),
        ..greedy("The ferryman", 5)
    };
    let refused = generate(&client, of_table("other")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    eventually("it says why", async || {
        let said = decoder.process.stderr();
        said.contains("table refused")
            .then(|| assert_says_why(&said, &a.one.table, &other.table))
    })
    .await;
    for table in ["one", "two", "none", ""] {
        generate(&client, of_table(table)).await.unwrap();
    }
}
