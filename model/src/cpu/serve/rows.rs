//! Table rows: A's blocks over the nodes of a prefix tree.

use super::pass::{Attend, Layers, blocks};
use crate::cpu::block::Sizes;
use crate::cpu::kernels::{simd, tree};
use crate::error::Result;
use crate::layers::Block;
use crate::layout::Heads;
use crate::prefix_tree::PrefixTree;
use rayon::prelude::*;
use std::ops::Range;

/// Nodes that one task attends for, about.
const NODES_A_TASK: usize = 8;

/// `x (N, D)`, a row for each node, through the blocks, in place.
pub(crate) fn rows(
    layers: &[Block],
    sizes: &Sizes,
    x: &mut [f32],
    tree: &PrefixTree,
) -> Result<()> {
    let mut nodes = Nodes {
        tree,
        ranges: tree.ranges(NODES_A_TASK),
        heads: sizes.heads,
    };
    blocks(Layers::Tensors(layers), sizes, x, &mut nodes)
}

/// Every node sees its path in the tree.
struct Nodes<'a> {
    tree: &'a PrefixTree,
    /// Whole trees, which do not see each other.
    ranges: Vec<Range<usize>>,
    heads: Heads,
}

impl Attend for Nodes<'_> {
    fn attend(&mut self, _: usize, joint: &mut [f32], mixed: &mut [f32]) {
        let (tree, heads) = (self.tree, self.heads);
        let mut rest = mixed;
        let mut tasks = Vec::with_capacity(self.ranges.len());
        for nodes in &self.ranges {
            let (out, tail) = rest.split_at_mut(nodes.len() * heads.q_width());
            rest = tail;
            let rows = &joint[nodes.start * heads.width()..nodes.end * heads.width()];
            tasks.push((nodes, rows, out));
        }
        tasks.into_par_iter().for_each_init(
            tree::Scratch::default,
            |scratch, (nodes, rows, out)| {
                simd(
                    #[inline(always)]
                    || scratch.forward(heads, tree, nodes, rows, out),
                );
            },
        );
    }
}
