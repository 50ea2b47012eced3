//! Several tables by name: each answers for itself, and tables come and go while requests go on.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use scone_fgram::{StoreKind, table::NamedDir};
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, lookup_response,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::support::{
    FIRST, Oracle, TestServer, Version, document, eventually, fgram_set, request,
};

const SECOND: Version = Version(0xcd);
const THIRD: Version = Version(0xef);

fn build(version: Version, dir: &Path) {
    version.build_with(dir, &fgram_set(), |options| {
        options.store = StoreKind::Mapped
    });
}

async fn info(server: &TestServer, table: &str) -> Result<GetTableInfoResponse, Status> {
    let request = GetTableInfoRequest {
        table_id: None,
        table: table.to_owned(),
    };
    let answer = server.client().await.get_table_info(request).await;
    answer.map(tonic::Response::into_inner)
}

fn of_table(table: &str, ids: &[u32]) -> LookupRequest {
    LookupRequest {
        table: table.to_owned(),
        ..request(1, &[(ids, 0)])
    }
}

async fn ask(server: &TestServer, request: LookupRequest) -> Result<Version, Status> {
    let ids = request.token_ids.as_chunks::<4>().0;
    let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
    let answer = server.client().await.lookup_once(request).await?;
    let Some(lookup_response::Result::Rows(rows)) = answer.into_inner().result else {
        panic!("no rows");
    };
    let all = [FIRST, SECOND, THIRD];
    let version = all
        .into_iter()
        .find(|version| version.table_id() == rows.table_id);
    let version = version.unwrap();
    Oracle::of(version).check(&[(&ids, 0)], &rows);
    Ok(version)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_table_answers_for_itself_and_has_its_part_of_the_memory() {
    let dir = TempDir::new().unwrap();
    let news = dir.path().join("news");
    SECOND.build(&news);
    let server = TestServer::start_with(|config| {
        let name = "news".parse().unwrap();
        config.tables.push(NamedDir { name, dir: news });
        config.table_options.hot_bytes = 8192;
    })
    .await;
    let ids = document(3, 100);
    for (table, version) in [("", FIRST), ("default", FIRST), ("news", SECOND)] {
        assert_eq!(ask(&server, of_table(table, &ids)).await.unwrap(), version);
        let info = info(&server, table).await.unwrap();
        assert_eq!(info.table_id, version.table_id());
        assert_eq!(info.served_tables, ["", "news"]);
    }
    for unknown in ["other", "none", "a b", &"x".repeat(500)] {
        let refused = ask(&server, of_table(unknown, &ids)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let shown: String = unknown.chars().take(64).collect();
        assert!(refused.message().contains(&shown), "{refused}");
        assert!(refused.message().contains("default, news"), "{refused}");
        assert_eq!(
            info(&server, unknown).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    let mut foreign = of_table("news", &ids);
    foreign.table_id = Some(FIRST.table_id());
    let refused = ask(&server, foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for table in ["default", "news"] {
        let metric = |name: &str| format!("scone_embed_{name}{{table=\"{table}\"}}");
        let bytes = server.metric(&metric("hot_set_bytes")).await.unwrap();
        assert!(bytes > 0.0 && bytes <= 4096.0, "{bytes}");
        assert_eq!(server.metric(&metric("table_rows")).await, Some(400.0));
    }
}

/// Moves a table into place at once, or out of it.
fn rename(folder: &Path, from: &str, to: &str) {
    fs::rename(folder.join(from), folder.join(to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_switch_and_go_under_load_and_no_request_fails() {
    let folder = TempDir::new().unwrap();
    let folder_path = folder.path().to_owned();
    build(FIRST, &folder_path.join("default"));
    build(SECOND, &folder_path.join("news"));
    let server = TestServer::start_with(|config| {
        config.tables = Vec::new();
        config.folder = Some(folder_path.clone());
        config.retain_table = Duration::from_secs(3600);
    })
    .await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut loads = Vec::new();
    for (seed, table) in [(0, ""), (1, "news"), (2, "")] {
        // As a generation: it names the version it began with.
        let table_id = info(&server, table).await.unwrap().table_id;
        let mut stream = server.stream().await;
        let enough = Arc::clone(&enough);
        loads.push(tokio::spawn(async move {
            let ids = document(seed, 200);
            let mut asked = 0;
            while !enough.load(Ordering::Relaxed) {
                let mut request = of_table(table, &ids);
                request.table_id = Some(table_id.clone());
                assert_eq!(stream.rows(request).await.table_id, table_id);
                asked += 1;
            }
            asked
        }));
    }
    let ids = document(9, 100);
    // One comes.
    build(THIRD, &folder_path.join(".late"));
    rename(&folder_path, ".late", "late");
    server.reload.notify_one();
    eventually("it came", async || {
        ask(&server, of_table("late", &ids)).await.ok()
    })
    .await;
    // One is switched.
    build(THIRD, &folder_path.join(".next"));
    rename(&folder_path, "default", ".before");
    rename(&folder_path, ".next", "default");
    server.reload.notify_one();
    eventually("it is another", async || {
        let version = ask(&server, of_table("", &ids)).await.unwrap();
        (version == THIRD).then_some(())
    })
    .await;
    // One goes: those who know its version end on it, and nobody begins.
    rename(&folder_path, "news", ".news");
    server.reload.notify_one();
    eventually("it is gone", async || {
        let refused = ask(&server, of_table("news", &ids)).await.err()?;
        assert_eq!(refused.code(), Code::NotFound);
        Some(())
    })
    .await;
    let gone = info(&server, "news").await.unwrap();
    assert!(gone.retiring);
    // It may come back.
    rename(&folder_path, ".news", "news");
    server.reload.notify_one();
    eventually("it is back", async || {
        ask(&server, of_table("news", &ids)).await.ok()
    })
    .await;
    enough.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_went_is_closed_when_its_time_is_up_and_a_server_may_have_none() {
    let folder = TempDir::new().unwrap();
    let folder_path = folder.path().to_owned();
    fs::create_dir(folder_path.join("half")).unwrap();
    build(SECOND, &folder_path.join("no name"));
    let server = TestServer::start_with(|config| {
        config.tables = Vec::new();
        config.folder = Some(folder_path.clone());
        config.retain_table = Duration::from_millis(20);
    })
    .await;
    let nothing = info(&server, "").await.unwrap();
    assert_eq!(
        (nothing.table_id.as_str(), nothing.served_tables.len()),
        ("", 0)
    );
    assert!(nothing.max_positions > 0);
    build(SECOND, &folder_path.join("news"));
    server.reload.notify_one();
    let ids = document(9, 100);
    eventually("it came", async || {
        ask(&server, of_table("news", &ids)).await.ok()
    })
    .await;
    assert_eq!(info(&server, "").await.unwrap().served_tables, ["news"]);
    fs::remove_dir_all(folder_path.join("news")).unwrap();
    server.reload.notify_one();
    eventually("it is closed", async || {
        let refused = info(&server, "news").await.err()?;
        assert_eq!(refused.code(), Code::NotFound);
        Some(())
    })
    .await;
}
