//! Table rows: A's forward pass for inference on a CPU.

use super::{FgramModel, PrefixTree};
use crate::error::{Error, Result};
use crate::infer::{self, Context, Head};
use crate::ops::Heads;
use candle_core::Tensor;

/// Vectors of the tree's f-grams, in order.
pub(super) fn rows(model: &FgramModel, tokens: &Tensor, tree: &PrefixTree) -> Result<Vec<f32>> {
    let width = model.shape.hidden_size;
    let mut x = vec![0.0f32; tree.len() * width];
    infer::with_values(tokens, |table| gather(table, tree, width, &mut x))??;
    infer::with_values(&model.position_embedding, |table| {
        for (x, &depth) in x.chunks_mut(width).zip(tree.depths()) {
            let start = depth as usize * width;
            for (x, p) in x.iter_mut().zip(&table[start..start + width]) {
                *x += p;
            }
        }
    })?;
    let mut context = Nodes {
        tree,
        keys: Vec::new(),
        values: Vec::new(),
    };
    for (layer, block) in model.blocks.as_slice().iter().enumerate() {
        infer::block(block, layer, &mut x, &mut context)?;
    }
    let mut last = Vec::with_capacity(tree.outputs().len() * width);
    for &node in tree.outputs() {
        let start = node as usize * width;
        last.extend_from_slice(&x[start..start + width]);
    }
    match &model.norm {
        Some(norm) => infer::norm(norm, &last),
        None => Ok(last),
    }
}

fn gather(table: &[f32], tree: &PrefixTree, width: usize, out: &mut [f32]) -> Result<()> {
    for (out, &token) in out.chunks_mut(width).zip(tree.tokens()) {
        let start = token as usize * width;
        let row = table.get(start..start + width).ok_or_else(|| {
            let vocab = table.len() / width;
            Error::Argument(format!(
                "token id {token} is not below the vocabulary size, {vocab}"
            ))
        })?;
        out.copy_from_slice(row);
    }
    Ok(())
}

/// Every node sees its path in the tree.
struct Nodes<'a> {
    tree: &'a PrefixTree,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Context for Nodes<'_> {
    fn extend(&mut self, _: usize, _: &mut [f32], k: &mut [f32], v: &[f32], _: &Heads) {
        self.keys.clear();
        self.keys.extend_from_slice(k);
        self.values.clear();
        self.values.extend_from_slice(v);
    }

    fn attend(&self, head: &Head<'_>, row: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
        let path = self.tree.path(row).iter().map(|&node| node as usize);
        head.over(&self.keys, &self.values, path, scores, out);
    }
}
