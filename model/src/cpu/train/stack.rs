//! The operation: blocks from input to output, and back.

use super::buffers::Buffers;
use super::flat::{FlatBlock, flatten};
use super::pass::{Attending, Scratch, Training};
use super::weights::{Part, weight_gradients};
use crate::config::Shape as ModelShape;
use crate::cpu::block::{Activations, forward};
use crate::cpu::kernels::rows::rotary_angles;
use crate::error::Result;
use crate::layers::Block;
use crate::positions::Positions;
use crate::precision::Precision;
use crate::storage::{gradient, result, slice, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

/// Nodes of a group of f-gram trees, about.
const TREE_GROUP: usize = 256;

/// What training a model's blocks needs besides their weights.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    flat: FlatBlock,
    frequencies: Option<Arc<[f32]>>,
    buffers: Buffers,
    /// The weights of all blocks end to end, if they are not trained: then they stay as they are.
    frozen: Arc<OnceLock<Tensor>>,
    /// Whether the forward pass keeps only what goes into each block, and the backward pass computes
    /// the rest again.
    recompute: bool,
}

impl Workspace {
    pub(crate) fn new(shape: &ModelShape) -> Self {
        Self {
            flat: FlatBlock::new(shape),
            frequencies: shape.rotary_frequencies(),
            buffers: Buffers::default(),
            frozen: Arc::default(),
            recompute: false,
        }
    }

    /// Computes blocks twice rather than keep what is in them.
    pub(crate) fn set_recompute(&mut self) {
        self.recompute = true;
    }

    /// What the factors of products are rounded to.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.flat.precision = precision;
    }

    /// The weights of `blocks` end to end.
    fn weights(&self, blocks: &[Block]) -> Result<Tensor> {
        if let Some(weights) = self.frozen.get() {
            return Ok(weights.clone());
        }
        let weights = flatten(blocks)?;
        match weights.track_op() {
            true => Ok(weights),
            false => Ok(self.frozen.get_or_init(|| weights).clone()),
        }
    }

    /// The same for blocks whose weights are replaced.
    pub(crate) fn for_other_weights(&self) -> Self {
        Self {
            frozen: Arc::default(),
            ..self.clone()
        }
    }
}

/// Some blocks as one operation.
pub(crate) struct Stack {
    flat: FlatBlock,
    layers: usize,
    frequencies: Option<Arc<[f32]>>,
    positions: Positions,
    buffers: Buffers,
    /// Whether a backward pass may come.
    tracked: bool,
    /// Whether it asks for the weights' gradients.
    trained: bool,
    /// Whether only the inputs of layers are kept.
    recompute: bool,
    /// One buffer for each layer of each group, layer by layer.
    saved: Mutex<Vec<Vec<Vec<f32>>>>,
}

impl Stack {
    /// `x (N, D)` through the blocks.
    pub(crate) fn apply(
        workspace: &Workspace,
        blocks: &[Block],
        x: &Tensor,
        positions: &Positions,
    ) -> Result<Tensor> {
        let weights = workspace.weights(blocks)?;
        let tracked = x.track_op() || weights.track_op();
        let mut flat = workspace.flat.clone();
        if !tracked {
            // Held-out text is scored as the weights are.
            flat.precision = Precision::F32;
        }
        let stack = Self {
            flat,
            layers: blocks.len(),
            frequencies: workspace.frequencies.clone(),
            positions: positions.clone(),
            buffers: workspace.buffers.clone(),
            tracked,
            trained: weights.track_op(),
            recompute: workspace.recompute,
            saved: Mutex::default(),
        };
        Ok(x.contiguous()?.apply_op2(&weights, stack)?)
    }

    /// Rows that depend on each other only.
    fn groups(&self) -> Vec<Range<usize>> {
        match &self.positions {
            Positions::Sequences { batch, len } => {
                (0..*batch).map(|b| b * len..(b + 1) * len).collect()
            }
            Positions::Tree(tree) => tree.ranges(TREE_GROUP),
        }
    }

