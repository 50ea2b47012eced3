//! Tables end to end: build, open, look up, verify.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{build, in_store, random_ids, row_of, small_set};
use scone_fgram::table::{
    BuildOptions, HOT_ROW_OVERHEAD, HotSetStats, LookupResult, Span, TableKeys,
};
use scone_fgram::{
    ErrorKind, FgramSet, Matcher, RowDtype, StoreKind, Table, TableOptions, shard_of,
};

const DIM: usize = 24;

fn span(context: u32, answers: u32) -> Span {
    Span { context, answers }
}

/// What a look-up has to give: match lengths, and for each matched position the encoded row.
fn oracle(
    matcher: &Matcher,
    dtype: RowDtype,
    ids: &[u32],
    spans: &[Span],
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut lengths, mut rows) = (Vec::new(), Vec::new());
    let mut start = 0;
    for span in spans {
        let end = start + (span.context + span.answers) as usize;
        for last in start + span.context as usize..end {
            let found = matcher.longest(&ids[start..=last]);
            lengths.push(found.map_or(0, |m| m.len));
            rows.extend(found.map(|m| {
                let mut row = Vec::new();
                dtype
                    .encode(
                        &row_of(&ids[last + 1 - usize::from(m.len)..=last], DIM),
                        &mut row,
                    )
                    .unwrap();
                row
            }));
        }
        start = end;
    }
    (lengths, rows)
}

fn rows_used(result: &LookupResult, row_bytes: usize) -> Vec<Vec<u8>> {
    let row = |&i: &u32| result.rows[i as usize * row_bytes..][..row_bytes].to_vec();
    result.row_index.iter().map(row).collect()
}

fn check_lookups(table: &Table, set: &FgramSet) {
    let mut out = LookupResult::default();
    for seed in 0..20 {
        let ids = random_ids(100 + seed, 6, 60);
        let spans = [span(0, 30), span(4, 1), span(4, 1), span(0, 1), span(7, 12)];
        let spans = if seed % 2 == 0 {
            spans.to_vec()
        } else {
            vec![span(0, 60)]
        };
        table.lookup(&ids, &spans, &mut out).unwrap();
        let dtype = table.manifest().dtype;
        let (lengths, rows) = oracle(&set.matcher(), dtype, &ids, &spans);
        assert_eq!(out.match_lengths, lengths);
        assert_eq!(rows_used(&out, dtype.row_bytes(DIM)), rows);
    }
}

#[test]
fn a_table_gives_the_row_of_the_longest_match() {
    let set = small_set();
    for (store, dtype) in StoreKind::ALL
        .into_iter()
        .flat_map(|store| RowDtype::ALL.map(|dtype| (store, dtype)))
    {
        let dir = tempfile::tempdir().unwrap();
        let options = BuildOptions {
            dtype,
            ..in_store(store, DIM)
        };
        let manifest = build(dir.path(), &set, &options).unwrap();
        assert_eq!(manifest.rows, set.len() as u64);
        for hot_bytes in [0, 20 * (DIM as u64 + HOT_ROW_OVERHEAD), 1 << 20] {
            let options = TableOptions {
                hot_bytes,
                hot_set_on_mapped: true,
                ..TableOptions::default()
            };
            let table = Table::open(dir.path(), &options).unwrap();
            assert_eq!(*table.manifest(), manifest);
            check_lookups(&table, &set);
            assert!(table.stats().bytes <= hot_bytes);
            assert_eq!(table.verify(|_, _| {}).unwrap().rows, manifest.rows);
        }
    }
}

#[test]
fn one_shard_answers_one_position() {
    for store in StoreKind::ALL {
        for shards in [1, 2, 3, 7] {
            check_shards(store, shards);
        }
    }
}

