//! Longest match and sets against a brute-force oracle (`docs/method.md`, properties 1, 4 and 6).

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{HashMap, HashSet};

use common::{header, mine, random_ids};
use proptest::collection::vec;
use proptest::prelude::*;
use scone_fgram::{Error, FgramSet, Match, Matcher, NGram};

/// The definition: try every start, leftmost first.
fn oracle(rows: &HashMap<&[u32], u32>, max_n: usize, ids: &[u32]) -> Option<Match> {
    let lengths = (2..=max_n.min(ids.len())).rev();
    lengths.into_iter().find_map(|n| {
        let row = *rows.get(&ids[ids.len() - n..])?;
        Some(Match { len: n as u8, row })
    })
}

fn rows_of(set: &FgramSet) -> HashMap<&[u32], u32> {
    set.iter().map(|fgram| fgram.ids).zip(0..).collect()
}

/// Every position of `ids`, one document, against the oracle; whole and in pieces.
fn check_positions(set: &FgramSet, ids: &[u32], piece: usize) {
    let (matcher, rows) = (set.matcher(), rows_of(set));
    let max_n = usize::from(set.header().max_n);
    let expected: Vec<_> = (1..=ids.len())
        .map(|end| oracle(&rows, max_n, &ids[..end]))
        .collect();
    let mut whole = Vec::new();
    matcher.tag(ids, 0, &mut whole);
    assert_eq!(whole, expected);
    let mut pieces = Vec::new();
    for start in (0..ids.len()).step_by(piece) {
        let context = start.min(max_n - 1);
        let end = (start + piece).min(ids.len());
        matcher.tag(&ids[start - context..end], context, &mut pieces);
    }
    assert_eq!(pieces, expected, "in pieces of {piece}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn longest_match_is_exact_on_small_vocabularies(
        vocab in 2u32..=3,
        max_n in 2u8..=8,
        limit in 0usize..120,
        seed: u64,
        piece in 1usize..40,
    ) {
        let set = mine(&[random_ids(seed, vocab, 250)], vocab, max_n, limit);
        check_positions(&set, &random_ids(seed ^ 1, vocab, 200), piece);
    }

    /// Closed under suffix but not under prefix, as the keys of a matcher may be.
    #[test]
    fn a_matcher_needs_suffixes_only(grams in vec(vec(0u32..3, 2..=6), 0..40), ids in vec(0u32..3, 0..60)) {
        let suffixes = grams.iter().flat_map(|gram| (2..=gram.len()).map(|n| &gram[gram.len() - n..]));
        let keys: Vec<&[u32]> = suffixes.collect::<HashSet<_>>().into_iter().collect();
        let matcher = Matcher::build(keys.iter().copied(), 6).unwrap();
        let rows = keys.iter().copied().zip(0..).collect();
        for end in 0..=ids.len() {
            prop_assert_eq!(matcher.longest(&ids[..end]), oracle(&rows, 6, &ids[..end]));
        }
    }

    /// The top of a ranking by count is closed, wherever it is cut.
    #[test]
    fn mined_sets_are_closed(vocab in 2u32..5, max_n in 2u8..=6, limit in 0usize..200, seed: u64) {
        let set = mine(&[random_ids(seed, vocab, 200)], vocab, max_n, limit);
        let keys: HashSet<&[u32]> = set.iter().map(|fgram| fgram.ids).collect();
        for key in keys.iter().filter(|key| key.len() > 2) {
            prop_assert!(keys.contains(&key[1..]) && keys.contains(&key[..key.len() - 1]));
        }
    }

    /// A set missing any part of any f-gram is refused, and the error names the f-gram.
    #[test]
    fn a_set_with_a_hole_is_refused(seed: u64, hole in 0usize..1000) {
        let set = mine(&[random_ids(seed, 3, 200)], 3, 5, 100);
        let parts: Vec<&[u32]> = set.iter().map(|f| f.ids).filter(|&part| {
            set.iter().any(|f| f.ids.len() == part.len() + 1 && (f.ids[1..] == *part || f.ids.starts_with(part)))
        }).collect();
        prop_assume!(!parts.is_empty());
        let hole = parts[hole % parts.len()];
        let rest = set.iter().filter(|f| f.ids != hole);
        let rest = rest.map(|f| (NGram::from_slice(f.ids).unwrap(), f.count)).collect();
        let refused = FgramSet::new(set.header().clone(), rest);
        let is_refused = matches!(refused, Err(Error::InvalidFgram { .. }));
        prop_assert!(is_refused);
    }
}

