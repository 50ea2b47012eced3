//! How long a model takes to load for serving on a CPU, and what its base hash adds:
//! `cargo run --release -p scone-model --example load_speed -- MODEL [TYPE]...`.
//!
//! Prints one JSON object for each type of weights: the fastest of some loads without the hash and of
//! as many with it, in turns, files in the page cache.

use scone_model::WeightType;
use scone_model::checkpoint::{ModelFiles, load_packed_model};
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .ok_or("usage: load_speed MODEL [TYPE]...")?;
    let only: Vec<String> = arguments.collect();
    for kind in WeightType::ALL {
        if only.is_empty() || only.contains(&kind.to_string()) {
            measure(Path::new(&model), kind)?;
        }
    }
    Ok(())
}

fn measure(model: &Path, kind: WeightType) -> Result<()> {
    let (mut plain, mut hashed) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        plain = plain.min(seconds(ModelFiles::open(model)?, kind)?);
        hashed = hashed.min(seconds(ModelFiles::open(model)?.hashing(), kind)?);
    }
    println!(r#"{{"weights": "{kind}", "load_s": {plain:.3}, "with_base_hash_s": {hashed:.3}}}"#);
    Ok(())
}

fn seconds(files: ModelFiles, kind: WeightType) -> Result<f64> {
    let began = Instant::now();
    load_packed_model(&files, kind)?;
    Ok(began.elapsed().as_secs_f64())
}
