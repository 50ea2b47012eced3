//! Whether a table belongs to a model.

use scone_fgram::{
    RowDtype,
    table::{Manifest, TableName},
};
use scone_proto::embed::v1::{self as proto, GetTableInfoResponse};

/// Most shards of a table: a bound on what a wrong answer can make a client allocate.
const MAX_SHARDS: u32 = 4096;

/// What a table must agree with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Width of an input embedding.
    pub dim: u32,
    /// Number of token ids.
    pub vocab_size: u32,
    /// SHA-256 of tokenizer.json, hexadecimal.
    pub tokenizer_hash: String,
    /// SHA-256 of the f-gram model and token embedding, hexadecimal; `None` of a model without an
    /// f-gram model.
    pub model_hash: Option<String>,
    /// Base hash of the model, hexadecimal; `None` when it is not known: only tables of `model_hash`
    /// fit then.
    pub base_hash: Option<String>,
}

/// Facts of one table version, from its manifest or from an embed-service. Equal facts are the same
/// version; `base_hash` does not take part, as a replica may have been built without it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "documented in embed.proto")]
pub struct TableFacts {
    /// Which of the tables that are served side by side it is a version of.
    pub name: TableName,
    pub table_id: String,
    pub model_hash: String,
    pub base_hash: Option<String>,
    pub tokenizer_hash: String,
    pub fgram_set_hash: String,
    pub vocab_size: u32,
    pub max_n: u32,
    pub dim: u32,
    pub dtype: RowDtype,
    pub shard_count: u32,
}

/// Table and model do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{table} does not belong to this model: its {what} is {found}, the model's is {expected}; \
     build it from this model, or from an adapter over it, with `trainer precompute`"
)]
pub struct Incompatible {
    /// Which table: a directory or an address.
    pub table: String,
    /// What differs.
    pub what: &'static str,
    /// The table's value.
    pub found: String,
    /// The model's value.
    pub expected: String,
}

impl PartialEq for TableFacts {
    fn eq(&self, other: &Self) -> bool {
        // Named one by one, so that another field is not forgotten.
        let Self {
            name,
            table_id,
            model_hash,
            base_hash: _,
            tokenizer_hash,
            fgram_set_hash,
            vocab_size,
            max_n,
            dim,
            dtype,
            shard_count,
        } = self;
        *name == other.name
            && *table_id == other.table_id
            && *model_hash == other.model_hash
            && *tokenizer_hash == other.tokenizer_hash
            && *fgram_set_hash == other.fgram_set_hash
            && (*vocab_size, *max_n, *dim) == (other.vocab_size, other.max_n, other.dim)
            && (*dtype, *shard_count) == (other.dtype, other.shard_count)
    }
}

impl Eq for TableFacts {}

impl TableFacts {
    /// Facts of a table directory that is served by this name.
    pub fn from_manifest(name: &TableName, manifest: &Manifest) -> Self {
        Self {
            name: name.clone(),
            table_id: manifest.table_id.clone(),
            model_hash: manifest.model_hash.clone(),
            base_hash: manifest.base_hash.clone(),
            tokenizer_hash: manifest.tokenizer_hash.clone(),
            fgram_set_hash: manifest.fgram_set_hash.clone(),
            vocab_size: manifest.vocab_size,
            max_n: u32::from(manifest.max_n),
            dim: manifest.dim,
            dtype: manifest.dtype,
            shard_count: manifest.shard_count,
        }
    }

