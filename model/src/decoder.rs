//! The main model.

use crate::config::{Family, ModelConfig, Shape};
use crate::device::{Dtype, host};
use crate::error::{Error, Result};
use crate::kv_blocks::{KV_BLOCK_POSITIONS, KvDtype};
use crate::kv_pool::KvPool;
use crate::layers::{Linear, Norm, Weights};
use crate::layout::WeightLayout;
use crate::packed_ends::PackedEnds;
use crate::path::{Blocks, Path, packed};
use crate::positions::Positions;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use std::sync::Arc;

/// A decoder-only transformer over input embeddings.
///
/// Cloning is cheap and shares the weights. With a gpt2 model the learned position embedding is
/// added in here: what comes in replaces the token embedding only.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) path: Path,
    shape: Shape,
    pub(crate) token_embedding: Tensor,
    pub(crate) position_embedding: Option<Tensor>,
    pub(crate) blocks: Blocks,
    pub(crate) norm: Norm,
    /// Output layer, `(V, D)`; the token embedding when tied.
    pub(crate) output: Linear,
    /// In place of token embedding and output layer, once packed for serving.
    pub(crate) packed: Option<Arc<PackedEnds>>,
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
        Self::from_weights(config, &Weights::new(&vb))
    }

    /// As [`load`](Self::load), from any source: each tensor is asked for once, when its layer is
    /// built.
    pub(crate) fn from_weights(config: &ModelConfig, root: &Weights<'_>) -> Result<Self> {
        config.validate()?;
        let shape = config.shape();
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
        let path = Path::of(&token_embedding);
        let blocks = Blocks::load(path, &shape, &body.below(layers))?;
        Ok(Self {
            path,
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
            packed: None,
        })
    }

    /// Trains with less memory for a third more time: the forward pass keeps only what goes into
    /// each block, and the backward pass computes the rest again, to the same numbers.
    ///
    /// # Errors
    /// A model that is not on the CPU in f32, or one with norms of heads.
    pub fn recompute_blocks(&mut self) -> Result<()> {
        self.blocks.recompute()
    }

    /// The sizes of the model.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// T, `(V, D)`; empty when the model is [packed](Self::pack).
    pub fn token_embedding(&self) -> &Tensor {
        &self.token_embedding
    }

    /// The same model on the tensor path, wherever its weights are.
    #[cfg(test)]
    pub(crate) fn on_the_tensor_path(mut self) -> Self {
        self.path = Path::Tensor;
        self.blocks.set_path(Path::Tensor);
        self
    }

    /// The model with its weights in another type, to serve on a device other than the CPU.
    ///
    /// # Errors
    /// A model that is [packed](Self::pack), or a device without the memory.
    pub fn cast(mut self, dtype: Dtype) -> Result<Self> {
        let to = dtype.candle();
        let tied = self.output.weight.id() == self.token_embedding.id();
        self.blocks.cast(to)?;
        self.token_embedding = self.token_embedding.to_dtype(to)?;
        self.position_embedding = match &self.position_embedding {
            Some(table) => Some(table.to_dtype(to)?),
            None => None,
        };
        self.norm = self.norm.cast(to)?;
        self.output = match tied {
            true => Linear {
                weight: self.token_embedding.clone(),
                bias: None,
                layout: WeightLayout::OutIn,
            },
            false => self.output.cast(to)?,
        };
        self.path = Path::of(&self.token_embedding);
        self.blocks.set_path(self.path);
        Ok(self)
    }

    /// Memory for keys and values of so many blocks of
    /// [`KV_BLOCK_POSITIONS`] positions.
    ///
    /// # Errors
    /// When there are more than the machine can address, or the device has not the memory.
    pub fn new_pool(&self, dtype: KvDtype, blocks: usize) -> Result<KvPool> {
        self.path
            .new_pool(&self.shape, dtype, blocks, &self.token_embedding)
    }

    /// Bytes of one block of a pool.
    pub fn kv_block_bytes(&self, dtype: KvDtype) -> usize {
        let position = 2 * self.shape.num_layers * self.shape.heads().kv_width();
        KV_BLOCK_POSITIONS * position * dtype.bytes()
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
        Ok(self
            .path
            .norm(&self.norm, &x)?
            .reshape((batch, len, width))?)
    }

    /// Logits of `hidden (N, D)`, `(N, V)`, without gradients. A row does not depend on the others,
    /// bit for bit (on the CPU path).
    ///
    /// # Errors
    /// A width other than the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let width = hidden.dims2()?.1;
        if width != self.shape.hidden_size {
            return Err(Error::Argument(format!(
                "hidden states of width {width}, the model has {}",
                self.shape.hidden_size
            )));
        }
        match &self.packed {
            Some(packed) => packed.logits(hidden),
            None => self.path.serve_linear(&self.output, hidden),
        }
    }

    /// Mean cross-entropy in nats of hidden states `(.., D)` against next token ids, one for each
    /// state. The logits of all positions never exist at once on the CPU path, forward or backward:
    /// several times faster in training.
    ///
    /// # Errors
    /// A number of targets that differs from the number of states, or an id out of vocabulary.
    pub fn loss(&self, hidden: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let hidden = hidden.flatten_to(hidden.rank() - 2)?;
        if self.packed.is_some() {
            return Err(packed());
        }
        check_targets(targets, hidden.dim(0)?, self.shape.vocab_size)?;
        let weight = &self.output.weight;
        self.path.linear_cross_entropy(&hidden, weight, targets)
    }

    /// Cross-entropy in nats of each hidden state `(.., D)` against its next token id, without
    /// gradients: for evaluation.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn token_losses(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let hidden = hidden.flatten_to(hidden.rank() - 2)?;
        if self.packed.is_some() {
            return Err(packed());
        }
        check_targets(targets, hidden.dim(0)?, self.shape.vocab_size)?;
        let weight = &self.output.weight;
        self.path.token_losses(&hidden, weight, targets)
    }

    /// Input embeddings of positions: row `index[i]` of T, or row `index[i] - V` of `rows` (f-gram
    /// vectors, `(R, D)`) where the index is V or more. `(N, D)`; gradients reach both.
    ///
    /// # Errors
    /// An index beyond T and `rows`; `rows` for a model that is [packed](Self::pack).
    pub fn input_embeddings(&self, rows: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
        if let Some(ends) = &self.packed {
            if rows.is_some() {
                return Err(packed());
            }
            let width = self.shape.hidden_size;
            let mut out = vec![0.0; index.len() * width];
            ends.embed(index, &mut out)?;
            return Ok(Tensor::from_vec(out, (index.len(), width), &host())?);
        }
        self.path.select_rows(&self.token_embedding, rows, index)
    }
}

fn check_targets(targets: &[u32], rows: usize, vocab: usize) -> Result<()> {
    if targets.len() != rows || rows == 0 {
        return Err(Error::Argument(format!(
            "{} targets for {rows} hidden states",
            targets.len()
        )));
    }
    match targets.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::Argument(format!(
            "target {id} is not below the vocabulary size, {vocab}"
        ))),
        None => Ok(()),
    }
}
