//! Which positions of a call belong together.

use crate::prefix_tree::PrefixTree;
use std::sync::Arc;

/// Which earlier positions a position of an `(N, D)` activation sees.
#[derive(Clone, Debug)]
pub(crate) enum Positions {
    /// N = B·T: each sequence of T positions sees its own past.
    Sequences { batch: usize, len: usize },
    /// Each node of the tree sees its ancestors and itself.
    Tree(Arc<PrefixTree>),
}