/// Builds all shards and merges their answers.
fn check_shards(store: StoreKind, shards: u32) {
    let (set, home) = (small_set(), tempfile::tempdir().unwrap());
    let ids = random_ids(55, 6, 300);
    let all = [span(0, 300)];
    let (lengths, rows) = oracle(&set.matcher(), RowDtype::F16, &ids, &all);
    let mut merged = vec![0; ids.len()];
    let mut merged_rows = vec![Vec::new(); ids.len()];
    let mut total = 0;
    for index in 0..shards {
        let dir = home.path().join(index.to_string());
        let options = BuildOptions {
            shard: (index, shards),
            ..in_store(store, DIM)
        };
        total += build(&dir, &set, &options).unwrap().rows;
        let table = Table::open(&dir, &TableOptions::default()).unwrap();
        table.verify(|_, _| {}).unwrap();
        let mut out = LookupResult::default();
        table.lookup(&ids, &all, &mut out).unwrap();
        let mut used = rows_used(&out, table.manifest().row_bytes()).into_iter();
        let matched = out.match_lengths.iter().enumerate();
        for (i, &len) in matched.filter(|(_, len)| **len > 0) {
            assert_eq!(merged[i], 0, "two shards answered position {i}");
            assert_eq!(shard_of([ids[i - 1], ids[i]], shards), index);
            merged[i] = len;
            merged_rows[i] = used.next().unwrap();
        }
    }
    assert_eq!(total, set.len() as u64, "every row is in one shard");
    assert_eq!(merged, lengths);
    merged_rows.retain(|row| !row.is_empty());
    assert_eq!(merged_rows, rows);
}

/// A small table in sled that is open.
fn open_small(options_of: TableOptions) -> (tempfile::TempDir, Table) {
    open_in(StoreKind::Sled, options_of)
}

/// A small table that is open.
fn open_in(store: StoreKind, options_of: TableOptions) -> (tempfile::TempDir, Table) {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &small_set(), &in_store(store, DIM)).unwrap();
    let table = Table::open(dir.path(), &options_of).unwrap();
    (dir, table)
}

#[test]
fn a_wrong_request_names_field_and_limit() {
    let (_dir, table) = open_small(TableOptions::default());
    let mut out = LookupResult {
        match_lengths: vec![9],
        row_index: vec![9],
        rows: vec![9],
    };
    let huge = span(u32::MAX, u32::MAX);
    let cases: [(&[u32], &[Span], &str); 7] = [
        (
            &[1, 2],
            &[span(0, 1), span(1, 0)],
            "spans: span 1 has no answers",
        ),
        (
            &[1, 2],
            &[span(0, 1)],
            "spans: they cover 1 ids, but there are 2",
        ),
        (
            &[1, 2],
            &[span(1, 2)],
            "spans: they cover 3 ids, but there are 2",
        ),
        (&[1, 2], &[], "spans: they cover 0 ids"),
        (
            &[1, 2],
            &[huge, huge, huge],
            "spans: they cover 25769803770 ids",
        ),
        (
            &[1, 6],
            &[span(0, 2)],
            "token_ids: id 6 at 1 is not below vocab_size 6",
        ),
        (
            &[u32::MAX, 1],
            &[span(0, 2)],
            "token_ids: id 4294967295 at 0",
        ),
    ];
    for (ids, spans, problem) in cases {
        let error = table.lookup(ids, spans, &mut out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(problem), "{error}");
        assert_eq!(out, LookupResult::default());
    }
    // The table goes on, and nothing at all is a fine request.
    table.lookup(&[], &[], &mut out).unwrap();
    assert_eq!(out, LookupResult::default());
    table.lookup(&[1, 2], &[span(0, 2)], &mut out).unwrap();
    assert_eq!(out.match_lengths.len(), 2);
}

