//! The main model.

use crate::config::{Family, ModelConfig, Shape};
use crate::error::{Error, Result};
use crate::layers::{Block, Blocks, Linear, Norm, Positions, Weights};
use crate::loss;
use crate::ops::{self, WeightLayout};
use candle_core::Tensor;
use candle_nn::VarBuilder;

/// A decoder-only transformer over input embeddings.
///
/// Cloning is cheap and shares the weights. With a gpt2 model the learned position embedding is
/// added in here: what comes in replaces the token embedding only.
#[derive(Clone, Debug)]
pub struct Decoder {
    shape: Shape,
    token_embedding: Tensor,
    position_embedding: Option<Tensor>,
    blocks: Blocks,
    norm: Norm,
    /// Output layer, `(V, D)`; the token embedding when tied.
    output: Linear,
}

impl Decoder {
    /// Builds the model from the tensors of a checkpoint, under Hugging Face's names; gpt2's with
    /// or without the prefix `transformer.`.
    ///
    /// The tensors are shared, not copied: a model built over `candle` variables trains them.
    ///
    /// # Errors
    /// A config that does not validate; a tensor that is missing or has another shape.
    pub fn load(config: &ModelConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.validate()?;
        let shape = config.shape();
        let root = Weights::new(vb);
        let body = match shape.family {
            Family::Llama => root.below("model"),
            Family::Gpt2 if root.below("transformer").contains("wte.weight") => {
                root.below("transformer")
            }
            Family::Gpt2 => root.clone(),
        };
        let (embedding, layers, norm) = match shape.family {
            Family::Llama => ("embed_tokens.weight", "layers", "norm"),
            Family::Gpt2 => ("wte.weight", "h", "ln_f"),
        };
        let table = [shape.vocab_size, shape.hidden_size];
        let token_embedding = body.get(&table, embedding)?;
        let position_embedding = match shape.family {
            Family::Llama => None,
            Family::Gpt2 => {
                Some(body.get(&[shape.max_positions, shape.hidden_size], "wpe.weight")?)
            }
        };
        let output = if config.tied() {
            token_embedding.clone()
        } else {
            root.get(&table, "lm_head.weight")?
        };
        let blocks = Blocks::load(&shape, &body.below(layers))?;
        Ok(Self {
            norm: Norm::load(&shape, &body.below(norm))?,
            shape,
            token_embedding,
            position_embedding,
            blocks,
            output: Linear {
                weight: output,
                bias: None,
                layout: WeightLayout::OutIn,
            },
        })
    }

    /// The sizes of the model.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// T, `(V, D)`.
    pub fn token_embedding(&self) -> &Tensor {
        &self.token_embedding
    }

    pub(crate) fn position_embedding(&self) -> Option<&Tensor> {
        self.position_embedding.as_ref()
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        self.blocks.as_slice()
    }

    pub(crate) fn norm(&self) -> &Norm {
        &self.norm
    }

    pub(crate) fn output(&self) -> &Linear {
        &self.output
    }

    /// Hidden states after the final norm, `(B, T, D)` to `(B, T, D)`, positions 0 to T-1.
    /// Gradients reach the embeddings and every weight.
    ///
    /// # Errors
    /// A shape that does not fit the model, or more positions than it has.
    pub fn forward(&self, embeds: &Tensor) -> Result<Tensor> {
        let (batch, len, width) = embeds.dims3()?;
        if width != self.shape.hidden_size || len > self.shape.max_positions {
            return Err(Error::Argument(format!(
                "embeddings of shape {:?} do not fit a model of width {} and {} positions",
                embeds.dims(),
                self.shape.hidden_size,
                self.shape.max_positions
            )));
        }
        let embeds = match &self.position_embedding {
            Some(table) => embeds.broadcast_add(&table.narrow(0, 0, len)?)?,
            None => embeds.clone(),
        };
        let positions = Positions::Sequences { batch, len };
        let x = embeds.reshape((batch * len, width))?;
        let x = self.blocks.forward(&x, &positions)?;
        Ok(self.norm.forward(&x)?.reshape((batch, len, width))?)
    }

    /// Logits of hidden states: `(.., D)` to `(.., V)`.
    ///
    /// # Errors
    /// A width other than the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut dims = hidden.dims().to_vec();
        let logits = self.output.forward(&hidden.flatten_to(dims.len() - 2)?)?;
        if let Some(last) = dims.last_mut() {
            *last = self.shape.vocab_size;
        }
        Ok(logits.reshape(dims)?)
    }

    /// Mean cross-entropy in nats of hidden states `(.., D)` against next token ids, one for each
    /// state. Equal to [`loss::cross_entropy`] of [`logits`](Self::logits), but the logits of all
    /// positions never exist at once, forward or backward: several times faster in training.
    ///
    /// # Errors
    /// A number of targets that differs from the number of states, or an id out of vocabulary.
    pub fn loss(&self, hidden: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let hidden = hidden.flatten_to(hidden.rank() - 2)?;
        loss::linear_cross_entropy(&hidden, &self.output.weight, targets)
    }

    /// Cross-entropy in nats of each hidden state `(.., D)` against its next token id, without
    /// gradients: for evaluation.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn token_losses(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let hidden = hidden.flatten_to(hidden.rank() - 2)?;
        loss::token_losses(&hidden, &self.output.weight, targets)
    }

    /// Input embeddings of positions: row `index[i]` of T, or row `index[i] - V` of `rows` (f-gram
    /// vectors, `(R, D)`) where the index is V or more. `(N, D)`; gradients reach both.
    ///
    /// # Errors
    /// An index beyond T and `rows`.
    pub fn input_embeddings(&self, rows: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
        ops::select_rows(&self.token_embedding, rows, index)
    }
}
