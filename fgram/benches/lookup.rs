//! Matcher and table, on streams with the skew of text. Prints one JSON object a line:
//! `cargo bench -p scone-fgram [-- ROWS]`. Everything runs warm (page cache, after one pass).

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::{BuildOptions, LookupResult, Span, build_table};
use scone_fgram::{Error, FgramSet, NGram, RowDtype, SetHeader, Table, TableOptions};

const VOCAB: u32 = 4096;
const MAX_N: u8 = 5;
const DIM: usize = 128;

fn main() {
    // `cargo test --benches` and `cargo bench` pass flags of their own.
    let rows = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(50_000);
    let corpus = skewed(1, 1_000_000);
    let held_out = skewed(2, 200_000);
    let set = mine(&corpus, rows);
    matcher(&set, &held_out);
    hash_map(&set, &held_out);
    table(&set, &held_out);
}

fn report(bench: &str, case: &str, subject: &str, metric: &str, value: f64, unit: &str) {
    println!(
        "{{\"bench\":\"{bench}\",\"case\":\"{case}\",\"subject\":\"{subject}\",\
         \"metric\":\"{metric}\",\"value\":{value:.4},\"unit\":\"{unit}\"}}"
    );
}

/// Ids whose frequencies fall about as 1/rank, with phrases that come back.
fn skewed(seed: u64, len: usize) -> Vec<u32> {
    let mut phrases = ChaCha8Rng::seed_from_u64(0);
    let id = |rng: &mut ChaCha8Rng| {
        let x: f64 = rng.random();
        (f64::from(VOCAB).powf(x) - 1.0) as u32
    };
    let phrases: Vec<Vec<u32>> = (0..20_000)
        .map(|_| {
            (0..phrases.random_range(2..8))
                .map(|_| id(&mut phrases))
                .collect()
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids = Vec::with_capacity(len + 8);
    while ids.len() < len {
        let x: f64 = rng.random();
        if x < 0.5 {
            let rank = (phrases.len() as f64).powf(rng.random::<f64>()) - 1.0;
            ids.extend_from_slice(&phrases[rank as usize]);
        } else {
            ids.push(id(&mut rng));
        }
    }
    ids.truncate(len);
    ids
}

fn mine(corpus: &[u32], limit: usize) -> FgramSet {
    let mut counts: HashMap<NGram, u64> = HashMap::new();
    for n in 2..=usize::from(MAX_N) {
        for gram in corpus.windows(n).filter_map(NGram::from_slice) {
            *counts.entry(gram).or_default() += 1;
        }
    }
    let mut ranked: Vec<(NGram, u64)> = counts.into_iter().collect();
    ranked.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(limit);
    let header = SetHeader {
        vocab_size: VOCAB,
        max_n: MAX_N,
        tokenizer_hash: [0; 32],
        min_count: 1,
    };
    let mut set = FgramSet::new(header, ranked).expect("the top of a ranking is closed");
    let mut matches = Vec::new();
    set.matcher().tag(corpus, 0, &mut matches);
    let mut served = vec![0; set.len()];
    matches
        .iter()
        .flatten()
        .for_each(|m| served[m.row as usize] += 1);
    set.set_match_counts(served).expect("one count a rank");
    set
}

/// Nanoseconds of one call, the best of five.
fn best_ns(mut call: impl FnMut()) -> f64 {
    let time = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64
    };
    (0..5)
        .map(|_| time(&mut call))
        .fold(f64::INFINITY, f64::min)
}

fn matcher(set: &FgramSet, ids: &[u32]) {
    let matcher = set.matcher();
    let mut out = Vec::with_capacity(ids.len());
    let ns = best_ns(|| {
        out.clear();
        matcher.tag(black_box(ids), 0, &mut out);
    });
    let case = format!("{} f-grams", set.len());
    let matched = out.iter().flatten().count() as f64 / ids.len() as f64;
    report(
        "matcher",
        &case,
        "ours",
        "time",
        ns / ids.len() as f64,
        "ns/position",
    );
    report("matcher", &case, "ours", "matched", matched, "share");
    let bytes = matcher.memory_bytes() as f64 / set.len() as f64;
    report("matcher", &case, "ours", "memory", bytes, "bytes/key");
}

/// What one would write first: a map from n-gram to row, longest first.
fn hash_map(set: &FgramSet, ids: &[u32]) {
    let entries = set.iter().zip(0u32..);
    let map: HashMap<NGram, u32> = entries
        .filter_map(|(f, row)| Some((NGram::from_slice(f.ids)?, row)))
        .collect();
    let longest = |end: usize| {
        (2..=usize::from(MAX_N).min(end))
            .rev()
            .find_map(|n| map.get(&NGram::from_slice(&ids[end - n..end])?).copied())
    };
    let ns = best_ns(|| {
        (1..=ids.len()).for_each(|end| {
            black_box(longest(end));
        });
    });
    let case = format!("{} f-grams", set.len());
    report(
        "matcher",
        &case,
        "std HashMap",
        "time",
        ns / ids.len() as f64,
        "ns/position",
    );
}

fn table(set: &FgramSet, ids: &[u32]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = BuildOptions {
        dim: DIM,
        dtype: RowDtype::F16,
        model_hash: "00".repeat(32),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend((0..DIM).map(|i| (ids[0] + i as u32) as f32)));
        Ok::<(), Error>(())
    };
    let start = Instant::now();
    let manifest = build_table(dir.path(), set, &options, rows, |_, _| {}).expect("a new table");
    let case = format!("{} rows of {} bytes", manifest.rows, manifest.row_bytes());
    let rate = manifest.rows as f64 / start.elapsed().as_secs_f64();
    report("table", &case, "sled", "build", rate, "rows/s");
    let disk = disk_bytes(dir.path()) as f64 / manifest.rows as f64;
    report("table", &case, "sled", "disk", disk, "bytes/row");
    for share in [0u64, 10, 100] {
        let all = manifest.rows * (manifest.row_bytes() as u64 + 72);
        let open = TableOptions {
            hot_bytes: all * share / 100,
            ..TableOptions::default()
        };
        let start = Instant::now();
        let table = Table::open(dir.path(), &open).expect("the table just built");
        let case = format!("{case}, {share}% hot");
        report(
            "table",
            &case,
            "sled",
            "open",
            start.elapsed().as_secs_f64() * 1e3,
            "ms",
        );
        lookups(&table, &case, ids);
    }
}

