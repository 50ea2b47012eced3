//! The f-gram model A: a transformer that turns an f-gram into one vector.
//!
//! Same block and width as the main model, own depth, no token embedding of its own, learned
//! absolute positions (K of them) and no rotary ones; the vector is the output at the last token
//! (SCONE, section 3; what the paper leaves open follows `SCONE.md`: right padding, final norm by
//! config).
//!
//! A is causal, so two f-grams with a common beginning share its states, and the set of f-grams is
//! closed under prefix: A computes the distinct *prefixes* of a batch, see [`PrefixTree`]. The
//! padded form of [`FgramModel::forward`] is there for those who have embeddings only.

mod rows;
mod tree;

use crate::config::{FgramModelConfig, ModelConfig, Shape};
use crate::error::{Error, Result};
use crate::layers::{Blocks, Norm, Positions, Weights};
use crate::ops;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use std::sync::Arc;
pub use tree::PrefixTree;

/// The f-gram model. Cloning is cheap and shares the weights.
#[derive(Clone, Debug)]
pub struct FgramModel {
    shape: Shape,
    position_embedding: Tensor,
    blocks: Blocks,
    norm: Option<Norm>,
}

impl FgramModel {
    /// Builds A from `position_embedding.weight` `(K, D)`, `layers.{i}.…` with the names of the
    /// main model's family, and `norm.…` when the config has a final norm.
    ///
    /// # Errors
    /// A config that does not fit the main model; a tensor that is missing or has another shape.
    pub fn load(config: &FgramModelConfig, main: &ModelConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let shape = config.shape(main)?;
        let root = Weights::new(vb);
        let positions = [shape.max_positions, shape.hidden_size];
        let blocks = Blocks::load(&shape, &root.below("layers"))?;
        let norm = match config.final_norm {
            true => Some(Norm::load(&shape, &root.below("norm"))?),
            false => None,
        };
        Ok(Self {
            position_embedding: root.get(&positions, "position_embedding.weight")?,
            shape,
            blocks,
            norm,
        })
    }

    /// The sizes of A; `max_positions` is K.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Vectors `(N, D)` of the N f-grams of a tree, in the order they were given in. Gradients
    /// reach the token embedding T `(V, D)` and every weight of A. The form to train with.
    ///
    /// # Errors
    /// A token id out of vocabulary, or an f-gram longer than K.
    pub fn forward_tree(&self, token_embedding: &Tensor, tree: &Arc<PrefixTree>) -> Result<Tensor> {
        let embeds = ops::select_rows(token_embedding, None, tree.tokens())?;
        self.forward_nodes(&embeds, tree)
    }

    /// Vectors `(N, D)` of f-grams given as embeddings `(N, L, D)`, right-padded, `lens[i]` tokens
    /// each. Gradients reach the embeddings and every weight.
    ///
    /// # Errors
    /// Lengths that are zero, above L or above K.
    pub fn forward(&self, token_embeds: &Tensor, lens: &[u32]) -> Result<Tensor> {
        let (n, padded, width) = token_embeds.dims3()?;
        if lens.len() != n || lens.iter().any(|&len| len as usize > padded) {
            return Err(Error::Argument(format!(
                "{} lengths, of at most {:?}, for {n} f-grams of {padded} tokens",
                lens.len(),
                lens.iter().max()
            )));
        }
        let index: Vec<u32> = (0u32..)
            .zip(lens)
            .flat_map(|(i, &len)| (0..len).map(move |p| i * padded as u32 + p))
            .collect();
        let tree = Arc::new(PrefixTree::chains(lens)?);
        let flat = token_embeds.reshape((n * padded, width))?;
        self.forward_nodes(&ops::select_rows(&flat, None, &index)?, &tree)
    }

    fn forward_nodes(&self, embeds: &Tensor, tree: &Arc<PrefixTree>) -> Result<Tensor> {
        self.check_len(tree)?;
        let positions = ops::select_rows(&self.position_embedding, None, tree.depths())?;
        let x = (embeds + positions)?;
        let x = self.blocks.forward(&x, &Positions::Tree(tree.clone()))?;
        let last = ops::select_rows(&x, None, tree.outputs())?;
        match &self.norm {
            Some(norm) => norm.forward(&last),
            None => Ok(last),
        }
    }

    /// Vectors of f-grams as plain numbers, N times D, for the table. The vector of an f-gram is
    /// bit for bit the same in whatever company it is computed (on a CPU).
    ///
    /// # Errors
    /// An empty f-gram, one longer than K, or a token id out of vocabulary.
    pub fn rows(&self, token_embedding: &Tensor, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        let tree = PrefixTree::new(fgrams)?;
        self.check_len(&tree)?;
        if !token_embedding.device().is_cpu() {
            let rows = self.forward_tree(token_embedding, &Arc::new(tree))?;
            return Ok(rows.flatten_all()?.to_vec1()?);
        }
        rows::rows(self, token_embedding, &tree)
    }

    fn check_len(&self, tree: &PrefixTree) -> Result<()> {
        if tree.max_len() > self.shape.max_positions {
            return Err(Error::Argument(format!(
                "an f-gram of {} tokens, this model takes at most {}",
                tree.max_len(),
                self.shape.max_positions
            )));
        }
        Ok(())
    }
}
