//! Names of the files in a model directory.

/// The main model's weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// A's weights.
pub const FGRAM_MODEL_FILE: &str = "fgram_model.safetensors";
/// Which file holds which tensor, where the weights are in parts.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