#[test]
fn spans_are_documents_of_their_own() {
    let (_dir, table) = open_small(TableOptions::default());
    let (ids, mut out) = ([1, 2, 1, 2], LookupResult::default());
    table.lookup(&ids, &[span(0, 1); 4], &mut out).unwrap();
    assert_eq!(out.match_lengths, [0; 4]);
    table.lookup(&ids, &[span(1, 1); 2], &mut out).unwrap();
    assert_eq!(
        (&out.match_lengths[..], &out.row_index[..]),
        (&[2, 2][..], &[0, 0][..])
    );
    assert_eq!(
        out.rows.len(),
        table.manifest().row_bytes(),
        "a repeated row comes once"
    );
    assert!(!out.rows_are_in_order());
    table.lookup(&ids[..2], &[span(1, 1)], &mut out).unwrap();
    assert!(out.rows_are_in_order());
}

#[test]
fn the_hot_set_is_warm_with_the_most_served_rows() {
    let set = small_set();
    let row = RowDtype::F16.row_bytes(DIM) as u64 + HOT_ROW_OVERHEAD;
    let (dir, table) = open_small(TableOptions {
        hot_bytes: 50 * row,
        ..TableOptions::default()
    });
    let expected = HotSetStats {
        bytes: 50 * row,
        rows: 50,
        ..HotSetStats::default()
    };
    assert_eq!(table.stats(), expected);
    let keys = TableKeys::read(dir.path(), table.manifest()).unwrap();
    let served = set
        .served_order()
        .into_iter()
        .map(|rank| set.get(rank as usize).ids);
    assert!(keys.iter().eq(served.clone()));
    let mut out = LookupResult::default();
    for ids in served.clone().take(50) {
        table
            .lookup(ids, &[span(ids.len() as u32 - 1, 1)], &mut out)
            .unwrap();
    }
    assert_eq!((table.stats().hits, table.stats().misses), (50, 0));
    let next = served.clone().nth(50).unwrap();
    table
        .lookup(next, &[span(next.len() as u32 - 1, 1)], &mut out)
        .unwrap();
    assert_eq!((table.stats().misses, table.stats().evictions), (1, 1));
    drop(table);
    let cold = TableOptions {
        warm: false,
        ..TableOptions::default()
    };
    assert_eq!(
        Table::open(dir.path(), &cold).unwrap().stats(),
        HotSetStats::default()
    );
}

#[test]
fn a_mapped_table_has_no_hot_set_unless_asked() {
    let set = small_set();
    let (_dir, table) = open_in(StoreKind::Mapped, TableOptions::default());
    check_lookups(&table, &set);
    let stats = table.stats();
    assert_eq!((stats.bytes, stats.rows, stats.evictions), (0, 0, 0));
    assert!(
        stats.hits > 0 && stats.misses == 0,
        "just written: {stats:?}"
    );
    let asked = TableOptions {
        hot_set_on_mapped: true,
        ..TableOptions::default()
    };
    let (_dir, table) = open_in(StoreKind::Mapped, asked);
    assert_eq!(table.stats().rows, set.len() as u64);
    check_lookups(&table, &set);
}

#[test]
fn the_two_parts_of_a_look_up_make_the_whole() {
    let ids = random_ids(77, 6, 200);
    let spans = [span(0, 200)];
    for store in StoreKind::ALL {
        let some = TableOptions {
            hot_bytes: 100 * 120,
            ..TableOptions::default()
        };
        let (_dir, table) = open_in(store, some);
        let mut whole = LookupResult::default();
        let mut parts = LookupResult::default();
        let cold = table.lookup_in_memory(&ids, &spans, &mut parts).unwrap();
        assert_eq!(cold.is_some(), store == StoreKind::Sled);
        let stats = table.stats();
        assert_eq!(
            stats.misses,
            cold.as_ref().map_or(0, |cold| cold.len() as u64)
        );
        if let Some(cold) = cold {
            // It goes to another thread.
            std::thread::scope(|scope| {
                let fetch = || table.fetch_cold(cold, &mut parts).unwrap();
                scope.spawn(fetch);
            });
        }
        table.lookup(&ids, &spans, &mut whole).unwrap();
        assert_eq!(parts, whole);
        let (lengths, rows) = oracle(&small_set().matcher(), RowDtype::F16, &ids, &spans);
        assert_eq!(parts.match_lengths, lengths);
        assert_eq!(rows_used(&parts, table.manifest().row_bytes()), rows);
    }
}

