//! Answers are those of the f-gram rule, on streams and unary.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, sync::mpsc};

use scone_fgram::table::NamedDir;
use scone_fgram::{StoreKind, Table, TableOptions};
use scone_proto::embed::v1::{GetTableInfoRequest, RowDtype as WireDtype, lookup_response};

use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    task::spawn_blocking,
};
use tonic::Code;

use crate::support::{DIM, FIRST, Oracle, TestServer, VOCAB, document, fgram_set, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_as_the_rule_says() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(2, 2000));
    let mut stream = server.stream().await;
    // Decode steps: windows of at most K ids with one answer each.
    for (step, windows) in ids.chunks(24).enumerate() {
        let spans: Vec<_> = windows.chunks(4).map(|w| (w, w.len() - 1)).collect();
        let rows = stream.rows(request(step as u64, &spans)).await;
        oracle.check(&spans, &rows);
    }
    // A prompt, answered at every position: repeated rows come once.
    let prompt = [(&ids[..], 0)];
    let rows = stream.rows(request(u64::MAX, &prompt)).await;
    oracle.check(&prompt, &rows);
    assert!(!rows.row_index.is_empty());
    assert!(rows.rows.len() <= 400 * 2 * DIM);
    // Nothing matches at the first position of a document.
    let one = [(&ids[..1], 0)];
    let rows = stream.rows(request(0, &one)).await;
    assert_eq!((&rows.match_lengths[..], rows.rows.len()), (&[0][..], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_of_all_sizes_are_answered_each() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(3, 1500));
    let mut stream = server.stream().await;
    // More than may wait for the disk at one time.
    let sizes: Vec<usize> = [1, 64, 65, 1500, 2, 700, 1].repeat(5);
    for (id, &size) in sizes.iter().enumerate() {
        let request = request(id as u64, &[(&ids[..size], 0)]);
        stream.requests.send(request).await.unwrap();
    }
    let mut open: BTreeSet<u64> = (0..sizes.len() as u64).collect();
    while !open.is_empty() {
        let (id, result) = stream.next().await;
        assert!(open.remove(&id), "{id} is answered twice");
        let lookup_response::Result::Rows(rows) = result else {
            panic!("{result:?}");
        };
        oracle.check(&[(&ids[..sizes[id as usize]], 0)], &rows);
    }
    // The client closes its side: the server ends the stream.
    drop(stream.requests);
    assert!(stream.answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_with_context_equal_the_whole_prompt() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(4, 90));
    let mut stream = server.stream().await;
    let mut pieces = Vec::new();
    for start in (0..90).step_by(30) {
        let context = start.min(3);
        let span = [(&ids[start - context..start + 30], context)];
        let rows = stream.rows(request(start as u64, &span)).await;
        oracle.check(&span, &rows);
        pieces.extend_from_slice(&rows.match_lengths);
    }
    let whole = stream.rows(request(1, &[(&ids, 0)])).await;
    assert_eq!(pieces, whole.match_lengths);
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_once_answers_like_a_stream() {
    let server = TestServer::start().await;
    let (oracle, ids) = (Oracle::new(), document(5, 300));
    let mut client = server.client().await;
    for size in [1, 5, 300] {
        let spans = [(&ids[..size], 0)];
        let answer = client.lookup_once(request(9, &spans)).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.id, 9);
        let Some(lookup_response::Result::Rows(rows)) = answer.result else {
            panic!("{answer:?}");
        };
        oracle.check(&spans, &rows);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn table_info_states_facts_and_limits() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    let info = client.get_table_info(GetTableInfoRequest::default()).await;
    let info = info.unwrap().into_inner();
    assert_eq!(info.fgram_set_hash, fgram_set().hash());
    assert_eq!(info.tokenizer_hash, "03".repeat(32));
    assert_eq!(info.model_hash, "ab".repeat(32));
    assert_eq!((info.vocab_size, info.max_n), (VOCAB, 4));
    assert_eq!((info.dim as usize, info.row_bytes as usize), (DIM, 2 * DIM));
    assert_eq!(info.dtype(), WireDtype::F16);
    assert_eq!((info.rows, info.store.as_str()), (400, "sled"));
    assert_eq!((info.shard_index, info.shard_count), (0, 1));
    assert_eq!((info.max_positions, info.max_spans), (2048, 16));
    assert_eq!(info.max_request_bytes, 16 << 10);
    assert_eq!(info.served_table_ids, std::slice::from_ref(&info.table_id));

    let mut stream = server.stream().await;
    let mut wanted = request(1, &[(&[1, 2], 0)]);
    wanted.table_id = Some(info.table_id.clone());
    assert_eq!(stream.rows(wanted).await.table_id, info.table_id);
}

/// A runtime with one thread that may wait for the disk.
fn one_disk_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).max_blocking_threads(1);
    builder.enable_all().build().unwrap()
}

