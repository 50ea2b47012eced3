//! How exactly products are computed in training.

use serde::{Deserialize, Serialize};

/// The type that factors of a product are rounded to; sums and results are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// bf16: 8 bits of mantissa, the range of f32.
    Bf16,
}
