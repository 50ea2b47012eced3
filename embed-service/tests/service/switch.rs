//! One table after the other, while requests go on.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use scone_fgram::{StoreKind, Table, TableOptions};
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupRows,
};
use tonic::{Code, Status};

use crate::support::{
    FIRST, Oracle, TestServer, TestStream, VOCAB, Version, document, eventually, fgram_set,
    fgram_set_of, request,
};

const SECOND: Version = Version(0xcd);
const THIRD: Version = Version(0xef);

async fn info(
    server: &TestServer,
    version: Option<Version>,
) -> Result<GetTableInfoResponse, Status> {
    let table_id = version.map(Version::table_id);
    let request = GetTableInfoRequest {
        table_id,
        table: String::new(),
    };
    let answer = server.client().await.get_table_info(request).await;
    answer.map(tonic::Response::into_inner)
}

/// Waits until the server says that these versions answer, the current one first.
async fn serving(server: &TestServer, versions: &[Version]) {
    let expected: Vec<_> = versions.iter().map(|version| version.table_id()).collect();
    eventually(&format!("{versions:?} are served"), async || {
        let info = info(server, None).await.unwrap();
        assert_eq!(info.table_id, info.served_table_ids[0]);
        (info.served_table_ids == expected).then_some(())
    })
    .await;
}

async fn switches(server: &TestServer, outcome: &str) -> f64 {
    let name = format!("scone_embed_table_switches_total{{outcome=\"{outcome}\"}}");
    server.metric(&name).await.unwrap_or(0.0)
}

fn naming(version: Version, mut request: LookupRequest) -> LookupRequest {
    request.table_id = Some(version.table_id());
    request
}

