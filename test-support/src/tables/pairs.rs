//! Computed tables: every pair of ids `(a, b)` is an f-gram with the row `[a, b, edition]`.

use scone_fgram::{RowDtype, shard_of, table::Span};
use scone_proto::embed::v1::{GetTableInfoResponse, LookupRows};

use super::rows::{Rows, wire_dtype};

/// Elements of a row.
const DIM: u32 = 3;
/// Number of token ids.
const VOCAB_SIZE: u32 = 1000;

/// One computed table, or a shard of it.
#[derive(Clone, Debug)]
pub struct PairTable {
    /// Tells versions apart.
    pub edition: u8,
    /// Hash of the model that made it.
    pub model: &'static str,
    /// How rows are stored.
    pub dtype: RowDtype,
    /// Which shard, 0-based, of how many.
    pub shard: (u32, u32),
}

impl PairTable {
    /// The first version.
    pub const OLD: Self = Self {
        edition: 1,
        model: "model",
        dtype: RowDtype::F32,
        shard: (0, 1),
    };
    /// Its successor, whose rows are stored otherwise.
    pub const NEW: Self = Self {
        edition: 2,
        dtype: RowDtype::F16,
        ..Self::OLD
    };
    /// A table of another model.
    pub const FOREIGN: Self = Self {
        edition: 3,
        model: "another model",
        ..Self::OLD
    };

    /// Shard `index` of `count`.
    #[must_use]
    pub fn shard(self, index: u32, count: u32) -> Self {
        let shard = (index, count);
        Self { shard, ..self }
    }

    /// The row of a pair.
    #[must_use]
    pub fn row(&self, a: u32, b: u32) -> [f32; DIM as usize] {
        [a as f32, b as f32, f32::from(self.edition)]
    }
}

impl Rows for PairTable {
    fn info(&self) -> GetTableInfoResponse {
        GetTableInfoResponse {
            table_id: format!("edition-{}", self.edition),
            model_hash: self.model.to_owned(),
            tokenizer_hash: "tokenizer".to_owned(),
            fgram_set_hash: "set".to_owned(),
            vocab_size: VOCAB_SIZE,
            max_n: 3,
            dim: DIM,
            dtype: wire_dtype(self.dtype),
            row_bytes: self.dtype.row_bytes(DIM as usize) as u32,
            rows: u64::from(VOCAB_SIZE).pow(2),
            shard_index: self.shard.0,
            shard_count: self.shard.1,
            store: "sled".to_owned(),
            ..GetTableInfoResponse::default()
        }
    }

    fn look_up(&self, ids: &[u32], spans: &[Span]) -> LookupRows {
        let (mut lengths, mut rows) = (Vec::new(), Vec::new());
        let (shard, shards) = self.shard;
        let mut from = 0;
        for span in spans {
            let first = from + span.context as usize;
            let end = first + span.answers as usize;
            for at in first..end {
                let pair = (at > from).then(|| [ids[at - 1], ids[at]]);
                match pair.filter(|&pair| shard_of(pair, shards) == shard) {
                    Some([a, b]) => {
                        lengths.push(2);
                        self.dtype.encode(&self.row(a, b), &mut rows).unwrap();
                    }
                    None => lengths.push(0),
                }
            }
            from = end;
        }
        LookupRows {
            table_id: self.id(),
            match_lengths: lengths.into(),
            row_index: Vec::new(),
            rows: rows.into(),
        }
    }
}