    /// Facts as an embed-service tells them.
    ///
    /// # Errors
    /// Says which of them contradict one another or are out of bounds.
    pub fn from_wire(name: &TableName, info: &GetTableInfoResponse) -> Result<Self, String> {
        let dtype = match info.dtype() {
            proto::RowDtype::F32 => RowDtype::F32,
            proto::RowDtype::F16 => RowDtype::F16,
            proto::RowDtype::Bf16 => RowDtype::Bf16,
            proto::RowDtype::Int8 => RowDtype::Int8,
            proto::RowDtype::Int4 => RowDtype::Int4,
            proto::RowDtype::Unspecified => {
                return Err(format!("its dtype {} is unknown here", info.dtype));
            }
        };
        if !(1..=1 << 20).contains(&info.dim) {
            return Err(format!("its dim is {}, allowed is 1 to 2^20", info.dim));
        }
        let row_bytes = dtype.row_bytes(info.dim as usize);
        if info.row_bytes as usize != row_bytes {
            return Err(format!(
                "its row_bytes is {}, but {} elements of {dtype} are {row_bytes}",
                info.row_bytes, info.dim
            ));
        }
        if !(2..=scone_fgram::MAX_N as u32).contains(&info.max_n) {
            return Err(format!("its max_n is {}, allowed is 2 to 8", info.max_n));
        }
        if info.shard_index >= info.shard_count || info.shard_count > MAX_SHARDS {
            return Err(format!(
                "it is shard {} of {}, allowed are {MAX_SHARDS}",
                info.shard_index, info.shard_count
            ));
        }
        Ok(Self {
            name: name.clone(),
            table_id: info.table_id.clone(),
            model_hash: info.model_hash.clone(),
            base_hash: Some(info.base_hash.clone()).filter(|hash| !hash.is_empty()),
            tokenizer_hash: info.tokenizer_hash.clone(),
            fgram_set_hash: info.fgram_set_hash.clone(),
            vocab_size: info.vocab_size,
            max_n: info.max_n,
            dim: info.dim,
            dtype,
            shard_count: info.shard_count,
        })
    }

    /// The model this table was made for.
    pub fn model(&self) -> ModelFacts {
        ModelFacts {
            dim: self.dim,
            vocab_size: self.vocab_size,
            tokenizer_hash: self.tokenizer_hash.clone(),
            model_hash: Some(self.model_hash.clone()),
            base_hash: self.base_hash.clone(),
        }
    }

    /// Checks that rows of this table are inputs of this model: they were made by its f-gram model, or
    /// by another one over the same main model. `table` says where it is.
    ///
    /// # Errors
    /// Names the first difference, with both values.
    pub fn check(&self, table: &str, model: &ModelFacts) -> Result<(), Incompatible> {
        let differs = |what, found: String, expected: String| {
            if found == expected {
                return Ok(());
            }
            Err(Incompatible {
                table: table.to_owned(),
                what,
                found,
                expected,
            })
        };
        differs("dim", self.dim.to_string(), model.dim.to_string())?;
        let vocab_size = model.vocab_size.to_string();
        differs("vocab_size", self.vocab_size.to_string(), vocab_size)?;
        let tokenizer = model.tokenizer_hash.clone();
        differs("tokenizer_hash", self.tokenizer_hash.clone(), tokenizer)?;
        let made_by_its_own = model.model_hash.as_ref() == Some(&self.model_hash);
        let made_over_it = self.base_hash.is_some() && self.base_hash == model.base_hash;
        if made_by_its_own || made_over_it {
            return Ok(());
        }
        let found = hashes(Some(&self.model_hash), self.base_hash.as_ref());
        let expected = hashes(model.model_hash.as_ref(), model.base_hash.as_ref());
        Err(Incompatible {
            table: table.to_owned(),
            what: "model_hash",
            found,
            expected,
        })
    }
}

/// Both hashes, of which neither fits, for a person.
fn hashes(model_hash: Option<&String>, base_hash: Option<&String>) -> String {
    let none = String::from("none");
    let (model_hash, base_hash) = (model_hash.unwrap_or(&none), base_hash.unwrap_or(&none));
    format!("{model_hash} (base_hash {base_hash})")
}

