//! The hash that ties a table to the model it was made of.

use super::safetensors::host_values;
use crate::error::Result;
use crate::init::Parameters;
use candle_core::Tensor;
use sha2::{Digest, Sha256};

/// SHA-256, lower-case hexadecimal, over names, shapes and f32 values of A's weights in name
/// order and then of T: two models with the same hash have the same table.
///
/// # Errors
/// A tensor that cannot be read from its device.
pub fn model_hash(fgram_parameters: &Parameters, token_embedding: &Tensor) -> Result<String> {
    let mut hash = Sha256::new();
    let named = fgram_parameters
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    for (name, tensor) in named.chain([("token_embedding", token_embedding)]) {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((tensor.rank() as u64).to_le_bytes());
        for &dim in tensor.dims() {
            hash.update((dim as u64).to_le_bytes());
        }
        for chunk in host_values(tensor)?.chunks(4096) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
            hash.update(&bytes);
        }
    }
    Ok(scone_files::hex(&hash.finalize()))
}