    /// Rotary angles of a sequence's positions.
    fn angles(&self) -> Option<Vec<f32>> {
        let Positions::Sequences { len, .. } = &self.positions else {
            return None;
        };
        let dim = self.flat.sizes.heads.head_dim;
        let frequencies = self.frequencies.as_deref()?;
        let mut angles = vec![0.0f32; len * dim];
        for (t, out) in angles.chunks_mut(dim).enumerate() {
            rotary_angles(frequencies, t, out);
        }
        Some(angles)
    }

    fn attend<'a>(
        &'a self,
        nodes: &'a Range<usize>,
        angles: &'a Option<Vec<f32>>,
    ) -> Attending<'a> {
        match &self.positions {
            Positions::Sequences { .. } => Attending::Sequence {
                angles: angles.as_deref(),
            },
            Positions::Tree(tree) => Attending::Tree { tree, nodes },
        }
    }

    fn layer_weights<'a>(&self, weights: &'a [f32], layer: usize) -> &'a [f32] {
        &weights[layer * self.flat.len..(layer + 1) * self.flat.len]
    }

    /// One group through all layers: what was saved of each layer.
    fn forward_group(
        &self,
        weights: &[f32],
        attend: Attending<'_>,
        x: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Vec<Vec<f32>> {
        let sizes = &self.flat.sizes;
        let n = x.len() / sizes.width;
        let mut kept: Vec<Vec<f32>> = Vec::with_capacity(self.layers);
        out.copy_from_slice(x);
        let mut inputs: Vec<Vec<f32>> = Vec::new();
        for layer in 0..self.layers {
            if self.tracked && self.recompute {
                let mut input = self.buffers.take(n * sizes.width);
                input.copy_from_slice(out);
                inputs.push(input);
            }
            let mut buffer = match kept.pop() {
                Some(last) if !self.tracked || self.recompute => last,
                last => {
                    kept.extend(last);
                    self.buffers.take(sizes.activations_len(n))
                }
            };
            let activations = Activations::cut_mut(sizes, n, &mut buffer);
            activations.x.copy_from_slice(out);
            let mut pass = Training {
                flat: &self.flat,
                weights: self.layer_weights(weights, layer),
                attend,
                scratch,
            };
            forward(sizes, &mut pass, activations, out);
            kept.push(buffer);
        }
        if inputs.is_empty() {
            return kept;
        }
        kept.into_iter()
            .for_each(|buffer| self.buffers.give(buffer));
        inputs
    }

    /// All that is in one layer, of every group, from what went into it.
    fn again(
        &self,
        weights: &[f32],
        (groups, angles): (&[Range<usize>], &Option<Vec<f32>>),
        inputs: &[&[f32]],
        whole: &mut [Vec<f32>],
    ) {
        let sizes = &self.flat.sizes;
        let all = groups.par_iter().zip(inputs).zip(whole);
        all.for_each_init(Scratch::default, |scratch, ((group, input), whole)| {
            let activations = Activations::cut_mut(sizes, group.len(), whole);
            activations.x.copy_from_slice(input);
            let mut pass = Training {
                flat: &self.flat,
                weights,
                attend: self.attend(group, angles),
                scratch,
            };
            let mut out = self.buffers.take(input.len());
            forward(sizes, &mut pass, activations, &mut out);
            self.buffers.give(out);
        });
    }

    /// Buffers of one layer's activations for every group, if they have to be computed again.
    fn whole_layer(&self, groups: &[Range<usize>]) -> Vec<Vec<f32>> {
        if !self.recompute {
            return Vec::new();
        }
        let len = |group: &Range<usize>| self.flat.sizes.activations_len(group.len());
        groups.iter().map(|g| self.buffers.take(len(g))).collect()
    }

    /// Gradients of input and weights; none of weights that are not trained.
    fn backward(
        &self,
        weights: &[f32],
        grad: &[f32],
        saved: &[Vec<Vec<f32>>],
    ) -> (Vec<f32>, Vec<f32>) {
        let (flat, groups, angles) = (&self.flat, self.groups(), self.angles());
        let mut dx = grad.to_vec();
        let mut dweights = match self.trained {
            true => vec![0.0f32; weights.len()],
            false => Vec::new(),
        };
        let mut grads: Vec<Vec<f32>> = groups
            .iter()
            .map(|g| self.buffers.take(flat.grads_len(g.len())))
            .collect();
        let mut whole = self.whole_layer(&groups);
        for layer in (0..self.layers).rev() {
            let weights = self.layer_weights(weights, layer);
            let mut saved: Vec<&[f32]> = saved.iter().map(|s| s[layer].as_slice()).collect();
            if self.recompute {
                self.again(weights, (&groups, &angles), &saved, &mut whole);
                saved = whole.iter().map(Vec::as_slice).collect();
            }
            groups
                .par_iter()
                .zip(cut(&mut dx, &groups, flat.sizes.width))
                .zip(&mut grads)
                .zip(&saved)
                .for_each_init(
                    Scratch::default,
                    |scratch, (((group, dx), grads), saved)| {
                        let n = group.len();
                        let saved = Activations::cut(&flat.sizes, n, saved);
                        let grads = flat.grads_mut(grads, n);
                        grads.out.copy_from_slice(dx);
                        let mut spare = self.buffers.take(flat.spare_len(n));
                        let attend = self.attend(group, &angles);
                        flat.backward(weights, attend, &saved, grads, &mut spare, scratch, dx);
                        self.buffers.give(spare);
                    },
                );
            if !self.trained {
                continue;
            }
            let parts: Vec<Part<'_>> = groups
                .iter()
                .zip(&grads)
                .zip(&saved)
                .map(|((group, grads), saved)| Part {
                    rows: group.len(),
                    saved: Activations::cut(&flat.sizes, group.len(), saved),
                    grads: flat.grads(grads, group.len()),
                })
                .collect();
            let start = layer * flat.len;
            weight_gradients(flat, &parts, &mut dweights[start..start + flat.len]);
        }
        for buffer in grads.into_iter().chain(whole) {
            self.buffers.give(buffer);
        }
        (dx, dweights)
    }

    fn release(&self) {
        if let Ok(mut saved) = self.saved.lock() {
            for buffer in saved.drain(..).flatten() {
                self.buffers.give(buffer);
            }
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.release();
    }
}

impl CustomOp2 for Stack {
    fn name(&self) -> &'static str {
        "blocks"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weights) = (slice(x, x_layout)?, slice(weights, weights_layout)?);
        let (groups, angles) = (self.groups(), self.angles());
        let width = self.flat.sizes.width;
        let mut out = vec![0.0f32; x.len()];
        let saved: Vec<Vec<Vec<f32>>> = groups
            .par_iter()
            .zip(cut(&mut out, &groups, width))
            .map_init(Scratch::default, |scratch, (group, out)| {
                let x = &x[group.start * width..group.end * width];
                let attend = self.attend(group, &angles);
                self.forward_group(weights, attend, x, scratch, out)
            })
            .collect();
        if let Ok(mut kept) = self.saved.lock() {
            *kept = saved;
        }
        if !self.tracked {
            self.release();
        }
        result(out, x_layout.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = match self.saved.lock() {
            Ok(mut saved) => std::mem::take(&mut *saved),
            Err(_) => Vec::new(),
        };
        if saved.is_empty() && x.elem_count() > 0 {
            candle_core::bail!("the blocks were differentiated before");
        }
        let (dx, dweights) = with_slice(weights, |weights| {
            with_slice(grad, |grad| Ok(self.backward(weights, grad, &saved)))
        })?;
        for buffer in saved.into_iter().flatten() {
            self.buffers.give(buffer);
        }
        let dweights = match self.trained {
            true => gradient(dweights, weights)?,
            false => None,
        };
        Ok((gradient(dx, x)?, dweights))
    }
}

/// Cuts rows of `width` numbers at the borders of the groups, which follow each other.
fn cut<'a>(mut values: &'a mut [f32], groups: &[Range<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(groups.len());
    for group in groups {
        let (part, rest) = values.split_at_mut(group.len() * width);
        parts.push(part);
        values = rest;
    }
    parts
}