fn lookups(table: &Table, case: &str, ids: &[u32]) {
    let mut out = LookupResult::default();
    // A decode step of 32 sequences, each with 4 ids of context.
    let step = [Span {
        context: 4,
        answers: 1,
    }; 32];
    let steps: Vec<Vec<u32>> = (0..200)
        .map(|s| {
            (0..32)
                .flat_map(|b| ids[(s * 32 + b) * 29..][..5].iter().copied())
                .collect()
        })
        .collect();
    let ns = best_ns(|| {
        for ids in &steps {
            table
                .lookup(ids, &step, &mut out)
                .expect("ids in the vocabulary");
        }
    });
    report(
        "lookup",
        &format!("step of 32, {case}"),
        "ours",
        "time",
        ns / 200e3,
        "us",
    );
    let prompt = [Span {
        context: 0,
        answers: 2048,
    }];
    let ns = best_ns(|| {
        for ids in ids.chunks_exact(2048).take(20) {
            table
                .lookup(ids, &prompt, &mut out)
                .expect("ids in the vocabulary");
        }
    });
    report(
        "lookup",
        &format!("prompt of 2048, {case}"),
        "ours",
        "time",
        ns / 20e3,
        "us",
    );
    let stats = table.stats();
    let rate = stats.hits as f64 / (stats.hits + stats.misses).max(1) as f64;
    report("lookup", case, "ours", "hit rate", rate, "share");
}

fn disk_bytes(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
