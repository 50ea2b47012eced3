//! The f-gram model A: a transformer that turns an f-gram into one vector.
//!
//! Same block and width as the main model, own depth, no token embedding of its own, learned
//! absolute positions (K of them) and no rotary ones; the vector is the output at the last token
//! (SCONE, section 3; what the paper leaves open is decided in `docs/method.md`).
//!
//! A is causal, so two f-grams with a common beginning share its states, and the set of f-grams is
//! closed under prefix: A computes the distinct *prefixes* of a batch, see [`PrefixTree`].

use crate::config::{FgramModelConfig, ModelConfig, Shape};
use crate::error::{Error, Result};
use crate::layers::{Norm, Weights};
use crate::path::{Blocks, Path};
use crate::positions::Positions;
use crate::prefix_tree::PrefixTree;
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// The f-gram model. Cloning is cheap and shares the weights.
#[derive(Clone, Debug)]
pub struct FgramModel {
    path: Path,
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
        let root = Weights::new(&vb);
        let positions = [shape.max_positions, shape.hidden_size];
        let position_embedding = root.get(&positions, "position_embedding.weight")?;
        let path = Path::of(&position_embedding);
        let blocks = Blocks::load(path, &shape, &root.below("layers"))?;
        let norm = match config.final_norm {
            true => Some(Norm::load(&shape, &root.below("norm"))?),
            false => None,
        };
        Ok(Self {
            path,
            position_embedding,
            shape,
            blocks,
            norm,
        })
    }

    /// As [`Decoder::recompute_blocks`](crate::Decoder::recompute_blocks).
    ///
    /// # Errors
    /// As there.
    pub fn recompute_blocks(&mut self) -> Result<()> {
        self.blocks.recompute()
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
        let x = self.inputs(token_embedding, tree)?;
        let x = self.blocks.forward(&x, &Positions::Tree(tree.clone()))?;
        let last = self.path.select_rows(&x, None, tree.outputs())?;
        match &self.norm {
            Some(norm) => self.path.norm(norm, &last),
            None => Ok(last),
        }
    }

    /// Vectors of f-grams as plain numbers, N times D, for the table. The vector of an f-gram is
    /// bit for bit the same in whatever company it is computed (on the CPU path).
    ///
    /// # Errors
    /// An empty f-gram, one longer than K, or a token id out of vocabulary.
    pub fn rows(&self, token_embedding: &Tensor, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        let tree = Arc::new(PrefixTree::new(fgrams)?);
        if tree.is_empty() {
            return Ok(Vec::new());
        }
        let x = self.inputs(token_embedding, &tree)?;
        let x = self.blocks.rows(&x, &Positions::Tree(tree.clone()))?;
        let mut last = self.path.select_rows(&x, None, tree.outputs())?;
        if let Some(norm) = &self.norm {
            last = self.path.serve_norm(norm, &last)?;
        }
        Ok(last.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// Token embedding plus position of every node, `(N, D)`.
    fn inputs(&self, token_embedding: &Tensor, tree: &PrefixTree) -> Result<Tensor> {
        if tree.max_len() > self.shape.max_positions {
            return Err(Error::Argument(format!(
                "an f-gram of {} tokens, this model takes at most {}",
                tree.max_len(),
                self.shape.max_positions
            )));
        }
        let select = |table, index| self.path.select_rows(table, None, index);
        let embeds = select(token_embedding, tree.tokens())?;
        Ok((embeds + select(&self.position_embedding, tree.depths())?)?)
    }
}
