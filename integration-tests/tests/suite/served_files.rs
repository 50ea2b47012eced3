//! Files of a table that somebody changes while it is served: never a wrong row, never a hidden f-gram,
//! never the end of the process.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use integration_tests::{
    client::{self, generate, greedy},
    cluster::{ANY_PORT, Service, embed_command},
    eventually::eventually,
    fixtures::{fixtures, manifest},
    folders::{copy_of, scratch},
    rows::{document, request},
};
use scone_proto::embed::v1::{LookupRequest, LookupRows, lookup_response::Result as Outcome};
use tonic::{Code, Status};

const METRICS: &[&str] = &["--metrics-listen", ANY_PORT];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// All but the header's page is gone.
    CutShort,
    /// Other bytes stand in the place of all behind the header.
    Overwritten,
}

impl Change {
    const ALL: [Change; 2] = [Change::CutShort, Change::Overwritten];

    fn apply(self, path: &Path) {
        let file = File::options().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        match self {
            Change::CutShort => file.set_len(length.min(4096)).unwrap(),
            Change::Overwritten => {
                // From the byte on that is behind the header in each of the files.
                let at = if path.ends_with("rows.bin") {
                    4096
                } else {
                    128
                };
                let noise: Vec<u8> = (at..length)
                    .map(|i| (i.wrapping_mul(131) >> 3) as u8)
                    .collect();
                file.write_all_at(&noise, at).unwrap();
            }
        }
    }
}

/// A table in the mapped store.
fn mapped(dtype: &str) -> PathBuf {
    let table = scratch("mapped").join("table");
    let flags = ["--store", "mapped", "--dtype", dtype];
    fixtures().precompute(&fixtures().model, &table, &flags);
    table
}

fn table_id(table: &Path) -> String {
    manifest(table)["table_id"].as_str().unwrap().to_owned()
}

fn serve(table: &Path) -> Service {
    Service::try_start("embed-service", embed_command(table, ANY_PORT, METRICS)).unwrap()
}

/// One look-up of a whole document, in the table named or in the current one.
async fn look_up(embed: &Service, table: Option<&Path>) -> Result<LookupRows, Status> {
    let mut client = client::embed(&embed.address).await;
    let request = LookupRequest {
        table_id: table.map(table_id),
        ..request(1, &document())
    };
    let answer = client.lookup_once(request).await?.into_inner();
    match answer.result {
        Some(Outcome::Rows(rows)) => Ok(rows),
        other => panic!("{other:?}"),
    }
}

async fn data_loss(embed: &Service) {
    let status = look_up(embed, None).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    // What is damaged is the operator's to know.
    assert!(!status.message().contains('/'), "{status}");
}

async fn switches(embed: &Service, outcome: &str) -> f64 {
    let name = format!("scone_embed_table_switches_total{{outcome=\"{outcome}\"}}");
    embed.metric(&name).await.unwrap_or(0.0)
}

/// Points the link to a table, by rename.
fn publish(link: &Path, table: &Path) {
    let next = link.with_extension("next");
    std::os::unix::fs::symlink(table, &next).unwrap();
    fs::rename(&next, link).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_table_changed_while_it_is_served_is_refused_and_healed_by_a_reload() {
    let (first, second) = (mapped("f16"), mapped("int8"));
    for name in ["rows.bin", "keys.bin"] {
        for change in Change::ALL {
            let (old, new) = (copy_of(&first), copy_of(&second));
            let link = scratch("published").join("current");
            publish(&link, &old);
            let mut embed = serve(&link);
            let of_old = look_up(&embed, None).await.unwrap();
            publish(&link, &new);
            embed.process.hang_up();
            eventually("the second table", async || {
                (switches(&embed, "switched").await == 1.0).then_some(())
            })
            .await;
            let of_new = look_up(&embed, None).await.unwrap();

            change.apply(&new.join(name));
            data_loss(&embed).await;
            // The table beside it is served as before.
            let beside = look_up(&embed, Some(&old)).await.unwrap();
            assert_eq!(beside, of_old, "{name} {change:?}");

            // Put right, in the same directory, by renaming.
            let sound = copy_of(&second).join(name);
            fs::rename(sound, new.join(name)).unwrap();
            embed.process.hang_up();
            eventually("the second table again", async || {
                (switches(&embed, "switched").await == 2.0).then_some(())
            })
            .await;
            assert_eq!(look_up(&embed, None).await.unwrap(), of_new);
            assert_eq!(embed.process.exit_status(), None, "{name} {change:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_changed_while_it_is_served_changes_no_answer() {
    let f = fixtures();
    for table in [copy_of(&f.table), mapped("f16")] {
        for change in Change::ALL {
            let table = copy_of(&table);
            let embed = serve(&table);
            let before = look_up(&embed, None).await.unwrap();
            assert!(before.match_lengths.iter().any(|&length| length > 2));
            change.apply(&table.join("index.bin"));
            assert_eq!(look_up(&embed, None).await.unwrap(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_sled_table_changed_while_it_is_served_hide_nothing() {
    for change in Change::ALL {
        let table = copy_of(&fixtures().table);
        let mut embed = serve(&table);
        look_up(&embed, None).await.unwrap();
        change.apply(&table.join("keys.bin"));
        data_loss(&embed).await;
        assert_eq!(embed.process.exit_status(), None, "{change:?}");
    }
}

/// One of two replicas has a damaged table: its look-ups are answered by the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_damaged_on_one_of_two_replicas_fails_no_generation() {
    let f = fixtures();
    let table = mapped("f32");
    let tables = [copy_of(&table), copy_of(&table)];
    let embeds = tables.each_ref().map(|table| serve(table));
    let both = embeds.each_ref().map(|s| s.address.clone()).join(",");
    let flags = ["--metrics-listen", ANY_PORT];
    let decoder = Service::decoder_remote(&f.model, &both, &flags);
    let client = client::decoder(&decoder.address).await;
    let ask = || greedy("The harbour town wakes before", 60);
    let expected = generate(&client, ask()).await.unwrap();

    for name in ["rows.bin", "keys.bin"] {
        Change::CutShort.apply(&tables[0].join(name));
        for _ in 0..3 {
            let actual = generate(&client, ask()).await.unwrap();
            assert_eq!(expected.outcome(), actual.outcome(), "{name}");
            assert_eq!(actual.fallback_positions(), 0);
        }
    }
    let lost = "scone_embed_requests_total{outcome=\"data_loss\"}";
    eventually("look-ups refused by the damaged replica", async || {
        generate(&client, ask()).await.unwrap();
        embeds[0].metric(lost).await.filter(|lost| *lost > 0.0)
    })
    .await;
    assert_eq!(embeds[1].metric(lost).await.unwrap_or(0.0), 0.0);
}
