//! Batches cut into messages, and answers put together.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::facts::samples;

const LIMITS: Limits = Limits {
    ids: 64,
    spans: 8,
    answers: 16,
};

fn batch(spans: &[(&[u32], usize)]) -> LookupBatch {
    let mut batch = LookupBatch::default();
    for (ids, context) in spans {
        batch.push(ids, *context);
    }
    batch
}

/// What an embed-service whose table has every 2-gram (a, b), with the row [a, b], would answer.
fn answer(part: &Part, shards: u32) -> LookupRows {
    let mut rows = LookupRows {
        table_id: "t".into(),
        ..LookupRows::default()
    };
    let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
    for (_, ids) in part.windows() {
        if owner(ids, shards) == Some(part.shard) {
            lengths.push(2);
            for id in &ids[ids.len() - 2..] {
                bytes.extend((*id as f32).to_le_bytes());
            }
        } else {
            lengths.push(0);
        }
    }
    rows.match_lengths = lengths.into();
    rows.rows = bytes.into();
    rows
}

#[test]
fn a_decode_step_is_one_message_to_each_owner() {
    let batch = batch(&[(&[1, 2, 3], 2), (&[7], 0), (&[4, 5], 1)]);
    let parts = split(&batch, 3, 1, LIMITS);
    assert_eq!(parts.len(), 1);
    assert_eq!(
        parts[0].owned(1).collect::<Vec<_>>(),
        [0, 2],
        "nothing can end at a first id, so it is not asked for"
    );
    let parts = split(&batch, 3, 7, LIMITS);
    for part in parts {
        for (_, ids) in part.windows() {
            assert_eq!(owner(ids, 7), Some(part.shard));
        }
    }
}

#[test]
fn context_beyond_what_can_match_is_not_sent() {
    let parts = split(&batch(&[(&[1, 2, 3, 4, 5, 6], 5)]), 3, 1, LIMITS);
    assert_eq!(parts[0].ids, [4, 5, 6]);
}

#[test]
fn a_long_prompt_is_cut_with_context_and_every_position_is_answered_once() {
    let ids: Vec<u32> = (0..100).map(|i| i * 7 % 100).collect();
    for shards in [1, 2, 5] {
        let batch = batch(&[(&ids, 0), (&ids[..30], 4), (&ids[..2], 1)]);
        let facts = samples::facts("t", shards);
        let mut out = Answers::default();
        out.reset(batch.positions());
        for part in split(&batch, 3, shards, LIMITS) {
            assert!(part.ids.len() <= LIMITS.ids && part.spans.len() <= LIMITS.spans);
            assert!(part.windows().count() <= LIMITS.answers);
            let rows = answer(&part, shards);
            check(&part, &rows, &facts).unwrap();
            merge(&part, rows, &facts, &mut out);
        }
        let expected = ids
            .iter()
            .enumerate()
            .map(|(i, &id)| (i > 0).then(|| [ids[i - 1], id]));
        let expected = expected
            .chain((4..30).map(|i| Some([ids[i - 1], ids[i]])))
            .chain([Some([ids[0], ids[1]])]);
        for (position, expected) in expected.enumerate() {
            match expected {
                None => assert_eq!(out.match_lengths()[position], 0),
                Some([a, b]) => {
                    assert_eq!(out.match_lengths()[position], 2);
                    assert_eq!(decoded(&out, position), [a as f32, b as f32]);
                }
            }
        }
    }
}

#[test]
fn rows_sent_once_are_used_by_index() {
    let batch = batch(&[(&[1, 2], 1), (&[1, 2], 1), (&[3, 4], 1)]);
    let part = split(&batch, 3, 1, LIMITS).remove(0);
    let mut rows = answer(&part, 1);
    rows.row_index = vec![1, 1, 0];
    rows.rows = [3f32, 4., 1., 2.]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect::<Vec<_>>()
        .into();
    let facts = samples::facts("t", 1);
    let mut out = Answers::default();
    out.reset(3);
    check(&part, &rows, &facts).unwrap();
    merge(&part, rows, &facts, &mut out);
    let values: Vec<[f32; 2]> = (0..3).map(|position| decoded(&out, position)).collect();
    assert_eq!(values, [[1., 2.], [1., 2.], [3., 4.]]);
}

#[test]
fn bad_answers_are_refused() {
    let ids: Vec<u32> = (0..10).collect();
    let parts = split(&batch(&[(&ids, 0)]), 3, 2, LIMITS);
    let facts = samples::facts("t", 2);
    let part = &parts[0];
    let good = answer(part, 2);
    check(part, &good, &facts).unwrap();

    let other_shard = part
        .windows()
        .position(|(_, w)| owner(w, 2) == Some(1 - part.shard));
    let other_shard = other_shard.unwrap();
    let length_of = |at: usize, length: u8| {
        let mut rows = good.clone();
        let mut lengths = rows.match_lengths.to_vec();
        lengths[at] = length;
        rows.match_lengths = lengths.into();
        rows
    };
    let own = good.match_lengths.iter().position(|&l| l == 2).unwrap();
    let mut cases = vec![
        (
            "table_id",
            LookupRows {
                table_id: "u".into(),
                ..good.clone()
            },
        ),
        (
            "match_lengths",
            LookupRows {
                match_lengths: good.match_lengths.slice(1..),
                ..good.clone()
            },
        ),
        (
            "multiple",
            LookupRows {
                rows: good.rows.slice(1..),
                ..good.clone()
            },
        ),
        (
            "rows has",
            LookupRows {
                rows: good.rows.slice(8..),
                ..good.clone()
            },
        ),
        (
            "row_index has",
            LookupRows {
                row_index: vec![0],
                ..good.clone()
            },
        ),
        ("allowed is 2", length_of(own, 1)),
        ("allowed is 2", length_of(own, 200)),
        ("allowed is 2", length_of(0, 2)),
        ("another shard", length_of(other_shard, 2)),
    ];
    let mut nan = good.rows.to_vec();
    nan[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    cases.push((
        "row 1 has an element that is not finite",
        LookupRows {
            rows: nan.into(),
            ..good.clone()
        },
    ));
    let matched = good.match_lengths.iter().filter(|&&l| l == 2).count();
    cases.push((
        "row_index has 99",
        LookupRows {
            row_index: vec![99; matched],
            ..good.clone()
        },
    ));
    for (expected, rows) in cases {
        let error = check(part, &rows, &facts).unwrap_err();
        assert!(
            error.contains(expected),
            "{error:?} should contain {expected:?}"
        );
    }
}

#[test]
fn limits_that_hold_no_span_are_refused() {
    let info = |max_request_bytes, max_positions, max_spans| GetTableInfoResponse {
        max_request_bytes,
        max_positions,
        max_spans,
        max_n: 5,
        row_bytes: 256,
        ..GetTableInfoResponse::default()
    };
    assert!(Limits::of(&info(1 << 20, 4096, 64)).is_ok());
    for bad in [
        info(0, 4096, 64),
        info(1 << 20, 4, 64),
        info(1 << 20, 4096, 0),
    ] {
        assert!(Limits::of(&bad).is_err());
    }
}

fn decoded(answers: &Answers, position: usize) -> [f32; 2] {
    let mut row = [0.0; 2];
    answers.row(position).unwrap().decode(&mut row).unwrap();
    row
}
