//! Training speed on random tokens: `cargo run --release -p scone-model --example train_speed`.
//!
//! Prints one JSON object a case: plain and SCONE training steps (forward and backward, without an
//! optimiser) of 16 sequences of 128 tokens; SCONE's also with a main model that is not trained
//! (`frozen`) and with blocks that are computed twice to save memory (`recompute`); tokens a second of wall time, and of processor time
//! (which a busy machine does not spoil). Arguments: a part of the case's name to run only that,
//! and the number of steps.

use candle_core::{Device, Var};
use scone_model::config::LlamaConfig;
use scone_model::{
    Decoder, FgramModel, FgramModelConfig, ModelConfig, Parameters, PrefixTree, Result,
    init_fgram_parameters, init_parameters, var_builder,
};
use std::sync::Arc;
use std::time::Instant;

const BATCH: usize = 16;
const LEN: usize = 128;
const VOCAB: usize = 2048;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next().unwrap_or_default();
    let steps = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(20);
    for (width, layers, heads) in [(128, 2, 4), (160, 4, 5), (192, 4, 6)] {
        for (distinct, how) in [
            (0, How::Whole),
            (1500, How::Whole),
            (1500, How::Frozen),
            (1500, How::Recompute),
        ] {
            let name = format!("d={width} layers={layers} distinct_fgrams={distinct}{how}");
            if name.contains(&only) {
                case(&name, [width, layers, heads, distinct], how, steps)?;
            }
        }
    }
    Ok(())
}

/// How a step is made.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Whole,
    /// Only the f-gram model is trained.
    Frozen,
    Recompute,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Whole => "",
            Self::Frozen => " frozen",
            Self::Recompute => " recompute",
        })
    }
}

/// Seconds of processor time of all threads, where /proc has it.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    ticks(12)
        .zip(ticks(13))
        .map_or(f64::NAN, |(user, system)| (user + system) / 100.0)
}

/// The parameters as variables, so that gradients are kept.
fn variables(parameters: Parameters) -> Result<Parameters> {
    parameters
        .into_iter()
        .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?.as_tensor().clone())))
        .collect()
}

fn case(
    name: &str,
    [width, layers, heads, distinct]: [usize; 4],
    how: How,
    steps: usize,
) -> Result<()> {
    let config = LlamaConfig::new(VOCAB, width, layers, heads, width * 8 / 3, 512);
    let config = ModelConfig::Llama(config);
    let parameters = match how {
        How::Frozen => init_parameters(&config, 1)?,
        How::Whole | How::Recompute => variables(init_parameters(&config, 1)?)?,
    };
    let mut decoder = Decoder::load(&config, var_builder(&parameters, &Device::Cpu))?;
    let fgram_config = FgramModelConfig {
        num_hidden_layers: 2,
        num_attention_heads: heads,
        num_key_value_heads: None,
        intermediate_size: width * 8 / 3,
        final_norm: false,
        max_n: 5,
    };
    let parameters = variables(init_fgram_parameters(&fgram_config, &config, 1)?)?;
    let mut model = FgramModel::load(
        &fgram_config,
        &config,
        var_builder(&parameters, &Device::Cpu),
    )?;
    if how == How::Recompute {
        decoder.recompute_blocks()?;
        model.recompute_blocks()?;
    }
    let fgrams = fgrams(distinct);
    let slices: Vec<&[u32]> = fgrams.iter().map(Vec::as_slice).collect();
    let index: Vec<u32> = (0..(BATCH * LEN) as u32)
        .map(|i| match distinct {
            0 => i * 31 % VOCAB as u32,
            n => VOCAB as u32 + i * 31 % n as u32,
        })
        .collect();
    let step = || -> Result<f32> {
        let rows = match distinct {
            0 => None,
            _ => {
                let tree = Arc::new(PrefixTree::new(&slices)?);
                Some(model.forward_tree(decoder.token_embedding(), &tree)?)
            }
        };
        let embeds = decoder.input_embeddings(rows.as_ref(), &index)?;
        let hidden = decoder.forward(&embeds.reshape((BATCH, LEN, width))?)?;
        let targets: Vec<u32> = (0..(BATCH * LEN) as u32)
            .map(|i| i * 17 % VOCAB as u32)
            .collect();
        let loss = decoder.loss(&hidden, &targets)?;
        loss.backward()?;
        Ok(loss.to_scalar::<f32>()?)
    };
    step()?;
    let (start, before) = (Instant::now(), processor_seconds());
    for _ in 0..steps {
        step()?;
    }
    let tokens = (BATCH * LEN * steps) as f64;
    for (metric, seconds) in [
        ("throughput", start.elapsed().as_secs_f64()),
        ("throughput_per_processor", processor_seconds() - before),
    ] {
        println!(
            r#"{{"bench":"train_speed","case":"{name}","subject":"scone-model","metric":"{metric}","value":{:.0},"unit":"tokens/s"}}"#,
            tokens / seconds
        );
    }
    Ok(())
}

/// Pseudo-random f-grams of 2 to 5 tokens, short ones more often, beginnings shared.
fn fgrams(n: usize) -> Vec<Vec<u32>> {
    let mut state = 1u64;
    let mut next = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 33) % below) as u32
    };
    (0..n)
        .map(|_| {
            let len = [2, 2, 2, 2, 2, 2, 3, 3, 4, 5][next(10) as usize];
            let first = next(600);
            std::iter::once(first)
                .chain((1..len).map(|_| next(60)))
                .collect()
        })
        .collect()
}
