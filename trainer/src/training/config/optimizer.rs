//! Section `optimizer`.

use serde::{Deserialize, Serialize};

/// How parameters are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW for all.
    #[default]
    Adamw,
    /// Muon for the matrices of blocks, AdamW for the rest.
    Muon,
}

/// Parameters that share a learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterGroup {
    /// Token and position embeddings and the output layer of the main model.
    Embeddings,
    /// Matrices of the main model's blocks.
    Matrices,
    /// Norms and biases of the main model.
    Vectors,
    /// All of A.
    FgramModel,
}

/// `optimizer.groups`: factors on the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupScales {
    /// Token and position embeddings and the output layer of the main model.
    pub embeddings: f64,
    /// Matrices of the main model's blocks.
    pub matrices: f64,
    /// Norms and biases of the main model.
    pub vectors: f64,
    /// All of A.
    pub fgram_model: f64,
}

impl Default for GroupScales {
    fn default() -> Self {
        Self {
            embeddings: 1.0,
            matrices: 1.0,
            vectors: 1.0,
            fgram_model: 1.0,
        }
    }
}

/// `optimizer`: AdamW or Muon, warm-up and cosine decay. Defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// adamw or muon.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Factors on it by group of parameters.
    pub groups: GroupScales,
    /// Learning rate at the last step, as a share of the peak.
    pub min_lr_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay, of matrices only (not of norms, biases and positions' vectors).
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip: f64,
    /// Muon's decay of the gradient's running mean.
    pub momentum: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            groups: GroupScales::default(),
            momentum: 0.95,
            lr: 1e-3,
            min_lr_ratio: 0.1,
            warmup_steps: 100,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
        }
    }
}
