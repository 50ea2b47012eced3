//! Matching and tables, on streams with the skew of text. Prints one JSON object a line:
//! `cargo bench -p scone-fgram [-- ROWS [DIM]]`. Everything runs warm (page cache, after one pass).

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::{BuildOptions, HOT_ROW_OVERHEAD, LookupResult, Span, build_table};
use scone_fgram::{Error, FgramSet, NGram, RowDtype, SetHeader, StoreKind, Table, TableOptions};

const VOCAB: u32 = 4096;
const MAX_N: u8 = 5;

fn main() {
    // `cargo test --benches` and `cargo bench` pass flags of their own.
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let rows = numbers.next().unwrap_or(50_000);
    let dim = numbers.next().unwrap_or(128);
    let corpus = skewed(1, rows.max(250_000) * 4);
    let held_out = skewed(2, 200_000);
    let set = mine(&corpus, rows);
    matcher(&set, &held_out);
    hash_map(&set, &held_out);
    for store in StoreKind::ALL {
        table(&set, &held_out, store, dim);
    }
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
        "matching",
        &case,
        "Matcher",
        "time",
        ns / ids.len() as f64,
        "ns/position",
    );
    report("matching", &case, "Matcher", "matched", matched, "share");
    let bytes = matcher.memory_bytes() as f64 / set.len() as f64;
    report("matching", &case, "Matcher", "memory", bytes, "bytes/key");
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
        "matching",
        &case,
        "std HashMap",
        "time",
        ns / ids.len() as f64,
        "ns/position",
    );
}

fn table(set: &FgramSet, ids: &[u32], store: StoreKind, dim: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = BuildOptions {
        store,
        dim,
        dtype: RowDtype::F16,
        model_hash: "00".repeat(32),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend((0..dim).map(|i| (ids[0] + i as u32) as f32)));
        Ok::<(), Error>(())
    };
    let start = Instant::now();
    let manifest = build_table(dir.path(), set, &options, rows, |_, _| {}).expect("a new table");
    let case = format!("{} rows of {} bytes", manifest.rows, manifest.row_bytes());
    let rate = manifest.rows as f64 / start.elapsed().as_secs_f64();
    let subject = store.name();
    report("table", &case, subject, "build", rate, "rows/s");
    let raw = (manifest.rows * manifest.row_bytes() as u64) as f64;
    let disk = disk_bytes(dir.path()) as f64 / raw;
    report("table", &case, subject, "disk", disk, "x the raw rows");
    for share in [0u64, 20, 100] {
        let all = manifest.rows * (manifest.row_bytes() as u64 + HOT_ROW_OVERHEAD);
        let open = TableOptions {
            hot_bytes: all * share / 100,
            hot_set_on_mapped: share > 0,
            ..TableOptions::default()
        };
        let start = Instant::now();
        let table = Table::open(dir.path(), &open).expect("the table just built");
        let open_ms = start.elapsed().as_secs_f64() * 1e3;
        let subject = format!("{store}, {share}% hot");
        report("table", &case, &subject, "open", open_ms, "ms");
        if share == 0 && store == StoreKind::Mapped {
            index(&table, ids);
            memcpy(manifest.rows as usize, manifest.row_bytes(), &case);
        }
        lookups(&table, &case, &subject, ids);
    }
}

fn index(table: &Table, ids: &[u32]) {
    let index = table.index();
    let ns = best_ns(|| {
        (1..=ids.len()).for_each(|end| {
            let found = index.longest(&ids[end.saturating_sub(8)..end]);
            black_box(found.expect("sound keys"));
        });
    });
    let case = format!("{} f-grams", index.len());
    let time = ns / ids.len() as f64;
    report("matching", &case, "KeyIndex", "time", time, "ns/position");
    let bytes = index.index_bytes() as f64 / index.len() as f64;
    report("matching", &case, "KeyIndex", "memory", bytes, "bytes/key");
}

/// Rows at random offsets of one buffer into another: the limit of any store.
fn memcpy(rows: usize, row_bytes: usize, case: &str) {
    let from = vec![1u8; rows * row_bytes];
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let rows_asked: Vec<usize> = (0..100_000).map(|_| rng.random_range(0..rows)).collect();
    let mut to = Vec::with_capacity(512 * row_bytes);
    let ns = best_ns(|| {
        for batch in rows_asked.chunks(512) {
            to.clear();
            for row in batch {
                to.extend_from_slice(&from[row * row_bytes..][..row_bytes]);
            }
            black_box(&to);
        }
    });
    let time = ns / rows_asked.len() as f64;
    report("rows", case, "memcpy, uniform", "time", time, "ns/row");
}

fn lookups(table: &Table, case: &str, subject: &str, ids: &[u32]) {
    let mut out = LookupResult::default();
    // Decode steps of some sequences, each with 4 ids of context.
    for batch in [1, 32, 512] {
        let step = vec![
            Span {
                context: 4,
                answers: 1,
            };
            batch
        ];
        let window = |at: usize| ids[at * 29 % (ids.len() - 5)..][..5].iter().copied();
        let steps: Vec<Vec<u32>> = (0..6400 / batch)
            .map(|s| (0..batch).flat_map(|b| window(s * batch + b)).collect())
            .collect();
        let mut rows = 0;
        let ns = best_ns(|| {
            rows = 0;
            for ids in &steps {
                let answer = table.lookup(ids, &step, &mut out);
                answer.expect("ids in the vocabulary");
                rows += out.rows.len() / table.manifest().row_bytes();
            }
        });
        let case = format!("step of {batch}, {case}");
        let time = ns / steps.len() as f64 / 1e3;
        report("lookup", &case, subject, "time", time, "us");
        let a_row = ns / rows as f64;
        report("lookup", &case, subject, "a row", a_row, "ns/row");
    }
    let prompt = [Span {
        context: 0,
        answers: 2048,
    }];
    let ns = best_ns(|| {
        for ids in ids.chunks_exact(2048).take(20) {
            let answer = table.lookup(ids, &prompt, &mut out);
            answer.expect("ids in the vocabulary");
        }
    });
    let prompts = format!("prompt of 2048, {case}");
    report("lookup", &prompts, subject, "time", ns / 20e3, "us");
    let stats = table.stats();
    let rate = stats.hits as f64 / (stats.hits + stats.misses).max(1) as f64;
    report("lookup", case, subject, "hit rate", rate, "share");
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