/// For the tests of this crate.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A version of a small table of `shard_count` shards.
    pub(crate) fn facts(table_id: &str, shard_count: u32) -> TableFacts {
        TableFacts {
            name: TableName::default(),
            table_id: table_id.to_owned(),
            model_hash: String::new(),
            base_hash: None,
            tokenizer_hash: String::new(),
            fgram_set_hash: String::new(),
            vocab_size: 100,
            max_n: 3,
            dim: 2,
            dtype: RowDtype::F32,
            shard_count,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn model() -> ModelFacts {
        ModelFacts {
            dim: 16,
            vocab_size: 300,
            tokenizer_hash: "aa".into(),
            model_hash: Some("bb".into()),
            base_hash: Some("cc".into()),
        }
    }

    fn table() -> TableFacts {
        TableFacts {
            name: TableName::default(),
            table_id: "t".into(),
            model_hash: "bb".into(),
            base_hash: None,
            tokenizer_hash: "aa".into(),
            fgram_set_hash: "ff".into(),
            vocab_size: 300,
            max_n: 3,
            dim: 16,
            dtype: RowDtype::F16,
            shard_count: 1,
        }
    }

    #[test]
    fn a_table_of_this_model_is_taken() {
        table().check("t", &model()).unwrap();
    }

    #[test]
    fn a_table_of_another_model_over_the_same_base_is_taken_whatever_its_k() {
        let adapter = TableFacts {
            model_hash: "other".into(),
            base_hash: Some("cc".into()),
            max_n: 7,
            ..table()
        };
        adapter.check("t", &model()).unwrap();
        let base = ModelFacts {
            model_hash: None,
            ..model()
        };
        adapter.check("t", &base).unwrap();
        // What is not known is not the same.
        let nothing = ModelFacts {
            base_hash: None,
            ..base.clone()
        };
        for table in [table(), adapter.clone()] {
            let error = table.check("t", &nothing).unwrap_err().to_string();
            assert!(error.contains("none (base_hash none)"), "{error}");
        }
        let other_base = TableFacts {
            base_hash: Some("dd".into()),
            ..adapter
        };
        let error = other_base.check("t", &base).unwrap_err().to_string();
        assert!(error.contains("other (base_hash dd)"), "{error}");
        assert!(error.contains("none (base_hash cc)"), "{error}");
    }

    #[test]
    fn a_replica_that_does_not_say_its_base_serves_the_same_version() {
        let named = TableFacts {
            base_hash: Some("cc".into()),
            ..table()
        };
        assert_eq!(named, table());
        let another = TableFacts {
            model_hash: "xx".into(),
            ..table()
        };
        assert_ne!(another, table());
    }

    #[test]
    fn facts_that_cannot_be_are_refused() {
        let good = GetTableInfoResponse {
            vocab_size: 300,
            max_n: 3,
            dim: 16,
            dtype: proto::RowDtype::F16.into(),
            row_bytes: 32,
            shard_count: 1,
            ..GetTableInfoResponse::default()
        };
        let name = TableName::default();
        TableFacts::from_wire(&name, &good).unwrap();
        type Change = fn(&mut GetTableInfoResponse);
        let cases: [(&str, Change); 9] = [
            ("dim", |i| i.dim = 0),
            ("dim", |i| i.dim = u32::MAX),
            ("row_bytes", |i| i.row_bytes = 31),
            ("dtype", |i| i.dtype = 77),
            ("dtype", |i| i.dtype = 0),
            ("max_n", |i| i.max_n = 9),
            ("shard", |i| i.shard_index = 1),
            ("shard", |i| i.shard_count = u32::MAX),
            ("shard", |i| i.shard_count = 0),
        ];
        for (what, change) in cases {
            let mut info = good.clone();
            change(&mut info);
            let error = TableFacts::from_wire(&name, &info).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn every_difference_is_refused_and_names_both_values() {
        type Change = fn(&mut TableFacts);
        let cases: [(&str, &str, &str, Change); 4] = [
            ("dim", "32", "16", |t| t.dim = 32),
            ("vocab_size", "299", "300", |t| t.vocab_size = 299),
            ("tokenizer_hash", "xx", "aa", |t| {
                t.tokenizer_hash = "xx".into();
            }),
            ("model_hash", "yy", "bb", |t| t.model_hash = "yy".into()),
        ];
        for (what, found, expected, change) in cases {
            let mut table = table();
            change(&mut table);
            let error = table.check("http://a:1", &model()).unwrap_err();
            assert_eq!(error.what, what);
            let text = error.to_string();
            for part in ["http://a:1", what, found, expected] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
