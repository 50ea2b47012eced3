//! How much of the machine a step uses: multiplications and additions of its products, beside what
//! one large product reaches here.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use scone_model::config::Shape;
use scone_model::{FgramModelConfig, ModelConfig, Parameters};

use super::config::Trainable;

/// Operations of the matrix products of a training step, by what they depend on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Flops {
    /// Of one position of the main model.
    position: f64,
    /// Of one f-gram prefix in A.
    node: f64,
}

impl Flops {
    /// Counted from the weights. A product costs two operations a weight forward, as many for the
    /// gradient of its input, and as many for the gradient of a weight that is trained. Attention
    /// counts with the mean length of a causal window; norms and the like do not count, nor does
    /// A's attention over a few tokens.
    pub(super) fn new(
        config: &ModelConfig,
        main: &Parameters,
        fgram: Option<(&FgramModelConfig, &Parameters)>,
        trainable: Trainable,
        sequence: usize,
    ) -> Self {
        let passes = |trained: bool| if trained { 3.0 } else { 2.0 };
        let shape = config.shape();
        let output = (shape.vocab_size * shape.hidden_size) as f64;
        let output_trained = match config.tied() {
            true => trainable.embeddings(),
            false => trainable.rest(),
        };
        let blocks = 2.0 * block_weights(main) * passes(trainable.rest());
        let attention = 3.0 * attention(&shape, sequence);
        let node = fgram.map_or(0.0, |(_, own)| 6.0 * block_weights(own));
        Self {
            position: blocks + attention + 2.0 * output * passes(output_trained),
            node,
        }
    }

    /// Of weights that are all trained, at the longest context of the model; `fgram`: those of A.
    pub(crate) fn of_weights(
        config: &ModelConfig,
        main: &Parameters,
        fgram: Option<&Parameters>,
    ) -> Self {
        let own = fgram.map_or(0.0, |own| 6.0 * block_weights(own));
        let sequence = config.max_positions();
        Self {
            node: own,
            ..Self::new(config, main, None, Trainable::All, sequence)
        }
    }

    /// Operations of a step over so many positions and prefixes.
    pub(crate) fn of(&self, positions: usize, nodes: usize) -> f64 {
        self.position * positions as f64 + self.node * nodes as f64
    }
}

/// Operations of one token in serving: products of blocks and output layer, forward.
pub(crate) fn inference(config: &ModelConfig, main: &Parameters) -> f64 {
    let shape = config.shape();
    2.0 * (block_weights(main) + (shape.vocab_size * shape.hidden_size) as f64)
}

/// Weights of the matrices in blocks: those whose names have a number in them.
fn block_weights(parameters: &Parameters) -> f64 {
    let in_block = |name: &str| name.split('.').any(|part| part.parse::<usize>().is_ok());
    let matrices = parameters
        .iter()
        .filter(|(name, tensor)| in_block(name) && tensor.rank() == 2);
    matrices.map(|(_, tensor)| tensor.elem_count() as f64).sum()
}

/// Scores and mixing of one position, forward; half the window is visible on average.
fn attention(shape: &Shape, sequence: usize) -> f64 {
    let width = (shape.num_heads * shape.head_dim) as f64;
    2.0 * 2.0 * width * sequence as f64 / 2.0 * shape.num_layers as f64
}

/// Operations a second of the best of a few large f32 products on `device`.
pub(super) fn peak(device: &Device) -> Result<f64> {
    let (size, rounds) = if device.is_cpu() { (512, 8) } else { (4096, 4) };
    let matrix = Tensor::ones((size, size), DType::F32, device)?;
    let mut best = 0.0f64;
    for _ in 0..rounds {
        let started = Instant::now();
        let product = matrix.matmul(&matrix)?;
        // Reading a number back waits for the device.
        product.get(0)?.get(0)?.to_scalar::<f32>()?;
        let seconds = started.elapsed().as_secs_f64().max(1e-9);
        best = best.max(2.0 * (size as f64).powi(3) / seconds);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use scone_model::config::LlamaConfig;
    use scone_model::{init_fgram_parameters, init_parameters};

    use super::*;

    #[test]
    fn frozen_weights_cost_two_thirds() {
        // Two blocks of 4·8·8 + 3·8·12 weights, an output layer of 11·8.
        let config = ModelConfig::Llama(LlamaConfig::new(11, 8, 2, 2, 12, 8));
        let own = FgramModelConfig {
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: None,
            intermediate_size: 12,
            final_norm: false,
            max_n: 3,
        };
        let main = init_parameters(&config, 1).unwrap();
        let a = init_fgram_parameters(&own, &config, 1).unwrap();
        let block = 4.0 * 64.0 + 3.0 * 96.0;
        let attention = 3.0 * 2.0 * 2.0 * 8.0 * 3.0 * 2.0;
        let of = |trainable| Flops::new(&config, &main, Some((&own, &a)), trainable, 6);
        let all = of(Trainable::All);
        assert_eq!(all.of(1, 0), 6.0 * (2.0 * block + 88.0) + attention);
        assert_eq!(all.of(0, 1), 6.0 * block);
        let adapter = of(Trainable::FgramModel);
        assert_eq!(adapter.of(1, 0), 4.0 * (2.0 * block + 88.0) + attention);
        assert_eq!(adapter.of(0, 2), 12.0 * block);
        let embeddings = of(Trainable::Embeddings);
        assert_eq!(embeddings.of(1, 0), 8.0 * block + 528.0 + attention);
    }
}
