//! Several tables over one model, by processes: each as alone, and one that comes, is switched and
//! goes while generations run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use integration_tests::{
    binaries::binaries,
    client::{self, Completion, begin, finish, generate, greedy},
    cluster::{ANY_PORT, Service},
    eventually::eventually,
    fixtures::{fixtures, manifest},
    folders::scratch,
};
use scone_proto::decoder::v1::{GenerateRequest, GetModelInfoRequest};
use tonic::Code;

const PROMPT: &str = "The ferryman is called Osk. He";

fn table_of(folder: &Path, name: &str, dtype: &str) {
    let f = fixtures();
    f.precompute(
        &f.model,
        &folder.join(name),
        &["--dtype", dtype, "--store", "mapped"],
    );
}

fn embed(folder: &Path) -> Service {
    let mut command = Command::new(&binaries().embed_service);
    command.arg("serve").arg("--tables").arg(folder);
    command.args(["--listen", ANY_PORT]);
    Service::try_start("embed-service", command).unwrap()
}

/// The same tables in the decoder's own process.
fn embedded(folder: &Path, names: &[&str]) -> Service {
    let named = names
        .iter()
        .map(|name| format!("{name}={}", folder.join(name).display()));
    let tables: Vec<String> = named.collect();
    let mut command = integration_tests::cluster::decoder_command(&fixtures().model, ANY_PORT, &[]);
    command.args(["--table", &tables.join(",")]);
    Service::try_start("decoder-service", command).unwrap()
}

fn of_table(table: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        table: table.to_owned(),
        ..greedy(PROMPT, tokens)
    }
}

fn folder() -> PathBuf {
    let folder = scratch("tables");
    for (name, dtype) in [("default", "f16"), ("int8", "int8"), ("int4", "int4")] {
        table_of(&folder, name, dtype);
    }
    folder
}

const ALL: [&str; 4] = ["", "int8", "int4", "none"];

#[tokio::test(flavor = "multi_thread")]
async fn tables_in_one_batch_give_what_each_gives_alone_embedded_and_remote() {
    let folder = folder();
    let here = embedded(&folder, &["default", "int8", "int4"]);
    let here = client::decoder(&here.address).await;
    let mut alone: Vec<Completion> = Vec::new();
    for table in ALL {
        alone.push(generate(&here, of_table(table, 60)).await.unwrap());
    }
    let tier = embed(&folder);
    let remote = Service::decoder_remote(&fixtures().model, &tier.address, &[]);
    let remote = client::decoder(&remote.address).await;
    let together = ALL.map(|table| {
        let remote = remote.clone();
        tokio::spawn(async move { generate(&remote, of_table(table, 60)).await.unwrap() })
    });
    for (running, alone) in together.into_iter().zip(&alone) {
        let together = running.await.unwrap();
        assert_eq!(together.outcome(), alone.outcome());
        assert_eq!(together.fallback_positions(), 0);
    }
    assert_ne!(
        alone[0].outcome(),
        alone[3].outcome(),
        "rows make a difference"
    );
    for decoder in [&here, &remote] {
        let refused = generate(decoder, of_table("news", 5)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_comes_is_switched_and_goes_while_generations_run() {
    let folder = folder();
    table_of(&folder, ".news", "int8");
    table_of(&folder, ".later", "int4");
    let tiers = [embed(&folder), embed(&folder)];
    let addresses = format!("{},{}", tiers[0].address, tiers[1].address);
    let flags = ["--embed-poll-interval", "20ms"];
    let decoder = Service::decoder_remote(&fixtures().model, &addresses, &flags);
    let client = client::decoder(&decoder.address).await;
    let enough = Arc::new(AtomicBool::new(false));
    let loads = ALL.map(|table| {
        let (client, enough) = (client.clone(), enough.clone());
        tokio::spawn(async move {
            let mut done = 0;
            while !enough.load(Ordering::Relaxed) {
                generate(&client, of_table(table, 40)).await.unwrap();
                done += 1;
            }
            done
        })
    });
    let look_again = || tiers.iter().for_each(|tier| tier.process.hang_up());
    let served = async |what: &str| {
        eventually(what, async || {
            generate(&client, of_table("news", 30)).await.ok()
        })
        .await
    };
    fs::rename(folder.join(".news"), folder.join("news")).unwrap();
    look_again();
    served("it came").await;
    // Another version, while a generation of the first runs.
    let running = begin(&client, of_table("news", 400)).await;
    fs::rename(folder.join("news"), folder.join(".before")).unwrap();
    fs::rename(folder.join(".later"), folder.join("news")).unwrap();
    let next = manifest(&folder.join("news"));
    look_again();
    eventually("it is switched", async || {
        generate(&client, of_table("news", 5)).await.unwrap();
        let info = client.clone().get_model_info(GetModelInfoRequest {}).await;
        let tables = info.unwrap().into_inner().tables;
        let news = tables.iter().find(|table| table.name == "news").unwrap();
        (news.table_id == next["table_id"]).then_some(())
    })
    .await;
    finish(running.0, running.1).await.unwrap();
    // It goes, and the generation that runs on it ends.
    let running = begin(&client, of_table("news", 400)).await;
    fs::remove_dir_all(folder.join("news")).unwrap();
    look_again();
    eventually("it is gone", async || {
        let refused = generate(&client, of_table("news", 5)).await.err()?;
        assert_eq!(refused.code(), Code::NotFound);
        Some(())
    })
    .await;
    finish(running.0, running.1).await.unwrap();
    enough.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.await.unwrap() > 0);
    }
}
