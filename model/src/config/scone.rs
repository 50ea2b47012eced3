//! `scone.json`: what makes a model directory a SCONE model.

use super::{ModelConfig, Shape};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Longest f-gram any file of ours may have, in tokens.
const MAX_N: usize = 8;

/// Shape of the f-gram model A; width and block come from the main model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FgramModelConfig {
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; absent: as many as query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Whether a norm follows the last block.
    pub final_norm: bool,
    /// K: positions of the learned position embedding, from 2 to 8.
    pub max_n: usize,
}

impl FgramModelConfig {
    /// The sizes of A beside this main model.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that does not fit.
    pub fn shape(&self, main: &ModelConfig) -> Result<Shape> {
        if !(2..=MAX_N).contains(&self.max_n) {
            let reason = format!("must be from 2 to {MAX_N}, got {}", self.max_n);
            return Err(Error::config("fgram_model.max_n", reason));
        }
        let main = main.shape();
        let heads = self.num_attention_heads;
        if heads == 0 || !main.hidden_size.is_multiple_of(heads) {
            let reason = format!("{heads} does not divide the width, {}", main.hidden_size);
            return Err(Error::config("fgram_model.num_attention_heads", reason));
        }
        let shape = Shape {
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            num_heads: heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: main.hidden_size / heads,
            max_positions: self.max_n,
            rope: None,
            ..main
        };
        shape.validate()?;
        Ok(shape)
    }
}

/// The content of `scone.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SconeConfig {
    /// K: longest f-gram in tokens.
    pub max_n: usize,
    /// Hash of `fgrams.bin`.
    pub fgram_set_hash: String,
    /// Shape of A.
    pub fgram_model: FgramModelConfig,
    /// Hash of A and the token embedding, [`crate::checkpoint::model_hash`].
    pub model_hash: String,
}

impl SconeConfig {
    /// File name inside a model directory.
    pub const FILE: &'static str = "scone.json";

    /// Reads `scone.json` of a model directory; `None` when there is none: a plain model.
    ///
    /// # Errors
    /// A file that cannot be read or does not parse, or sizes that disagree.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(Self::FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(scone_files::Error::at("read", &path)(e).into()),
        };
        let config: Self =
            serde_json::from_str(&text).map_err(|source| Error::Json { path, source })?;
        if config.max_n != config.fgram_model.max_n {
            let reason = format!(
                "{} differs from fgram_model.max_n, {}",
                config.max_n, config.fgram_model.max_n
            );
            return Err(Error::config("max_n", reason));
        }
        Ok(Some(config))
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("plain structs of numbers and strings serialise");
        text.push('\n');
        text
    }
}
