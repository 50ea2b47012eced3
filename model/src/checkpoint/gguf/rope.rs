//! llama 3's rotary positions, which llama.cpp keeps as a tensor of factors.

use super::header::TensorHeader;
use crate::config::{Rope, RopeScaling};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// What frequencies are divided by: a tensor beside the weights.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// llama 3's own numbers; a file says the factor only.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL_POSITIONS: f64 = 8192.0;

/// The `rope_scaling` that makes such factors.
///
/// # Errors
/// A file that cannot be read, or factors that are not llama 3's.
pub(super) fn scaling(
    mut file: &File,
    start: u64,
    tensor: &TensorHeader,
    theta: f64,
    head_dim: usize,
) -> Result<serde_json::Value, String> {
    if tensor.kind != 0 || tensor.shape != [head_dim / 2] {
        return Err(format!("tensor `{FACTORS}` is not of half a head's f32"));
    }
    let mut bytes = vec![0; head_dim / 2 * 4];
    file.seek(SeekFrom::Start(start + tensor.offset))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| format!("tensor `{FACTORS}` cannot be read: {e}"))?;
    let words = bytes.as_chunks::<4>().0.iter();
    let factors: Vec<f32> = words.map(|&b| f32::from_le_bytes(b)).collect();
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let plain = Rope {
        theta,
        scaling: None,
    };
    let scaled = Rope {
        theta,
        scaling: Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: LOW,
            high_freq_factor: HIGH,
            original_positions: ORIGINAL_POSITIONS,
        }),
    };
    let pairs = plain.frequencies(head_dim).into_iter();
    let pairs = pairs.zip(scaled.frequencies(head_dim)).zip(&factors);
    for ((before, after), factor) in pairs {
        let close = (before / factor - after).abs() <= 1e-3 * after;
        if !close {
            return Err(format!(
                "tensor `{FACTORS}` holds other factors than llama 3's"
            ));
        }
    }
    Ok(serde_json::json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
    }))
}
