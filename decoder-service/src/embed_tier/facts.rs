//! Whether a table belongs to a model.

use scone_fgram::{RowDtype, table::Manifest};

/// What a table must agree with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Width of an input embedding.
    pub dim: u32,
    /// Number of token ids.
    pub vocab_size: u32,
    /// K of scone.json.
    pub max_n: u32,
    /// SHA-256 of tokenizer.json, hexadecimal.
    pub tokenizer_hash: String,
    /// SHA-256 of the f-gram model and token embedding, hexadecimal.
    pub model_hash: String,
}

/// Facts of a table, from its manifest or from an embed-service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented in embed.proto")]
pub struct TableFacts {
    pub table_id: String,
    pub model_hash: String,
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
     build it from this model with `trainer precompute`"
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

impl TableFacts {
    /// Facts of a table directory.
    pub fn from_manifest(manifest: &Manifest) -> Self {
        Self {
            table_id: manifest.table_id.clone(),
            model_hash: manifest.model_hash.clone(),
            tokenizer_hash: manifest.tokenizer_hash.clone(),
            fgram_set_hash: manifest.fgram_set_hash.clone(),
            vocab_size: manifest.vocab_size,
            max_n: u32::from(manifest.max_n),
            dim: manifest.dim,
            dtype: manifest.dtype,
            shard_count: manifest.shard_count,
        }
    }

    /// Checks that rows of this table are inputs of this model. `table` says where it is.
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
        differs("max_n", self.max_n.to_string(), model.max_n.to_string())?;
        let tokenizer = model.tokenizer_hash.clone();
        differs("tokenizer_hash", self.tokenizer_hash.clone(), tokenizer)?;
        let hash = model.model_hash.clone();
        differs("model_hash", self.model_hash.clone(), hash)
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
            max_n: 3,
            tokenizer_hash: "aa".into(),
            model_hash: "bb".into(),
        }
    }

    fn table() -> TableFacts {
        TableFacts {
            table_id: "t".into(),
            model_hash: "bb".into(),
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
    fn every_difference_is_refused_and_names_both_values() {
        type Change = fn(&mut TableFacts);
        let cases: [(&str, &str, &str, Change); 5] = [
            ("dim", "32", "16", |t| t.dim = 32),
            ("vocab_size", "299", "300", |t| t.vocab_size = 299),
            ("max_n", "4", "3", |t| t.max_n = 4),
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