/// Checks an answer against the version it says it is from.
fn check_own_version(oracles: &[Oracle], ids: &[u32], rows: &LookupRows) -> Version {
    let oracle = oracles
        .iter()
        .find(|oracle| oracle.version.table_id() == rows.table_id);
    let oracle = oracle.unwrap_or_else(|| panic!("table {}", rows.table_id));
    oracle.check(&[(ids, 0)], rows);
    oracle.version
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_under_load_fails_no_request_and_drops_no_stream() {
    let server = TestServer::start().await;
    let second = server.dir.path().join("second");
    SECOND.build_with(&second, &fgram_set(), |options| {
        options.store = StoreKind::Mapped
    });
    let enough = Arc::new(AtomicBool::new(false));
    let mut loads = Vec::new();
    for seed in 0..4 {
        let mut stream = server.stream().await;
        let enough = Arc::clone(&enough);
        loads.push(tokio::spawn(async move {
            let oracles = [Oracle::of(FIRST), Oracle::of(SECOND)];
            let ids = document(seed, 300);
            let mut seen = Vec::new();
            while !enough.load(Ordering::Relaxed) || seen.last() != Some(&SECOND) {
                let rows = stream.rows(request(seed, &[(&ids, 0)])).await;
                let version = check_own_version(&oracles, &ids, &rows);
                if seen.last() != Some(&version) {
                    seen.push(version);
                }
            }
            seen
        }));
    }
    eventually("the load is on", async || {
        let answered = server.metric("scone_embed_requests_total{outcome=\"ok\"}");
        (answered.await? >= 20.0).then_some(())
    })
    .await;
    server.switch_to("second");
    serving(&server, &[SECOND, FIRST]).await;
    enough.store(true, Ordering::Relaxed);
    for load in loads {
        // Once each stream saw the second table, it never saw the first again.
        assert_eq!(load.await.unwrap(), [FIRST, SECOND]);
    }
    assert_eq!(switches(&server, "switched").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_before_is_retained_and_those_before_it_are_closed() {
    let server = TestServer::start().await;
    SECOND.build(&server.dir.path().join("second"));
    THIRD.build(&server.dir.path().join("third"));
    let ids = document(21, 100);
    let mut stream = server.stream().await;

    server.switch_to("second");
    serving(&server, &[SECOND, FIRST]).await;
    for version in [FIRST, SECOND] {
        let rows = stream.rows(naming(version, request(1, &[(&ids, 0)]))).await;
        assert_eq!(rows.table_id, version.table_id());
        Oracle::of(version).check(&[(&ids, 0)], &rows);
        let facts = info(&server, Some(version)).await.unwrap();
        assert_eq!(facts.table_id, version.table_id());
        assert_eq!(facts.served_table_ids.len(), 2);
    }

    server.switch_to("third");
    serving(&server, &[THIRD, SECOND]).await;
    let (code, message) = stream
        .refusal(naming(FIRST, request(2, &[(&ids, 0)])))
        .await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.contains(&SECOND.table_id()), "{message}");
    let refused = info(&server, Some(FIRST)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    is_closed(&server, "first").await;

    // Back to a table that is still open.
    server.switch_to("second");
    serving(&server, &[SECOND, THIRD]).await;
    let rows = stream.rows(request(3, &[(&ids, 0)])).await;
    Oracle::of(SECOND).check(&[(&ids, 0)], &rows);
    let current = format!(
        "scone_embed_table_info{{table=\"default\",table_id=\"{}\",store=\"sled\",state=\"current\"}}",
        SECOND.table_id()
    );
    assert_eq!(server.metric(&current).await, Some(1.0));
}

/// Whether the server has let go of a table: sled lets one process open it at a time.
async fn is_closed(server: &TestServer, name: &str) {
    let dir = server.dir.path().join(name);
    eventually("the table is closed", async || {
        Table::open(&dir, &TableOptions::default()).ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_version_is_closed_when_its_time_is_up() {
    let server = TestServer::start_with(|config| config.retain_table = Duration::ZERO).await;
    SECOND.build(&server.dir.path().join("second"));
    server.switch_to("second");
    serving(&server, &[SECOND]).await;
    is_closed(&server, "first").await;
    // Its directory can be served again.
    server.switch_to("first");
    serving(&server, &[FIRST]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_table_again_is_not_opened_again() {
    let server = TestServer::start().await;
    server.switch_to("first");
    eventually("it looked", async || {
        (switches(&server, "unchanged").await == 1.0).then_some(())
    })
    .await;
    serving(&server, &[FIRST]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_verify_a_flipped_bit_of_a_row_is_refused() {
    let server = TestServer::start_with(|config| config.table_options.verify = true).await;
    let second = server.dir.path().join("second");
    SECOND.build_with(&second, &fgram_set(), |options| {
        options.store = StoreKind::Mapped
    });
    let rows = second.join("rows.bin");
    let sound = fs::read(&rows).unwrap();
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&rows, flipped).unwrap();
    server.switch_to("second");
    eventually("it is refused", async || {
        (switches(&server, "refused").await == 1.0).then_some(())
    })
    .await;
    serving(&server, &[FIRST]).await;
    fs::write(&rows, sound).unwrap();
    server.switch_to("second");
    serving(&server, &[SECOND, FIRST]).await;
}

/// Names of tables that cannot replace the first one.
fn bad_tables(server: &TestServer) -> [&'static str; 7] {
    let dir = |name: &str| server.dir.path().join(name);
    SECOND.build(&dir("half-copied"));
    fs::remove_file(dir("half-copied").join("table.json")).unwrap();
    SECOND.build(&dir("truncated"));
    let keys = fs::File::options()
        .write(true)
        .open(dir("truncated").join("keys.bin"));
    keys.unwrap().set_len(100).unwrap();
    SECOND.build(&dir("damaged"));
    let manifest = dir("damaged").join("table.json");
    let mut bytes = fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(manifest, bytes).unwrap();
    SECOND.build_with(&dir("shard"), &fgram_set(), |options| {
        options.shard = (0, 2)
    });
    SECOND.build_with(&dir("vocabulary"), &fgram_set_of(VOCAB + 1), |_| {});
    SECOND.build_with(&dir("large-rows"), &fgram_set(), |options| {
        options.dim = 4096
    });
    [
        "half-copied",
        "truncated",
        "damaged",
        "shard",
        "vocabulary",
        "large-rows",
        "no-such-table",
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_new_table_is_refused_and_the_old_one_goes_on() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(22, 100));
    let mut stream = server.stream().await;
    for (refused, name) in (1..).zip(bad_tables(&server)) {
        server.switch_to(name);
        eventually(&format!("{name} is refused"), async || {
            (switches(&server, "refused").await == f64::from(refused)).then_some(())
        })
        .await;
        let rows = stream.rows(request(1, &[(&ids, 0)])).await;
        oracle.check(&[(&ids, 0)], &rows);
        serving(&server, &[FIRST]).await;
    }
    assert_eq!(switches(&server, "switched").await, 0.0);
    // None of them is in the way of a good one.
    SECOND.build(&server.dir.path().join("second"));
    server.switch_to("second");
    serving(&server, &[SECOND, FIRST]).await;
    let mut client = server.client().await;
    TestStream::open(&mut client).await.unwrap();
}
