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
use crate::precision::Precision;
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
        let blocks = Blocks::load(path, &shape, &root.below("layers"))?.without_rotary();
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

    /// As [`Decoder::train_with`](crate::Decoder::train_with).
    ///
    /// # Errors
    /// As there.
    pub fn train_with(&mut self, precision: Precision) -> Result<()> {
        self.blocks.train_with(precision)
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
        let last = match self.path {
            Path::Cpu => {
                let x = self.inputs(token_embedding, tree)?;
                let x = self.blocks.forward(&x, &Positions::Tree(tree.clone()))?;
                self.path.select_rows(&x, None, tree.outputs())?
            }
            Path::Tensor => self.forward_by_length(token_embedding, tree)?,
        };
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

    /// Vectors before the norm, `(N, D)`, of the f-grams one by one, those of equal length together.
    /// That is about twice as much to compute as their tree, but no layer has to gather rows of
    /// others, and the gradient of that is what a GPU is slow at.
    fn forward_by_length(&self, token_embedding: &Tensor, tree: &PrefixTree) -> Result<Tensor> {
        self.check_lengths(tree)?;
        let mut by_length = vec![Vec::new(); tree.max_len() + 1];
        for (i, &node) in tree.outputs().iter().enumerate() {
            let path = tree.path(node as usize);
            by_length[path.len()].push((i, path));
        }
        let mut place = vec![0; tree.outputs().len()];
        let (mut vectors, mut done) = (Vec::new(), 0);
        for fgrams in by_length.iter().filter(|fgrams| !fgrams.is_empty()) {
            for (at, (i, _)) in fgrams.iter().enumerate() {
                place[*i] = (done + at) as u32;
            }
            done += fgrams.len();
            let tokens = fgrams.iter().flat_map(|(_, path)| *path);
            let tokens: Vec<u32> = tokens.map(|&node| tree.tokens()[node as usize]).collect();
            vectors.push(self.last_of_each(token_embedding, &tokens, fgrams.len())?);
        }
        let vectors = Tensor::cat(&vectors, 0)?;
        self.path.select_rows(&vectors, None, &place)
    }

    /// The output at the last of each of `batch` runs of tokens of equal length, `(batch, D)`.
    fn last_of_each(&self, table: &Tensor, tokens: &[u32], batch: usize) -> Result<Tensor> {
        let (len, width) = (tokens.len() / batch, self.shape.hidden_size);
        let positions = self.position_embedding.narrow(0, 0, len)?;
        let x = self
            .path
            .select_rows(table, None, tokens)?
            .reshape((batch, len, width))?
            .broadcast_add(&positions)?
            .reshape((batch * len, width))?;
        let sequences = Positions::Sequences { batch, len };
        let x = self.blocks.forward(&x, &sequences)?;
        let x = x.reshape((batch, len, width))?;
        Ok(x.narrow(1, len - 1, 1)?
            .contiguous()?
            .reshape((batch, width))?)
    }

    fn check_lengths(&self, tree: &PrefixTree) -> Result<()> {
        if tree.max_len() > self.shape.max_positions {
            return Err(Error::Argument(format!(
                "an f-gram of {} tokens, this model takes at most {}",
                tree.max_len(),
                self.shape.max_positions
            )));
        }
        Ok(())
    }

    /// Token embedding plus position of every node, `(N, D)`.
    fn inputs(&self, token_embedding: &Tensor, tree: &PrefixTree) -> Result<Tensor> {
        self.check_lengths(tree)?;
        let select = |table, index| self.path.select_rows(table, None, index);
        let embeds = select(token_embedding, tree.tokens())?;
        Ok((embeds + select(&self.position_embedding, tree.depths())?)?)
    }
}
