//! A table of a size at which everything that is held twice shows: built, then asked for rows, each in
//! a process of its own, so that the memory of each can be told. `benchmarks/large-table/run.py` runs it.
//!
//! `cargo bench -p scone-fgram --bench large -- build DIR ROWS` and `… -- look-up DIR ROWS`; int4 rows of
//! 128 elements. Without arguments it does both with a few rows, to see that it works.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::table::{BuildOptions, LookupResult, Span, build_table};
use scone_fgram::{Error, FgramSet, RowDtype, StoreKind, Table, TableOptions};
use sha2::{Digest as _, Sha256};

/// Elements of a row.
const DIM: usize = 128;

/// K of the set. Its f-grams have 2 to 4 ids.
const MAX_N: u8 = 5;
const LONGEST: u32 = 4;

/// That of the GPT-2 tokenizer.
const VOCAB: u32 = 50_257;

/// Rows asked for in a look-up: a lone sequence, a decode step, a piece of a prompt.
const BATCHES: [usize; 3] = [1, 32, 512];

/// Look-ups for each cold figure; of single rows eight times as many.
const COLD_LOOKUPS: usize = 64;

/// Rows asked for, for each warm figure.
const WARM_ROWS: usize = 50_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let plain: Vec<&str> = args.iter().map(String::as_str).collect();
    let plain: Vec<&str> = plain.into_iter().filter(|arg| *arg != "--bench").collect();
    match plain[..] {
        ["build", dir, rows] => build(dir.as_ref(), rows.parse().expect("a number of rows")),
        ["look-up", dir, rows] => look_up(dir.as_ref(), rows.parse().expect("a number of rows")),
        _ => {
            let home = tempfile::tempdir().expect("a temporary folder");
            build(home.path(), 3000);
            look_up(home.path(), 3000);
        }
    }
}

fn report(metric: &str, value: f64, unit: &str) {
    println!(
        "{{\"bench\":\"large\",\"metric\":\"{metric}\",\"value\":{value:.4},\"unit\":\"{unit}\"}}"
    );
}

/// Every n-gram of 2 to 4 of the first letters of an alphabet, as many as are asked for, shorter ones
/// first: closed, and any of them known by its number.
struct Grams {
    letters: u32,
    count: u32,
}

impl Grams {
    fn new(count: u32) -> Self {
        let all = |letters: u64| (2..=LONGEST).map(|n| letters.pow(n)).sum::<u64>();
        let letters = (2..).find(|&letters| all(letters) >= u64::from(count));
        Self {
            letters: letters.expect("some alphabet is large enough") as u32,
            count,
        }
    }

    /// The ids of a gram, by its rank.
    fn ids(&self, rank: u32, out: &mut Vec<u32>) {
        let mut rest = rank;
        let mut n = 2;
        while n < LONGEST && rest >= self.letters.pow(n) {
            rest -= self.letters.pow(n);
            n += 1;
        }
        out.clear();
        for place in (0..n).rev() {
            let letter = rest / self.letters.pow(place) % self.letters;
            // Spread over the vocabulary, in order.
            out.push(letter * (VOCAB / self.letters));
        }
    }

    /// How many grams of `n` ids there are.
    fn of_length(&self, n: u32) -> u64 {
        let shorter: u64 = (2..n).map(|n| u64::from(self.letters).pow(n)).sum();
        let all = u64::from(self.letters).pow(n);
        all.min(u64::from(self.count).saturating_sub(shorter))
    }

    /// The file of the set, as docs/formats.md has it: it is larger than what the library would make in
    /// this memory.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut out = Sealing {
            to: BufWriter::new(File::create(path)?),
            hash: Sha256::new(),
        };
        out.put(b"SCONEFGS")?;
        out.put(&1u32.to_le_bytes())?;
        out.put(&VOCAB.to_le_bytes())?;
        out.put(&u32::from(MAX_N).to_le_bytes())?;
        out.put(&1u64.to_le_bytes())?;
        out.put(&[0; 32])?;
        for n in 2..=u32::from(MAX_N) {
            let total = if n <= LONGEST { self.of_length(n) } else { 0 };
            out.put(&total.to_le_bytes())?;
        }
        out.put(&u64::from(self.count).to_le_bytes())?;
        let (mut ids, mut record) = (Vec::new(), Vec::new());
        for rank in 0..self.count {
            self.ids(rank, &mut ids);
            record.clear();
            varint(ids.len() as u64, &mut record);
            ids.iter()
                .for_each(|&id| varint(u64::from(id), &mut record));
            varint(1, &mut record);
            // How often it is served has nothing to do with its ids.
            varint(mixed(u64::from(rank)) >> 48, &mut record);
            out.put(&record)?;
        }
        let digest = out.hash.finalize();
        out.to.write_all(&digest)?;
        out.to.flush()
    }
}

