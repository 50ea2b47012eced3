//! The distinct prefixes of a batch of f-grams.

use crate::error::{Error, Result};
use std::ops::Range;

/// Distinct prefixes of some f-grams, as a forest in depth-first order.
///
/// Node i stands for one prefix; its state in A depends on its ancestors only, so it is computed
/// once however many f-grams begin with it. With the f-grams `a b`, `a b c` and `a d` the nodes
/// are `a`, `a b`, `a b c`, `a d`. A tree's nodes follow each other without a gap, so trees can be
/// shared out over threads.
#[derive(Debug)]
pub struct PrefixTree {
    tokens: Vec<u32>,
    depths: Vec<u32>,
    /// `stride` entries a node: the nodes from the root down to the node itself.
    paths: Vec<u32>,
    stride: usize,
    /// The node of each f-gram, in the order the f-grams were given in.
    outputs: Vec<u32>,
    /// First node of each tree, and the number of nodes at the end.
    roots: Vec<u32>,
}

/// Most tokens of an f-gram in a tree; K is checked against the model later.
const MAX_LEN: usize = 64;

impl PrefixTree {
    /// The tree of these f-grams. Equal ones share a node.
    ///
    /// # Errors
    /// An empty f-gram or one of more than 64 tokens.
    pub fn new(fgrams: &[&[u32]]) -> Result<Self> {
        let mut order: Vec<u32> = (0..fgrams.len() as u32).collect();
        order.sort_unstable_by_key(|&i| fgrams[i as usize]);
        let mut tree = Self::empty(fgrams.iter().map(|f| f.len()))?;
        tree.outputs = vec![0; fgrams.len()];
        let mut path: Vec<u32> = Vec::new();
        let mut previous: &[u32] = &[];
        for i in order {
            let fgram = fgrams[i as usize];
            let shared = fgram
                .iter()
                .zip(previous)
                .take_while(|(a, b)| a == b)
                .count();
            path.truncate(shared);
            for &token in &fgram[shared..] {
                tree.push(token, &mut path);
            }
            tree.outputs[i as usize] = path[fgram.len() - 1];
            previous = fgram;
        }
        tree.roots.push(tree.tokens.len() as u32);
        Ok(tree)
    }

    fn empty(lens: impl Iterator<Item = usize>) -> Result<Self> {
        let mut stride = 1;
        for len in lens {
            if len == 0 || len > MAX_LEN {
                return Err(Error::Argument(format!(
                    "an f-gram of {len} tokens, must be from 1 to {MAX_LEN}"
                )));
            }
            stride = stride.max(len);
        }
        Ok(Self {
            tokens: Vec::new(),
            depths: Vec::new(),
            paths: Vec::new(),
            stride,
            outputs: Vec::new(),
            roots: Vec::new(),
        })
    }

    fn push(&mut self, token: u32, path: &mut Vec<u32>) {
        let node = self.tokens.len() as u32;
        if path.is_empty() {
            self.roots.push(node);
        }
        self.tokens.push(token);
        self.depths.push(path.len() as u32);
        path.push(node);
        self.paths.extend_from_slice(path);
        self.paths.resize(self.tokens.len() * self.stride, node);
    }

    /// Number of nodes: what A computes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The last token of each node's prefix.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of each node in its f-gram, from 0.
    pub fn depths(&self) -> &[u32] {
        &self.depths
    }

    /// The node that holds each f-gram's vector.
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// Tokens of the longest f-gram.
    pub fn max_len(&self) -> usize {
        self.depths.iter().max().map_or(0, |&d| d as usize + 1)
    }

    /// The nodes a node sees: from its root to itself.
    pub(crate) fn path(&self, node: usize) -> &[u32] {
        let start = node * self.stride;
        &self.paths[start..=start + self.depths[node] as usize]
    }

    /// Node ranges of whole trees, about `size` nodes each; none when the forest is empty.
    pub(crate) fn ranges(&self, size: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut start = 0;
        for &border in self.roots.iter().skip(1) {
            let border = border as usize;
            if border - start >= size || border == self.len() {
                ranges.push(start..border);
                start = border;
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shared_and_paths_lead_from_root_to_node() {
        let fgrams: [&[u32]; 5] = [&[3, 4, 5], &[1, 2], &[3, 4], &[3, 9], &[1, 2]];
        let tree = PrefixTree::new(&fgrams).unwrap();
        assert_eq!(tree.tokens(), [1, 2, 3, 4, 5, 9]);
        assert_eq!(tree.depths(), [0, 1, 0, 1, 2, 1]);
        assert_eq!(tree.outputs(), [4, 1, 3, 5, 1]);
        assert_eq!(tree.max_len(), 3);
        for (fgram, &node) in fgrams.iter().zip(tree.outputs()) {
            let tokens: Vec<u32> = tree
                .path(node as usize)
                .iter()
                .map(|&n| tree.tokens()[n as usize])
                .collect();
            assert_eq!(&tokens, fgram);
        }
        assert_eq!(tree.ranges(1), [0..2, 2..6]);
        let whole = tree.ranges(100);
        assert_eq!((whole.len(), &whole[0]), (1, &(0..6)));
    }

    #[test]
    fn empty_and_endless_fgrams_are_errors() {
        assert!(PrefixTree::new(&[&[]]).is_err());
        assert!(PrefixTree::new(&[&[1; 65]]).is_err());
        assert!(PrefixTree::new(&[]).unwrap().is_empty());
    }
}
