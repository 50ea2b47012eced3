//! The same request gives the same tokens, wherever the rows come from and whatever else runs.

use integration_tests::{
    binaries::binaries,
    client::{self, Completion, begin, finish, generate, greedy, seeded},
    cluster::Service,
    eventually::eventually,
    fixtures::{fixtures, text},
    folders::{copy_of, scratch},
    process::run,
};
use scone_proto::decoder::v1::{GenerateRequest, decoder_service_client::DecoderServiceClient};
use tonic::transport::Channel;

/// Greedy and sampled requests with prompts that match, hardly match, and are long.
fn requests() -> Vec<GenerateRequest> {
    let long = text::documents(5, 6).join(" ");
    vec![
        greedy("The harbour town", 40),
        greedy("On Monday the ferryman", 40),
        greedy("", 20),
        greedy("xqzj vv", 20),
        greedy(&long, 10),
        seeded("The clockmaker said that", 60, 7),
        seeded("The clockmaker said that", 60, 8),
        seeded("There is a café at the end of the pier where", 40, 1),
        seeded(
            "Rain is expected in the north and in the west. The wind turns",
            40,
            2,
        ),
    ]
}

async fn one_by_one(client: &DecoderServiceClient<Channel>) -> Vec<Completion> {
    let mut completions = Vec::new();
    for request in requests() {
        completions.push(generate(client, request).await.unwrap());
    }
    completions
}

fn assert_same(left: &[Completion], right: &[Completion]) {
    assert_eq!(left.len(), right.len());
    for ((left, right), request) in left.iter().zip(right).zip(requests()) {
        assert_eq!(left.outcome(), right.outcome(), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_and_remote_and_shards_give_the_same_tokens() {
    let f = fixtures();
    let embedded = Service::decoder(&[]);
    let expected = one_by_one(&client::decoder(&embedded.address).await).await;
    // The comparison is worth something only if rows were used and requests differ.
    for completion in &expected[..2] {
        assert!(completion.match_lengths.iter().any(|&n| n >= 3));
    }
    assert_ne!(expected[5].ids, expected[6].ids, "two seeds");

    let embed = Service::embed(&f.table, &[]);
    let remote = Service::decoder_remote(&f.model, &embed.address, &[]);
    let actual = one_by_one(&client::decoder(&remote.address).await).await;
    assert_same(&expected, &actual);

    // No hot set, and limits so low that a prompt takes many messages.
    let flags = ["--hot-bytes=0", "--max-positions=50", "--max-spans=7"];
    let shards = f
        .shards
        .each_ref()
        .map(|table| Service::embed(table, &flags));
    let both = shards.each_ref().map(|s| s.address.clone()).join(",");
    let sharded = Service::decoder_remote(&f.model, &both, &[]);
    let actual = one_by_one(&client::decoder(&sharded.address).await).await;
    assert_same(&expected, &actual);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_get_the_tokens_they_get_alone() {
    let decoder = Service::decoder(&["--max-batch", "4", "--max-step-tokens", "64"]);
    let client = client::decoder(&decoder.address).await;
    let alone = Service::decoder(&[]);
    let expected = one_by_one(&client::decoder(&alone.address).await).await;

    let tasks: Vec<_> = requests()
        .into_iter()
        .map(|request| {
            let client = client.clone();
            tokio::spawn(async move { generate(&client, request).await.unwrap() })
        })
        .collect();
    let mut actual = Vec::new();
    for task in tasks {
        actual.push(task.await.unwrap());
    }
    assert_same(&expected, &actual);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_replicas_killed_does_not_change_the_tokens() {
    let f = fixtures();
    let request = || seeded("The ferryman is called Osk. He", 1200, 11);
    let embedded = Service::decoder(&[]);
    let client = client::decoder(&embedded.address).await;
    let expected = generate(&client, request()).await.unwrap();

    let mut first = Service::embed(&f.table, &[]);
    let mut second = Service::embed(&f.table, &[]);
    let replicas = format!("{},{}", first.address, second.address);
    let remote = Service::decoder_remote(&f.model, &replicas, &[]);
    let client = client::decoder(&remote.address).await;

    let (head, rest) = begin(&client, request()).await;
    first.process.kill();
    let actual = finish(head, rest).await.unwrap();
    assert_eq!(expected.outcome(), actual.outcome());
    assert_eq!(actual.fallback_positions(), 0);

    // The other way round: the killed one comes back, and then the second one goes.
    let table = first.table.clone().unwrap();
    let _first = Service::embed_at(&first.address, table, &[]);
    let actual = generate(&client, request()).await.unwrap();
    assert_eq!(expected.outcome(), actual.outcome());
    second.process.kill();
    let actual = eventually("reconnected replica", async || {
        generate(&client, request()).await.ok()
    })
    .await;
    assert_eq!(expected.outcome(), actual.outcome());
}

#[test]
fn generate_in_the_terminal_gives_the_same_tokens() {
    let f = fixtures();
    let request = || seeded("The clockmaker said that", 60, 7);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let expected = runtime.block_on(async {
        let served = Service::decoder(&[]);
        let client = client::decoder(&served.address).await;
        generate(&client, request()).await.unwrap()
    });

    let terminal = |flags: &[&str]| {
        let mut command = std::process::Command::new(&binaries().decoder_service);
        command.args(["generate", "--prompt", "The clockmaker said that"]);
        command.args(["--max-tokens", "60", "--seed", "7", "--temperature", "1"]);
        command.args(["--top-k", "50", "--top-p", "0.95", "--ignore-eos"]);
        command.arg("--model").arg(&f.model).args(flags);
        run("generate", command)
    };
    let table = copy_of(&f.table);
    let stdout = terminal(&["--json", "--table", table.to_str().unwrap()]).success();
    let line: serde_json::Value = serde_json::from_str(stdout.trim()).unwrap();
    assert_eq!(line["token_ids"], serde_json::json!(expected.ids));
    assert_eq!(line["text"], expected.text().as_str());
    assert_eq!(line["embed_mode"], "embedded");

    let embed = Service::embed(&f.table, &[]);
    let plain = terminal(&["--embed", &embed.address]);
    assert!(
        plain.stderr.contains("[60 tokens"),
        "no summary: {}",
        plain.stderr
    );
    assert_eq!(
        plain.success().trim_end_matches('\n'),
        expected.text().trim_end_matches('\n')
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gpt2_family_gives_the_same_tokens_embedded_and_remote() {
    let f = fixtures();
    let dir = scratch("gpt2");
    let (model, table) = (dir.join("model"), dir.join("table"));
    let shape = ["model.family=gpt2", "model.num_key_value_heads=null"];
    f.train(&model, &[&shape[..], &["training.steps=5"]].concat());
    f.precompute(&model, &table, &[]);

    let embedded = Service::decoder_embedded(&model, &table, &[]);
    let expected = one_by_one(&client::decoder(&embedded.address).await).await;
    let embed = Service::embed(&table, &[]);
    let remote = Service::decoder_remote(&model, &embed.address, &["--max-step-tokens", "64"]);
    let actual = one_by_one(&client::decoder(&remote.address).await).await;
    assert_same(&expected, &actual);
}