struct Sealing {
    to: BufWriter<File>,
    hash: Sha256,
}

impl Sealing {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.to.write_all(bytes)
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn mixed(value: u64) -> u64 {
    let value = (value ^ 0x5c0e).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ value >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The numbers of a row: a function of the f-gram.
fn numbers(ids: &[u32], out: &mut Vec<f32>) {
    let seed = ids.iter().fold(1, |seed, &id| mixed(seed ^ u64::from(id)));
    let number = |i: u64| (mixed(seed ^ i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    out.extend((0..DIM as u64).map(number));
}

fn build(dir: &Path, rows: u32) {
    let path = dir.join("fgrams.bin");
    let began = Instant::now();
    Grams::new(rows).write(&path).expect("a set is written");
    report("write the set", began.elapsed().as_secs_f64(), "s");
    let began = Instant::now();
    let set = FgramSet::read(&path).expect("a set that is closed");
    report("read the set", began.elapsed().as_secs_f64(), "s");
    let options = BuildOptions {
        store: StoreKind::Mapped,
        dtype: RowDtype::Int4,
        dim: DIM,
        model_hash: "00".repeat(32),
        ..BuildOptions::default()
    };
    let began = Instant::now();
    let rows = |batch: &[&[u32]], out: &mut Vec<f32>| {
        batch.iter().for_each(|ids| numbers(ids, out));
        Ok::<(), Error>(())
    };
    build_table(&dir.join("table"), &set, &options, rows, |_, _| {}).expect("a table");
    report("build the table", began.elapsed().as_secs_f64(), "s");
}

fn look_up(dir: &Path, rows: u32) {
    let options = TableOptions {
        hot_bytes: 0,
        ..TableOptions::default()
    };
    let began = Instant::now();
    let table = Table::open(&dir.join("table"), &options).expect("a table");
    report("open", began.elapsed().as_secs_f64(), "s");
    let grams = Grams::new(rows);
    for batch in BATCHES {
        // The set is larger than what is asked for here: hardly a page is asked for twice.
        let count = COLD_LOOKUPS * batch.max(8);
        let us = ask(&table, &grams, batch, count, batch as u64);
        report(&format!("cold, batch {batch}"), us, "us/row");
    }
    for batch in BATCHES {
        // The same rows again and again, so that they are warm whatever the memory is.
        ask(&table, &grams, batch, WARM_ROWS, 0);
        let us = ask(&table, &grams, batch, WARM_ROWS, 0);
        report(&format!("warm, batch {batch}"), us, "us/row");
    }
}

/// Asks for `count` rows drawn by `seed`; returns the microseconds a row took.
fn ask(table: &Table, grams: &Grams, batch: usize, count: usize, seed: u64) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut ids, mut one, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    let mut result = LookupResult::default();
    let (mut expected, mut numbers_of_one) = (Vec::new(), Vec::new());
    let mut took = 0.0;
    for step in 0..count.div_ceil(batch) {
        ids.clear();
        spans.clear();
        for _ in 0..batch {
            grams.ids(rng.random_range(0..grams.count), &mut one);
            ids.extend_from_slice(&one);
            spans.push(Span {
                context: one.len() as u32 - 1,
                answers: 1,
            });
        }
        let began = Instant::now();
        table.lookup(&ids, &spans, &mut result).expect("rows");
        took += began.elapsed().as_secs_f64();
        black_box(&result);
        if step == 0 {
            assert_eq!(result.row_index.len(), batch, "every f-gram is found");
            expected.clear();
            numbers_of_one.clear();
            numbers(&one, &mut numbers_of_one);
            let encoded = RowDtype::Int4.encode(&numbers_of_one, &mut expected);
            encoded.expect("finite numbers");
            let index = result.row_index[batch - 1] as usize;
            let row = &result.rows[index * expected.len()..][..expected.len()];
            assert_eq!(row, expected, "the row of {one:?}");
        }
    }
    took * 1e6 / (count.div_ceil(batch) * batch) as f64
}
