//! The hashes that tie a table to the model it was made of, and to the base under that model.

use super::safetensors::host_values;
use crate::config::TensorSpec;
use crate::error::Result;
use crate::init::Parameters;
use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Numbers of a tensor that are hashed in one piece. Part of the base hash: another value is
/// another hash.
const PIECE: usize = 1 << 18;

/// What a tensor's numbers come to in the base hash.
pub(super) type NumbersDigest = [u8; 32];

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
        add_name_and_shape(&mut hash, name, tensor.dims());
        add_numbers(&mut hash, &host_values(tensor)?);
    }
    Ok(scone_files::hex(&hash.finalize()))
}

/// SHA-256 of the SHA-256s of pieces of [`PIECE`] numbers, as little-endian f32, so that all
/// processors take part.
pub(super) fn numbers_digest(numbers: &[f32]) -> NumbersDigest {
    let pieces = numbers.par_chunks(PIECE).map(|piece| {
        let mut hash = Sha256::new();
        add_numbers(&mut hash, piece);
        NumbersDigest::from(hash.finalize())
    });
    let pieces: Vec<NumbersDigest> = pieces.collect();
    Sha256::digest(pieces.concat()).into()
}

/// The base hash of tensors with the digests of their numbers, in the order of names: SHA-256,
/// lower-case hexadecimal.
pub(super) fn base_hash<'a>(
    tensors: impl IntoIterator<Item = (&'a TensorSpec, &'a NumbersDigest)>,
) -> String {
    let mut hash = Sha256::new();
    hash.update("scone-base-1");
    for (spec, digest) in tensors {
        add_name_and_shape(&mut hash, &spec.name, &spec.shape);
        hash.update(digest);
    }
    scone_files::hex(&hash.finalize())
}

fn add_name_and_shape(hash: &mut Sha256, name: &str, shape: &[usize]) {
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    hash.update((shape.len() as u64).to_le_bytes());
    for &size in shape {
        hash.update((size as u64).to_le_bytes());
    }
}

fn add_numbers(hash: &mut Sha256, numbers: &[f32]) {
    let mut bytes = [[0; 4]; 4096];
    for chunk in numbers.chunks(bytes.len()) {
        let bytes = &mut bytes[..chunk.len()];
        bytes
            .iter_mut()
            .zip(chunk)
            .for_each(|(to, number)| *to = number.to_le_bytes());
        hash.update(bytes.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_hashed_in_pieces() {
        let numbers: Vec<f32> = (0..PIECE + 5).map(|i| i as f32 * 0.1).collect();
        let bytes =
            |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
        let pieces = [&numbers[..PIECE], &numbers[PIECE..]];
        let pieces = pieces.map(|piece| Sha256::digest(bytes(piece))).concat();
        let expected: NumbersDigest = Sha256::digest(pieces).into();
        assert_eq!(numbers_digest(&numbers), expected);
        assert_ne!(numbers_digest(&numbers[..PIECE]), expected);
    }
}
