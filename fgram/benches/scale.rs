//! How a mapped table grows: building, opening and looking rows up at 10 thousand to millions of
//! rows of 1 KiB, at uniformly random places. Prints one JSON object a line:
//! `cargo bench -p scone-fgram --bench scale [-- ROWS…]`. Warm: every page was read before.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::{BuildOptions, LookupResult, Span, build_table};
use scone_fgram::{Error, FgramSet, NGram, SetHeader, StoreKind, Table, TableOptions};

/// Ids: pairs of them make the f-grams.
const VOCAB: u32 = 1 << 15;
const DIM: usize = 512;
const LOOKUPS: usize = 200_000;

fn main() {
    // `cargo test --benches` and `cargo bench` pass flags of their own.
    let mut sizes: Vec<u32> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    if sizes.is_empty() {
        sizes = vec![10_000, 100_000, 1_000_000];
    }
    for rows in sizes {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let case = format!("{rows} rows of 1 KiB");
        build(dir.path(), rows, &case);
        look_up(dir.path(), rows, &case);
    }
}

fn report(case: &str, subject: &str, metric: &str, value: f64, unit: &str) {
    println!(
        "{{\"bench\":\"scale\",\"case\":\"{case}\",\"subject\":\"{subject}\",\
         \"metric\":\"{metric}\",\"value\":{value:.4},\"unit\":\"{unit}\"}}"
    );
}

/// The f-gram of a row: different rows, different pairs, spread over the vocabulary.
fn pair(row: u32) -> [u32; 2] {
    let mixed = row.wrapping_mul(0x9e37_79b1) & (VOCAB * VOCAB - 1);
    [mixed / VOCAB, mixed % VOCAB]
}

fn build(dir: &Path, rows: u32, case: &str) {
    let header = SetHeader {
        vocab_size: VOCAB,
        max_n: 5,
        tokenizer_hash: [0; 32],
        min_count: 1,
    };
    let fgrams = (0..rows).filter_map(|row| Some((NGram::from_slice(&pair(row))?, 1)));
    let set = FgramSet::new(header, fgrams.collect()).expect("pairs are closed");
    let options = BuildOptions {
        store: StoreKind::Mapped,
        dim: DIM,
        model_hash: "00".repeat(32),
        ..BuildOptions::default()
    };
    let numbers = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch
            .iter()
            .for_each(|ids| out.extend((0..DIM).map(|i| (ids[0] % 1000 + i as u32) as f32)));
        Ok::<(), Error>(())
    };
    let start = Instant::now();
    let manifest = build_table(dir, &set, &options, numbers, |_, _| {}).expect("a new table");
    let rate = f64::from(rows) / start.elapsed().as_secs_f64();
    report(case, "mapped", "build", rate, "rows/s");
    let disk: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let raw = manifest.rows * manifest.row_bytes() as u64;
    let share = disk as f64 / raw as f64;
    report(case, "mapped", "disk", share, "x the raw rows");
}

fn look_up(dir: &Path, rows: u32, case: &str) {
    let start = Instant::now();
    let table = Table::open(dir, &TableOptions::default()).expect("the table just built");
    let ms = start.elapsed().as_secs_f64() * 1e3;
    report(case, "mapped", "open", ms, "ms");
    let bytes = table.index().index_bytes() as f64 / f64::from(rows);
    report(case, "mapped", "index", bytes, "bytes/key");
    let start = Instant::now();
    table.verify(|_, _| {}).expect("a sound table");
    let seconds = start.elapsed().as_secs_f64();
    report(
        case,
        "mapped",
        "verify",
        f64::from(rows) / seconds,
        "rows/s",
    );

    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let wanted: Vec<u32> = (0..LOOKUPS).map(|_| rng.random_range(0..rows)).collect();
    let ids: Vec<[u32; 2]> = wanted.iter().map(|&row| pair(row)).collect();
    let ns = best_ns(|| {
        for pair in &ids {
            black_box(table.index().longest(pair));
        }
    });
    report(
        case,
        "mapped",
        "match, one by one",
        ns / LOOKUPS as f64,
        "ns/position",
    );
    let heads: Vec<&[u32]> = ids.iter().map(|pair| &pair[..]).collect();
    let mut found = Vec::with_capacity(LOOKUPS);
    let ns = best_ns(|| {
        found.clear();
        table.index().longest_each(black_box(&heads), &mut found);
    });
    report(case, "mapped", "match", ns / LOOKUPS as f64, "ns/position");
    for batch in [32, 512] {
        let spans = vec![
            Span {
                context: 1,
                answers: 1,
            };
            batch
        ];
        let mut out = LookupResult::default();
        let ns = best_ns(|| {
            for ids in ids.chunks_exact(batch) {
                let found = table.lookup(ids.as_flattened(), &spans, &mut out);
                found.expect("ids in the vocabulary");
            }
        });
        let a_row = ns / (LOOKUPS / batch * batch) as f64;
        report(
            case,
            "mapped",
            &format!("batch of {batch}"),
            a_row,
            "ns/row",
        );
    }
    // A second copy of more rows would push the first out of memory.
    if rows <= 4_000_000 {
        memcpy(&table, rows, &wanted, case);
    }
}

/// The same rows from one buffer into another, without a look-up: the limit.
fn memcpy(table: &Table, rows: u32, wanted: &[u32], case: &str) {
    let row_bytes = table.manifest().row_bytes();
    let from = vec![1u8; rows as usize * row_bytes];
    let mut to = Vec::with_capacity(512 * row_bytes);
    let ns = best_ns(|| {
        for batch in wanted.chunks(512) {
            to.clear();
            for &row in batch {
                to.extend_from_slice(&from[row as usize * row_bytes..][..row_bytes]);
            }
            black_box(&to);
        }
    });
    report(
        case,
        "memcpy",
        "batch of 512",
        ns / wanted.len() as f64,
        "ns/row",
    );
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
