//! The main model.

use crate::config::{Family, ModelConfig, Shape};
use crate::device::Dtype;
use crate::error::{Error, Result};
use crate::kv_blocks::{KV_BLOCK_POSITIONS, KvDtype};
use crate::kv_pool::KvPool;
use crate::layers::{Linear, Norm, Weights};
use crate::layout::WeightLayout;
use crate::packed_ends::{PackedEnds, not_on_the_cpu, nothing};
use crate::path::{Blocks, Path, packed};
use crate::positions::Positions;
use crate::precision::Precision;
use crate::weight_type::WeightType;
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
    /// Of products in training.
    precision: Precision,
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
        let names = Names::of(&shape, root);
        let token_embedding = names.token_embedding(&shape)?;
        let output = match config.tied() {
            true => token_embedding.clone(),
            false => names.output(&shape)?,
        };
        let path = Path::of(&token_embedding);
        Ok(Self {
            path,
            position_embedding: names.position_embedding(&shape)?,
            blocks: Blocks::load(path, &shape, &names.layers)?,
            norm: Norm::load(&shape, &names.norm)?,
            shape,
            token_embedding,
            output: output_layer(output),
            packed: None,
            precision: Precision::F32,
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

    /// Trains with the factors of products, forward and backward, rounded to `precision`; weights, sums
    /// and everything else stay f32. Without gradients nothing is rounded.
    ///
    /// # Errors
    /// bf16 for a model that is not on the CPU in f32, or one with norms of heads.
    pub fn train_with(&mut self, precision: Precision) -> Result<()> {
        self.blocks.train_with(precision)?;
        self.precision = precision;
        Ok(())
    }

    /// As [`from_weights`](Self::from_weights), [packed](Self::pack) layer by layer: no more than
    /// one layer's weights are there in f32 at a time.
    pub(crate) fn from_weights_packed(
        config: &ModelConfig,
        root: &Weights<'_>,
        kind: WeightType,
    ) -> Result<Self> {
        config.validate()?;
        let shape = config.shape();
        let names = Names::of(&shape, root);
        let embedding = names.token_embedding(&shape)?;
        let path = Path::of(&embedding);
        if path != Path::Cpu {
            return Err(not_on_the_cpu(&embedding));
        }
        // The largest layer first, while nothing else is in memory.
        let mut ends = match config.tied() {
            true => PackedEnds::tied(kind, embedding)?,
            false => PackedEnds::apart(kind, embedding, || names.output(&shape))?,
        };
        let blocks = Blocks::load_packed(path, &shape, &names.layers, kind)?;
        ends.count_blocks(blocks.packed_bytes());
        let nothing = nothing(&shape)?;
        Ok(Self {
            path,
            position_embedding: names.position_embedding(&shape)?,
            blocks,
            norm: Norm::load(&shape, &names.norm)?,
            shape,
            token_embedding: nothing.clone(),
            output: output_layer(nothing),
            packed: Some(Arc::new(ends)),
            precision: Precision::F32,
        })
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

    /// The model with its weights in another type, as they are served on a device other than the CPU.
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
    /// Gradients reach the embeddings and every weight, except with a [packed](Self::pack) model.
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
        if self.packed.is_some() {
            return self.packed_forward(&embeds);
        }
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
        let factors = (&hidden, weight);
        self.path
            .linear_cross_entropy(factors, targets, self.precision)
    }

    /// Cross-entropy in nats of each hidden state `(.., D)` against its next token id, without
    /// gradients: for evaluation.
    ///
    /// # Errors
    /// As [`loss`](Self::loss), except that a packed model has them.
    pub fn token_losses(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let hidden = hidden.flatten_to(hidden.rank() - 2)?;
        check_targets(targets, hidden.dim(0)?, self.shape.vocab_size)?;
        if let Some(ends) = &self.packed {
            return ends.token_losses(&hidden, targets);
        }
        let weight = &self.output.weight;
        self.path.token_losses(&hidden, weight, targets)
    }

    /// Input embeddings of positions: row `index[i]` of T, or row `index[i] - V` of `rows` (f-gram
    /// vectors, `(R, D)`) where the index is V or more. `(N, D)`; gradients reach both.
    ///
    /// # Errors
    /// An index beyond T and `rows`.
    pub fn input_embeddings(&self, rows: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
        if let Some(ends) = &self.packed {
            return ends.input_embeddings(rows, index);
        }
        self.path.select_rows(&self.token_embedding, rows, index)
    }
}

/// Where a family keeps the parts of a model.
struct Names<'a> {
    root: Weights<'a>,
    body: Weights<'a>,
    layers: Weights<'a>,
    norm: Weights<'a>,
    embedding: &'static str,
}

impl<'a> Names<'a> {
    fn of(shape: &Shape, root: &Weights<'a>) -> Self {
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
        Self {
            layers: body.below(layers),
            norm: body.below(norm),
            root: root.clone(),
            body,
            embedding,
        }
    }

    fn token_embedding(&self, shape: &Shape) -> Result<Tensor> {
        self.body.get(&table(shape), self.embedding)
    }

    fn position_embedding(&self, shape: &Shape) -> Result<Option<Tensor>> {
        let size = [shape.max_positions, shape.hidden_size];
        Ok(match shape.family {
            Family::Llama => None,
            Family::Gpt2 => Some(self.body.get(&size, "wpe.weight")?),
        })
    }

    /// The output layer of a model in which it is not the token embedding.
    fn output(&self, shape: &Shape) -> Result<Tensor> {
        self.root.get(&table(shape), "lm_head.weight")
    }
}

/// The shape of token embedding and output layer.
fn table(shape: &Shape) -> [usize; 2] {
    [shape.vocab_size, shape.hidden_size]
}

fn output_layer(weight: Tensor) -> Linear {
    Linear {
        weight,
        bias: None,
        layout: WeightLayout::OutIn,
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