/// Where the system pushes a file out of memory when asked to (disk file systems of Linux), its
/// rows are cold until they were fetched; elsewhere all of them are warm.
#[test]
fn rows_that_are_not_in_memory_are_fetched_once_and_then_are() {
    let (dir, set, dim) = (tempfile::tempdir().unwrap(), small_set(), 4096);
    build(dir.path(), &set, &in_store(StoreKind::Mapped, dim)).unwrap();
    let rows = format!("if={}", dir.path().join("rows.bin").display());
    let pushed_out = std::process::Command::new("dd")
        .args([&rows, "iflag=nocache", "count=0", "status=none"])
        .status();
    let none = TableOptions {
        hot_bytes: 0,
        ..TableOptions::default()
    };
    let table = Table::open(dir.path(), &none).unwrap();
    let served = set.served_order();
    // Far from the header, whose reading brings the rows next to it.
    let ids = set.get(served[300] as usize).ids;
    let spans = [span(ids.len() as u32 - 1, 1)];
    let mut row = Vec::new();
    RowDtype::F16.encode(&row_of(ids, dim), &mut row).unwrap();
    let mut out = LookupResult::default();
    let cold = table.lookup_in_memory(ids, &spans, &mut out).unwrap();
    println!("pushed out: {pushed_out:?}, cold: {cold:?}");
    if let Some(cold) = cold {
        assert_eq!((cold.len(), &out.rows), (1, &vec![0; row.len()]));
        table.fetch_cold(cold, &mut out).unwrap();
    }
    assert_eq!(out.rows, row);
    assert_eq!(table.lookup_in_memory(ids, &spans, &mut out).unwrap(), None);
    assert_eq!(out.rows, row);
    drop(table);
    let again = std::process::Command::new("dd")
        .args([&rows, "iflag=nocache", "count=0", "status=none"])
        .status();
    println!("pushed out: {again:?}");
    let all = TableOptions {
        hot_bytes: u64::MAX,
        ..TableOptions::default()
    };
    let table = Table::open(dir.path(), &all).unwrap();
    assert_eq!(table.lookup_in_memory(ids, &spans, &mut out).unwrap(), None);
    assert_eq!(out.rows, row);
}

#[test]
fn cold_rows_go_to_the_answer_they_belong_to() {
    let none = TableOptions {
        hot_bytes: 0,
        ..TableOptions::default()
    };
    let (_dir, table) = open_small(none);
    let ids = random_ids(78, 6, 50);
    let mut out = LookupResult::default();
    let cold = table
        .lookup_in_memory(&ids, &[span(0, 50)], &mut out)
        .unwrap();
    let mut other = LookupResult::default();
    let error = table.fetch_cold(cold.unwrap(), &mut other).unwrap_err();
    assert!(error.to_string().starts_with("out: has 0 rows"), "{error}");
}

#[test]
fn threads_share_a_table() {
    for store in StoreKind::ALL {
        let some = TableOptions {
            hot_bytes: 30 * 120,
            ..TableOptions::default()
        };
        let (_dir, table) = open_in(store, some);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| check_lookups(&table, &small_set()));
            }
        });
        let stats = table.stats();
        assert!(stats.coalesced <= stats.misses, "{stats:?}");
    }
}

/// A pipe has no end to read to: opening one would wait for somebody to write.
#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_a_file_is_refused() {
    let names = ["table.json", "keys.bin", "index.bin", "rows.bin"];
    for name in names {
        let (dir, table) = open_in(StoreKind::Mapped, TableOptions::default());
        drop(table);
        let path = dir.path().join(name);
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = Table::open(dir.path(), &TableOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("not a file"), "{text}");
    }
}