/// Two requests that wait for the disk, and one after them that does not.
#[test]
fn a_request_that_waits_for_the_disk_lets_others_pass() {
    one_disk_thread().block_on(async {
        let server = TestServer::start_with(|config| config.table_options.hot_bytes = 0).await;
        let (oracle, ids) = (Oracle::new(), document(11, 50));
        let mut stream = server.stream().await;
        // The only thread that may wait for the disk is kept busy, as by a slow one.
        let (disk_is_free, wait) = mpsc::channel::<()>();
        let disk = spawn_blocking(move || wait.recv().unwrap());
        for id in [1, 2] {
            let cold = request(id, &[(&ids, 0)]);
            stream.requests.send(cold).await.unwrap();
        }
        // At the first position of a document nothing matches, so there is nothing to read.
        for id in 3..20 {
            let rows = stream.rows(request(id, &[(&ids[..1], 0)])).await;
            oracle.check(&[(&ids[..1], 0)], &rows);
        }
        disk_is_free.send(()).unwrap();
        disk.await.unwrap();
        let mut open = BTreeSet::from([1, 2]);
        while !open.is_empty() {
            let (id, result) = stream.next().await;
            assert!(open.remove(&id), "{id} is not open");
            let lookup_response::Result::Rows(rows) = result else {
                panic!("{result:?}");
            };
            oracle.check(&[(&ids, 0)], &rows);
        }
    });
}

/// Rows in memory never leave the worker: with no thread left to wait for the disk, a warm table
/// answers all the same.
#[test]
fn rows_in_memory_need_no_other_thread() {
    one_disk_thread().block_on(async {
        let server =
            TestServer::start_with(|config| config.table_options.hot_bytes = 1 << 20).await;
        let (disk_is_free, wait) = mpsc::channel::<()>();
        let disk = spawn_blocking(move || wait.recv().unwrap());
        let (oracle, ids) = (Oracle::new(), document(12, 2000));
        let mut stream = server.stream().await;
        let rows = stream.rows(request(1, &[(&ids, 0)])).await;
        oracle.check(&[(&ids, 0)], &rows);
        disk_is_free.send(()).unwrap();
        disk.await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_table_on_a_read_only_directory_answers_alike() {
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("mapped");
    FIRST.build_with(&table, &fgram_set(), |options| {
        options.store = StoreKind::Mapped
    });
    let mut read_only = fs::metadata(&table).unwrap().permissions();
    read_only.set_mode(0o555);
    fs::set_permissions(&table, read_only).unwrap();
    // Several servers share one.
    for _ in 0..2 {
        let server =
            TestServer::start_with(|config| config.tables = vec![NamedDir::default_at(&table)])
                .await;
        let (oracle, ids) = (Oracle::new(), document(13, 500));
        let mut stream = server.stream().await;
        for _ in 0..2 {
            let rows = stream.rows(request(1, &[(&ids, 0)])).await;
            oracle.check(&[(&ids, 0)], &rows);
        }
        Table::open(&table, &TableOptions::default()).unwrap();
    }
}

/// A row that is missing costs the requests that need it, and no wrong row is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_is_data_loss_for_those_who_ask_for_it() {
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("damaged");
    FIRST.build(&table);
    let set = fgram_set();
    let [lost, kept] = [set.get(7).ids, set.get(8).ids];
    let key: Vec<u8> = lost.iter().flat_map(|id| id.to_be_bytes()).collect();
    let rows = sled::open(table.join("rows.sled")).unwrap();
    assert!(rows.remove(key).unwrap().is_some());
    rows.flush().unwrap();
    drop(rows);
    let server = TestServer::start_with(|config| {
        config.tables = vec![NamedDir::default_at(table)];
        config.table_options.warm = false;
    })
    .await;
    let mut stream = server.stream().await;
    let (code, message) = stream.refusal(request(1, &[(lost, lost.len() - 1)])).await;
    assert_eq!(code, Code::DataLoss);
    // Where the table lies is nothing to tell a client.
    assert!(!message.contains("damaged/"), "{message}");
    let good = [(kept, kept.len() - 1)];
    let rows = stream.rows(request(2, &good)).await;
    Oracle::new().check(&good, &rows);
}
