#![allow(clippy::unwrap_used, reason = "tests")]
use std::collections::HashMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

const K: u8 = 5;

fn corpus(vocab_size: u32, documents: &[Vec<u32>]) -> TokenizedCorpus {
    TokenizedCorpus::from_documents(vocab_size, documents.iter().map(Vec::as_slice), 0)
}

fn options(min_count: u64, max_fgrams: usize) -> MiningOptions {
    MiningOptions {
        max_n: K,
        min_count,
        max_fgrams,
    }
}

fn mined(documents: &[Vec<u32>], vocab_size: u32, options: &MiningOptions) -> FgramSet {
    mine(&corpus(vocab_size, documents), vocab_size, [7; 32], options).unwrap()
}

fn listed(set: &FgramSet) -> Vec<(Vec<u32>, u64)> {
    set.iter()
        .map(|fgram| (fgram.ids.to_vec(), fgram.count))
        .collect()
}

/// The method as `docs/method.md` has it, word for word: a map of all n-grams, one ranking.
fn naive(documents: &[Vec<u32>], options: &MiningOptions) -> Vec<(Vec<u32>, u64)> {
    let mut counts: HashMap<&[u32], u64> = HashMap::new();
    for n in 2..=usize::from(options.max_n) {
        for document in documents {
            for gram in document.windows(n) {
                *counts.entry(gram).or_default() += 1;
            }
        }
    }
    let mut ranked: Vec<(Vec<u32>, u64)> = counts
        .into_iter()
        .filter(|(gram, count)| gram.len() == 2 || *count >= options.min_count)
        .map(|(gram, count)| (gram.to_vec(), count))
        .collect();
    ranked.sort_by(|a, b| {
        b.1.cmp(&a.1)
            .then(a.0.len().cmp(&b.0.len()))
            .then(a.0.cmp(&b.0))
    });
    ranked.truncate(options.max_fgrams);
    ranked
}

fn random_documents(
    rng: &mut impl Rng,
    vocab_size: u32,
    count: usize,
    max_len: usize,
) -> Vec<Vec<u32>> {
    (0..count)
        .map(|_| {
            let len = rng.random_range(1..=max_len);
            // Skewed, so that some n-grams are frequent and many tie.
            (0..len)
                .map(|_| {
                    rng.random_range(0..vocab_size)
                        .min(rng.random_range(0..vocab_size))
                })
                .collect()
        })
        .collect()
}

#[test]
fn equals_a_naive_count_on_random_documents() {
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..100 {
        let vocab_size = [2, 3, 5, 20, 70_000][round % 5];
        let documents = random_documents(&mut rng, vocab_size, 1 + round % 7, 1 + 3 * round);
        for max_fgrams in [1, 2, 10, 40, 100_000] {
            for min_count in [1, 2, 5] {
                let options = options(min_count, max_fgrams);
                let set = mined(&documents, vocab_size, &options);
                assert_eq!(
                    listed(&set),
                    naive(&documents, &options),
                    "round {round}, {options:?}"
                );
            }
        }
    }
}

#[test]
fn spans_chunks_of_the_parallel_scan() {
    let mut rng = StdRng::seed_from_u64(12);
    let documents = random_documents(&mut rng, 4, 3, 150_000);
    let options = options(5, 800);
    assert_eq!(
        listed(&mined(&documents, 4, &options)),
        naive(&documents, &options)
    );
}

#[test]
fn no_fgram_spans_two_documents() {
    let documents = vec![vec![0, 1], vec![2, 3], vec![0, 1], vec![2, 3]];
    let set = mined(&documents, 4, &options(1, 100));
    assert_eq!(listed(&set), [(vec![0, 1], 2), (vec![2, 3], 2)]);
}

#[test]
fn min_count_does_not_prune_2_grams() {
    let documents = vec![vec![0, 1, 2], vec![0, 1, 2], vec![3, 4, 5]];
    let set = mined(&documents, 6, &options(2, 100));
    let expected = [
        (vec![0, 1], 2),
        (vec![1, 2], 2),
        (vec![0, 1, 2], 2),
        (vec![3, 4], 1),
        (vec![4, 5], 1),
    ];
    assert_eq!(listed(&set), expected);
}

#[test]
fn a_corpus_without_pairs_gives_an_empty_set() {
    assert!(mined(&[vec![1], vec![2]], 4, &options(1, 10)).is_empty());
}

#[test]
fn overlapping_occurrences_count() {
    let set = mined(&[vec![1; 6]], 2, &options(1, 10));
    let expected: Vec<_> = (2..=5).map(|n| (vec![1; n], 7 - n as u64)).collect();
    assert_eq!(listed(&set), expected);
}

