//! How numbers lie in weights and rows: what both paths and their kernels agree on.

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightLayout {
    /// `(out, in)`: PyTorch's `nn.Linear`, llama.
    OutIn,
    /// `(in, out)`: `Conv1D`, gpt2.
    InOut,
}

/// How a row of queries, keys and values side by side, the *joint* row, is cut into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// H, query heads.
    pub(crate) num_heads: usize,
    /// Key and value heads; query head h reads key head `h / (H / Hkv)`.
    pub(crate) num_kv_heads: usize,
    /// Dh.
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Numbers of a joint row.
    pub(crate) fn width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Numbers of a row of queries, and of attention's result.
    pub(crate) fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Numbers of a row of keys, or of values.
    pub(crate) fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// What scores are multiplied by before the softmax.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Query heads that read the same key-value head.
    pub(crate) fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Key-value head of a query head.
    pub(crate) fn kv_head(&self, head: usize) -> usize {
        head / self.group()
    }

    /// Where a query head begins in a joint row.
    pub(crate) fn query(&self, head: usize) -> usize {
        head * self.head_dim
    }

    /// Where a key head begins in a joint row.
    pub(crate) fn key(&self, kv_head: usize) -> usize {
        (self.num_heads + kv_head) * self.head_dim
    }

    /// Where a value head begins in a joint row.
    pub(crate) fn value(&self, kv_head: usize) -> usize {
        (self.num_heads + self.num_kv_heads + kv_head) * self.head_dim
    }
}