/// Sentences from a small grammar: skewed words and phrases that come back, as in text.
fn sentences(seed: u64, count: usize) -> Vec<Vec<u32>> {
    let subjects = [
        "the old man",
        "a little girl",
        "the captain of the ship",
        "nobody in the house",
    ];
    let verbs = [
        "looked at",
        "thought of",
        "went away from",
        "did not see",
        "was afraid of",
    ];
    let objects = [
        "the sea",
        "the old house",
        "a small dog",
        "the captain",
        "it",
        "the end of it",
    ];
    let words: Vec<&str> = [&subjects[..], &verbs, &objects].concat();
    let mut ids: HashMap<&str, u32> = HashMap::new();
    for word in words.iter().flat_map(|phrase| phrase.split(' ')) {
        let next = ids.len() as u32;
        ids.entry(word).or_insert(next);
    }
    let draws = random_ids(seed, 60, 3 * count);
    let pick = |from: &[&'static str], draw: u32| from[(draw as usize).pow(2) / 60 % from.len()];
    let sentence = |draw: &[u32]| {
        [
            pick(&subjects, draw[0]),
            pick(&verbs, draw[1]),
            pick(&objects, draw[2]),
        ]
        .iter()
        .flat_map(|phrase| phrase.split(' '))
        .map(|word| ids[word])
        .collect()
    };
    draws.chunks_exact(3).map(sentence).collect()
}

#[test]
fn longest_match_is_exact_on_text() {
    let train = sentences(1, 4000);
    let vocab = 1 + train.iter().flatten().max().unwrap();
    let set = mine(&train, vocab, 5, 150);
    let by_length = set.count_by_length();
    assert!(by_length[2..=5].iter().all(|&n| n > 0), "{by_length:?}");
    for document in sentences(2, 1000) {
        check_positions(&set, &document, 3);
    }
}

#[test]
fn match_counts_and_the_matcher_agree() {
    let train = sentences(3, 2000);
    let vocab = 1 + train.iter().flatten().max().unwrap();
    let set = mine(&train, vocab, 5, 150);
    let rows = rows_of(&set);
    let mut counts = vec![0u64; set.len()];
    for ids in &train {
        for found in (1..=ids.len()).filter_map(|end| oracle(&rows, 5, &ids[..end])) {
            counts[found.row as usize] += 1;
        }
    }
    assert!(set.iter().map(|f| f.match_count).eq(counts.iter().copied()));
    let served = set.served_order();
    let key = |&rank: &u32| (std::cmp::Reverse(counts[rank as usize]), rank);
    assert!(served.is_sorted_by_key(key));
    assert_eq!(served.iter().collect::<HashSet<_>>().len(), set.len());
}

fn gram(ids: &[u32]) -> NGram {
    NGram::from_slice(ids).unwrap()
}

#[test]
fn a_set_is_in_rank_order() {
    let fgrams = vec![
        (gram(&[1, 2, 3]), 5),
        (gram(&[2, 3]), 5),
        (gram(&[1, 2]), 5),
        (gram(&[0, 9]), 6),
        (gram(&[0, 1]), 1),
    ];
    let set = FgramSet::new(header(10, 3), fgrams).unwrap();
    let order: Vec<&[u32]> = set.iter().map(|fgram| fgram.ids).collect();
    assert_eq!(
        order,
        [&[0u32, 9][..], &[1, 2], &[2, 3], &[1, 2, 3], &[0, 1]]
    );
    assert_eq!(
        set.matcher().longest(&[1, 2, 3]),
        Some(Match { len: 3, row: 3 })
    );
    assert_eq!(set.count_by_length()[..5], [0, 0, 4, 1, 0]);
}

#[test]
fn impossible_sets_are_refused() {
    let new = |header, fgrams: &[&[u32]]| {
        FgramSet::new(header, fgrams.iter().map(|ids| (gram(ids), 1)).collect())
    };
    let cases = [
        (new(header(10, 1), &[]), "max_n"),
        (new(header(10, 9), &[]), "max_n"),
        (new(header(0, 5), &[]), "vocab_size"),
        (new(header(10, 5), &[&[1, 10]]), "vocab_size 10"),
        (new(header(10, 5), &[&[1]]), "has 1 ids"),
        (
            new(header(10, 2), &[&[1, 2], &[2, 3], &[1, 2, 3]]),
            "has 3 ids",
        ),
        (new(header(10, 5), &[&[1, 2], &[1, 2]]), "twice"),
        (new(header(10, 5), &[&[1, 2], &[1, 2, 3]]), "suffix"),
        (new(header(10, 5), &[&[2, 3], &[1, 2, 3]]), "prefix"),
    ];
    for (set, problem) in cases {
        let text = set.unwrap_err().to_string();
        assert!(text.contains(problem), "{text:?} does not say {problem:?}");
    }
    let mut set = new(header(10, 5), &[&[1, 2]]).unwrap();
    assert!(set.set_match_counts(vec![1, 2]).is_err());
    assert!(new(header(10, 5), &[]).unwrap().is_empty());
}

/// Real prose, byte by byte: this repository's own.
#[test]
fn longest_match_is_exact_on_the_bytes_of_real_prose() {
    let text = include_str!("../../docs/formats.md");
    let documents: Vec<Vec<u32>> = text
        .split("\n\n")
        .map(|part| part.bytes().map(u32::from).collect())
        .collect();
    let (train, held_out): (Vec<_>, Vec<_>) = documents
        .into_iter()
        .enumerate()
        .partition(|(i, _)| i % 3 != 0);
    let train: Vec<Vec<u32>> = train.into_iter().map(|(_, document)| document).collect();
    let set = mine(&train, 256, 5, 1500);
    assert!(set.count_by_length()[5] > 0);
    for (i, document) in &held_out {
        check_positions(&set, document, 1 + i % 7);
    }
}