#[test]
fn result_does_not_depend_on_the_number_of_threads() {
    let documents = random_documents(&mut StdRng::seed_from_u64(13), 6, 4, 100_000);
    let bytes = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut set = mined(&documents, 6, &options(5, 500));
            let matches = count_matches(&corpus(6, &documents), &set);
            set.set_match_counts(matches.by_rank).unwrap();
            set.to_bytes()
        })
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn limits_are_checked() {
    let good = options(5, 10);
    assert!(good.validate().is_ok());
    let refused = |options: MiningOptions| options.validate().unwrap_err().to_string();
    assert!(refused(MiningOptions { max_n: 1, ..good }).contains("max_n is 1"));
    assert!(refused(MiningOptions { max_n: 9, ..good }).contains("max_n is 9"));
    assert!(
        refused(MiningOptions {
            min_count: 0,
            ..good
        })
        .contains("min_count")
    );
    assert!(
        refused(MiningOptions {
            max_fgrams: 0,
            ..good
        })
        .contains("max_fgrams")
    );
}

#[test]
fn recount_agrees_and_notices_a_wrong_count() {
    let documents = random_documents(&mut StdRng::seed_from_u64(14), 5, 5, 400);
    let set = mined(&documents, 5, &options(2, 60));
    let result = recount(&corpus(5, &documents), &set, 1000);
    assert_eq!((result.checked, result.mismatches), (60, vec![]));
    let wrong = set
        .iter()
        .map(|f| (NGram::from_slice(f.ids).unwrap(), f.count + 1))
        .collect();
    let wrong = FgramSet::new(set.header().clone(), wrong).unwrap();
    assert_eq!(
        recount(&corpus(5, &documents), &wrong, 20).mismatches.len(),
        20
    );
}

/// Property 6 of the method, and property 1: what counting, tagging and look-up say about a
/// position is the same, and it is the longest f-gram that ends there.
fn assert_tagger_counter_and_matcher_agree(documents: &[Vec<u32>], set: &FgramSet) {
    let matcher = set.matcher();
    let counts: HashMap<&[u32], u64> = set.iter().map(|f| (f.ids, f.count)).collect();
    let mut found: HashMap<&[u32], u64> = HashMap::new();
    let mut longest_counts = vec![0; set.len()];
    for document in documents {
        let mut tags = Vec::new();
        matcher.tag(document, 0, &mut tags);
        assert_eq!(tags.len(), document.len());
        for (i, tag) in tags.iter().enumerate() {
            let longest = (2..=usize::from(K).min(i + 1))
                .rev()
                .map(|n| &document[i + 1 - n..=i])
                .find(|gram| counts.contains_key(gram));
            let tagged = tag.map(|found| set.get(found.row as usize).ids);
            assert_eq!(tagged, longest, "position {i}");
            assert_eq!(
                tag.map(|found| usize::from(found.len)),
                longest.map(<[u32]>::len)
            );
            // In serving only the last K ids are known.
            let known = &document[(i + 1).saturating_sub(usize::from(K))..=i];
            assert_eq!(matcher.longest(known), *tag);
            for n in 2..=usize::from(K).min(i + 1) {
                *found.entry(&document[i + 1 - n..=i]).or_default() += 1;
            }
            if let Some(tag) = tag {
                longest_counts[tag.row as usize] += 1;
            }
        }
    }
    for (gram, count) in counts {
        assert_eq!(found[gram], count, "{gram:?}");
    }
    let matches = count_matches(&corpus(set.header().vocab_size, documents), set);
    assert_eq!(matches.by_rank, longest_counts);
    let positions: usize = documents.iter().map(Vec::len).sum();
    assert_eq!(matches.positions(), positions as u64);
}

#[test]
fn tagger_counter_and_matcher_agree_on_random_documents() {
    let mut rng = StdRng::seed_from_u64(15);
    for round in 0..40 {
        let vocab_size = 2 + round % 9;
        let documents = random_documents(&mut rng, vocab_size, 4, 200);
        let set = mined(&documents, vocab_size, &options(2, 1 + 7 * round as usize));
        assert_tagger_counter_and_matcher_agree(&documents, &set);
    }
}

#[test]
fn tagger_counter_and_matcher_agree_on_text() {
    let text = include_str!("../../tests/data/harbour.txt");
    let paragraphs = || text.split("\n\n").map(|text| Ok(text.to_owned()));
    let tokenizer = crate::tokenizer::train(paragraphs(), 400, 2).unwrap();
    let documents: Vec<Vec<u32>> = text
        .split("\n\n")
        .map(|text| tokenizer.encode_document(text).unwrap())
        .collect();
    for max_fgrams in [50, 400, 100_000] {
        let options = options(2, max_fgrams);
        let set = mined(&documents, tokenizer.vocab_size(), &options);
        assert_eq!(listed(&set), naive(&documents, &options));
        assert_tagger_counter_and_matcher_agree(&documents, &set);
    }
}
