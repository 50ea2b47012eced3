//! What tokens of a prompt add to a step in which streams decode:
//! `cargo run --release -p scone-model --example step_speed -- MODEL [POSITIONS] [TYPE]...`.
//!
//! Eight streams with so many positions each (200 if not given), and a prompt of which 512 positions are there. Prints one
//! JSON object for each type of weights and number of prompt tokens: the time that a quarter of the
//! steps stay below (a busy machine spoils others), and the same in ordinary steps.

use scone_model::checkpoint::{ModelFiles, load_packed_model};
use scone_model::{Decoder, KV_BLOCK_POSITIONS, KvDtype, KvPool, Segment, WeightType};
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const STREAMS: usize = 8;
const PROMPT_HELD: usize = 512;
const PROMPT_TOKENS: [usize; 11] = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
const ROUNDS: usize = 40;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .ok_or("usage: step_speed MODEL [POSITIONS] [TYPE]...")?;
    let mut only: Vec<String> = arguments.collect();
    let held = only.first().and_then(|first| first.parse().ok());
    only.drain(..usize::from(held.is_some()));
    let held = held.unwrap_or(200);
    for kind in WeightType::ALL {
        if only.is_empty() || only.contains(&kind.to_string()) {
            rayon::scope(|_| measure(Path::new(&model), held, kind))?;
        }
    }
    Ok(())
}

fn measure(model: &Path, held: usize, kind: WeightType) -> Result<()> {
    let decoder = load_packed_model(&ModelFiles::open(model)?, kind)?.decoder;
    let blocks_of = |positions: usize| positions.div_ceil(KV_BLOCK_POSITIONS);
    let each = blocks_of(held + 1);
    let prompt_blocks = blocks_of(PROMPT_HELD + 32);
    let mut pool = decoder.new_pool(KvDtype::F16, STREAMS * each + prompt_blocks)?;
    let streams: Vec<Vec<u32>> = (0..STREAMS)
        .map(|i| (0..each).map(|b| (i * each + b) as u32).collect())
        .collect();
    let prompt: Vec<u32> = (0..prompt_blocks)
        .map(|b| (STREAMS * each + b) as u32)
        .collect();
    let ids: Vec<u32> = (0..held.max(PROMPT_HELD) as u32)
        .map(|i| 7 + i % 200)
        .collect();
    let rows = vec![None; ids.len()];
    let mut fill = |blocks: &[u32], tokens: usize| {
        let segment = Segment {
            blocks,
            held: 0,
            token_ids: &ids[..tokens],
            rows: &rows[..tokens],
            samples: false,
        };
        decoder.step(&mut pool, &[segment])
    };
    for blocks in &streams {
        fill(blocks, held)?;
    }
    fill(&prompt, PROMPT_HELD)?;
    let mut times = vec![Vec::new(); PROMPT_TOKENS.len()];
    for _ in 0..ROUNDS {
        for (tokens, times) in PROMPT_TOKENS.into_iter().zip(&mut times) {
            times.push(step(
                &decoder,
                &mut pool,
                (&streams, held),
                &prompt,
                tokens,
            )?);
        }
    }
    let quarter = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 4]
    };
    let times: Vec<f64> = times.iter_mut().map(quarter).collect();
    for (tokens, time) in PROMPT_TOKENS.into_iter().zip(&times) {
        println!(
            r#"{{"bench":"step_speed","case":"{kind}","prompt_tokens":{tokens},"ms":{:.2},"ordinary_steps":{:.2}}}"#,
            time * 1e3,
            time / times[0]
        );
    }
    Ok(())
}

/// Seconds of one step.
fn step(
    decoder: &Decoder,
    pool: &mut KvPool,
    (streams, held): (&[Vec<u32>], usize),
    prompt: &[u32],
    tokens: usize,
) -> Result<f64> {
    let ids = [11u32; 32];
    let mut segments: Vec<Segment<'_>> = streams
        .iter()
        .map(|blocks| Segment {
            blocks,
            held,
            token_ids: &ids[..1],
            rows: &[None],
            samples: true,
        })
        .collect();
    if tokens > 0 {
        segments.push(Segment {
            blocks: prompt,
            held: PROMPT_HELD,
            token_ids: &ids[..tokens],
            rows: &[None; 32][..tokens],
            samples: false,
        });
    }
    let start = Instant::now();
    decoder.step(pool, &segments)?;
    Ok(start.elapsed().as_secs_f64())
}
