//! Speed of the products that serve, at the shapes of a model of 135M parameters (d = 576):
//! `cargo run --release -p scone-model --example matmul_speed`.
//!
//! Prints one JSON object a case: a type of weights, a shape and a number of rows; the time that a
//! tenth of the products stay below (a busy machine spoils the others) in GFLOP/s and in GB/s of
//! weights, and that in relation to a plain streaming read of memory by all threads. Each round
//! walks through so many copies of the weights that they come from memory, as in a model. Arguments: a part of the case's
//! name to run only that, and the number of rounds.

use rayon::prelude::*;
use scone_model::{PackedWeights, Result, WeightType};
use std::hint::black_box;
use std::time::Instant;

const SHAPES: [[usize; 2]; 5] = [
    [576, 960],
    [576, 576],
    [576, 3072],
    [1536, 576],
    [576, 49152],
];
/// Bytes of weights of a round: more than the caches hold.
const ROUND_BYTES: usize = 150 << 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next().unwrap_or_default();
    let rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(10);
    // On a thread of the pool, as a step of the model is.
    rayon::scope(|_| {
        let memory = read_speed();
        println!(
            r#"{{"bench":"matmul_speed","case":"memory read","value":{:.1},"unit":"GB/s"}}"#,
            memory / 1e9
        );
        for kind in WeightType::ALL {
            for shape in SHAPES {
                let mut weights = None;
                for rows in [1, 2, 4, 8, 32, 256] {
                    let name = format!("{kind} {}x{} m={rows}", shape[0], shape[1]);
                    if name.contains(&only) {
                        if weights.is_none() {
                            weights = Some(copies(kind, shape)?);
                        }
                        let weights = weights.as_deref_mut().unwrap_or_default();
                        case(&name, shape, rows, weights, rounds, memory)?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn copies(kind: WeightType, [inputs, outputs]: [usize; 2]) -> Result<Vec<PackedWeights>> {
    let values: Vec<f32> = (0..inputs * outputs)
        .map(|i| (i as f32 * 0.37).sin() * 0.05)
        .collect();
    let first = PackedWeights::new(kind, &values, inputs)?;
    let more = ROUND_BYTES / first.bytes();
    let mut copies = vec![first];
    for _ in 0..more.max(1) {
        copies.push(PackedWeights::new(kind, &values, inputs)?);
    }
    Ok(copies)
}

fn case(
    name: &str,
    [inputs, outputs]: [usize; 2],
    rows: usize,
    copies: &mut [PackedWeights],
    rounds: usize,
    memory: f64,
) -> Result<()> {
    let x: Vec<f32> = (0..rows * inputs)
        .map(|i| (i as f32 * 0.71).cos())
        .collect();
    let mut out = vec![0.0; rows * outputs];
    let count = if rows < 32 {
        copies.len()
    } else {
        copies.len().min(8)
    };
    let copies = &mut copies[..count];
    let mut times = Vec::with_capacity(rounds * count);
    for _ in 0..rounds {
        for weights in &mut *copies {
            let start = Instant::now();
            weights.product(&x, &mut out)?;
            black_box(&mut out);
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let best = times[times.len() / 10];
    let flops = 2.0 * (rows * inputs * outputs) as f64 / best;
    let bytes = copies[0].bytes() as f64 / best;
    println!(
        r#"{{"bench":"matmul_speed","case":"{name}","kernels":"{}","gflops":{:.1},"weights_gbs":{:.1},"of_memory_read":{:.2},"us":{:.1}}}"#,
        copies[0].kernels(),
        flops / 1e9,
        bytes / 1e9,
        bytes / memory,
        best * 1e6
    );
    Ok(())
}

/// Bytes a second of a plain read by all threads, best of some.
fn read_speed() -> f64 {
    let numbers = vec![1u64; 64 << 20];
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        // Pieces of some milliseconds, so that one of them is left in peace on a busy machine.
        for piece in numbers.chunks(4 << 20) {
            let start = Instant::now();
            let sum: u64 = piece
                .par_chunks(1 << 15)
                .map(|part| part.iter().fold(0u64, |a, b| a.wrapping_add(*b)))
                .sum();
            black_box(sum);
            best = best.min(start.elapsed().as_secs_f64() / (piece.len() * 8) as f64);
        }
    }
    1.0 / best
}
