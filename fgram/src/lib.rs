//! f-grams and their table: everything about SCONE that needs no model.
//!
//! An *f-gram* is a frequent n-gram of token ids, `2 <= n <= K`. At each position of a document
//! the longest f-gram that **ends** there replaces the token embedding by its own row
//! ("Scaling Embedding Layers in Language Models", Yu et al., NeurIPS 2025, section 3).
//! Mining, training, the building of tables and serving all use the one rule in this crate.
//!
//! ```text
//! FgramSet (fgrams.bin) --matcher()--> Matcher: ids -> (length, row id) at each position
//!        | build_table(rows)
//!        v
//! table directory (table.json, keys.bin, index.bin, rows) --Table::open--> Table: ids -> rows
//! ```
//!
//! ```
//! use scone_fgram::{FgramSet, NGram, SetHeader};
//!
//! let header = SetHeader { vocab_size: 10, max_n: 3, tokenizer_hash: [0; 32], min_count: 5 };
//! let fgrams = [(vec![1, 2], 9), (vec![2, 3], 8), (vec![1, 2, 3], 7)];
//! let fgrams = fgrams.map(|(ids, count)| (NGram::from_slice(&ids).expect("2 or 3 ids"), count));
//! let set = FgramSet::new(header, fgrams.to_vec())?;
//!
//! let longest = set.matcher().longest(&[9, 1, 2, 3]).expect("1 2 3 ends here");
//! assert_eq!((longest.len, longest.row), (3, 2));
//! # Ok::<(), scone_fgram::Error>(())
//! ```
//!
//! What it is not: it holds no model and no network code, and it never looks to the right of a
//! position. The byte layout of every file is in `docs/formats.md`.

pub mod error;
mod keys;
pub mod matcher;
pub mod ngram;
pub mod set;
pub mod shard;
pub mod table;

pub use error::{Error, ErrorKind, Result};
pub use matcher::{Match, Matcher};
pub use ngram::{MAX_N, NGram, TokenId};
pub use scone_row::{EncodedRow, RowDtype};
pub use set::{Fgram, FgramSet, Rank, SetFile, SetHeader};
pub use shard::shard_of;
pub use table::{KeyIndex, Manifest, StoreKind, Table, TableOptions};
