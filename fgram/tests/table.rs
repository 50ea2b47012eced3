//! Tables end to end: build, open, look up, verify.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{build, options, random_ids, row_of, small_set};
use scone_fgram::table::{BuildOptions, LookupResult, Span};
use scone_fgram::{FgramSet, Matcher, RowDtype, Table, TableOptions};

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
    for dtype in RowDtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        let manifest = build(
            dir.path(),
            &set,
            &BuildOptions {
                dtype,
                ..options(DIM)
            },
        )
        .unwrap();
        assert_eq!(manifest.rows, set.len() as u64);
        for hot_bytes in [0, 20 * (DIM as u64 + 72), 1 << 20] {
            let options = TableOptions {
                hot_bytes,
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
