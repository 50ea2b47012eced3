//! A new table version is published beside the old one, and services change over while they serve.

use std::{
    fs,
    path::{Path, PathBuf},
};

use integration_tests::{
    client::{self, Completion, begin, finish, generate, seeded},
    cluster::{ANY_PORT, Service, embed_command},
    eventually::eventually,
    fixtures::{fixtures, manifest},
    folders::{copy_of, scratch},
    rows::{Stream, document, info, request},
};
use scone_proto::{
    decoder::v1::GenerateRequest,
    embed::v1::{LookupRequest, lookup_response::Result as Outcome},
};
use tonic::Code;

const METRICS: &[&str] = &["--metrics-listen", ANY_PORT];

/// A folder with a link to the version in use, as the publishing job keeps it.
struct Published {
    link: PathBuf,
}

impl Published {
    fn new(table: &Path) -> Self {
        let link = scratch("published").join("current");
        let published = Self { link };
        published.publish(table);
        published
    }

    /// Points the link to a table, by rename.
    fn publish(&self, table: &Path) {
        let next = self.link.with_extension("next");
        std::os::unix::fs::symlink(table, &next).unwrap();
        fs::rename(&next, &self.link).unwrap();
    }

    fn serve(&self, flags: &[&str]) -> Service {
        let flags = [flags, METRICS].concat();
        let command = embed_command(&self.link, ANY_PORT, &flags);
        Service::try_start("embed-service", command).unwrap()
    }
}

fn table_id(table: &Path) -> String {
    let facts = manifest(table);
    facts["table_id"].as_str().unwrap().to_owned()
}

/// The same model's table with int8 rows: another version that the model accepts.
fn second_version() -> PathBuf {
    let f = fixtures();
    let table = scratch("int8").join("table");
    f.precompute(&f.model, &table, &["--dtype", "int8"]);
    table
}

fn long() -> GenerateRequest {
    seeded("The ferryman is called Osk. He", 1200, 11)
}

async fn with_table(table: &Path) -> Completion {
    let decoder = Service::decoder_embedded(&fixtures().model, table, &[]);
    let client = client::decoder(&decoder.address).await;
    generate(&client, long()).await.unwrap()
}

async fn served(embed: &Service) -> Vec<String> {
    let client = client::embed(&embed.address).await;
    info(&client).await.served_table_ids
}

async fn switched(embed: &Service, table: &Path) {
    let id = table_id(table);
    eventually("switch of the table", async || {
        (served(embed).await.first() == Some(&id)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_drops_no_stream_and_mixes_no_generation() {
    let f = fixtures();
    let (old, new) = (copy_of(&f.table), second_version());
    let (on_old, on_new) = (with_table(&old).await, with_table(&new).await);
    // Rounded otherwise, so sampled otherwise: the comparison below can fail.
    assert_ne!(on_old.ids, on_new.ids);

    let published = [Published::new(&old), Published::new(&copy_of(&old))];
    let embeds = published.each_ref().map(|p| p.serve(&[]));
    let both = embeds.each_ref().map(|s| s.address.clone()).join(",");
    let decoder = Service::decoder_remote(&f.model, &both, &[]);
    let client = client::decoder(&decoder.address).await;
    let raw = client::embed(&embeds[0].address).await;
    let mut stream = Stream::open(&raw).await;

    let (head, rest) = begin(&client, long()).await;
    for (published, embed) in published.iter().zip(&embeds) {
        published.publish(&copy_of(&new));
        embed.process.hang_up();
        switched(embed, &new).await;
    }
    let finished = finish(head, rest).await.unwrap();
    assert_eq!(finished.outcome(), on_old.outcome());

    eventually("generation on the new table", async || {
        let completion = generate(&client, long()).await.unwrap();
        let outcome = completion.outcome();
        // One table or the other, never some of each.
        assert!(outcome == on_old.outcome() || outcome == on_new.outcome());
        (outcome == on_new.outcome()).then_some(())
    })
    .await;

    // The stream from before the switch: either version by name, the new one without.
    let ids = document();
    for (asked, answered) in [(Some(&old), &old), (Some(&new), &new), (None, &new)] {
        let request = LookupRequest {
            table_id: asked.map(|table| table_id(table)),
            ..request(1, &ids)
        };
        match stream.ask(request).await {
            Outcome::Rows(rows) => assert_eq!(rows.table_id, table_id(answered)),
            Outcome::Error(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_version_is_closed_when_its_time_is_over() {
    let old = copy_of(&fixtures().table);
    let published = Published::new(&old);
    let embed = published.serve(&["--retain-table", "100ms"]);
    let new = second_version();
    published.publish(&new);
    embed.process.hang_up();
    eventually("end of the old version", async || {
        (served(&embed).await == [table_id(&new)]).then_some(())
    })
    .await;
    let mut client = client::embed(&embed.address).await;
    let named = LookupRequest {
        table_id: Some(table_id(&old)),
        ..request(1, &document())
    };
    let status = client.lookup_once(named).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    // sled's lock is free again.
    Service::embed_at(ANY_PORT, old, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_table_is_refused_and_the_old_one_goes_on() {
    let f = fixtures();
    let old = copy_of(&f.table);
    let published = Published::new(&old);
    let embed = published.serve(&[]);

    let half_copied = copy_of(&f.table);
    fs::remove_file(half_copied.join("table.json")).unwrap();
    let truncated = copy_of(&f.table);
    let keys = fs::read(truncated.join("keys.bin")).unwrap();
    fs::write(truncated.join("keys.bin"), &keys[..keys.len() / 2]).unwrap();
    let other_shard = copy_of(&f.shards[0]);
    let nothing = scratch("nothing").join("there");
    for (number, broken) in [half_copied, truncated, other_shard, nothing]
        .iter()
        .enumerate()
    {
        published.publish(broken);
        embed.process.hang_up();
        let refused = format!("{}.0", number + 1).parse().ok();
        eventually("refusal of the new table", async || {
            let metric = "scone_embed_table_switches_total{outcome=\"refused\"}";
            (embed.metric(metric).await == refused).then_some(())
        })
        .await;
        assert_eq!(served(&embed).await, [table_id(&old)]);
        let client = client::embed(&embed.address).await;
        integration_tests::rows::lookup(&client, request(1, &document())).await;
    }
}
