//! Which parameters share a learning rate, and which have a matrix's update.

use crate::training::config::{GroupScales, ParameterGroup};

/// The group of a parameter, by its name and number of dimensions.
pub(super) fn group(name: &str, rank: usize) -> ParameterGroup {
    if name.starts_with("fgram_model/") {
        ParameterGroup::FgramModel
    } else if rank < 2 {
        ParameterGroup::Vectors
    } else if is_in_block(name) {
        ParameterGroup::Matrices
    } else {
        ParameterGroup::Embeddings
    }
}

/// Whether Muon is for it: a matrix of a block, of the main model or of A. Embeddings and the
/// output layer are tables of rows, not maps between spaces.
pub(super) fn is_block_matrix(name: &str, rank: usize) -> bool {
    rank == 2 && is_in_block(name)
}

/// Blocks are numbered in names.
fn is_in_block(name: &str) -> bool {
    name.split(['.', '/'])
        .any(|part| part.parse::<usize>().is_ok())
}

impl GroupScales {
    /// Factor on the learning rate of a group.
    pub(super) fn of(&self, group: ParameterGroup) -> f64 {
        match group {
            ParameterGroup::Embeddings => self.embeddings,
            ParameterGroup::Matrices => self.matrices,
            ParameterGroup::Vectors => self.vectors,
            ParameterGroup::FgramModel => self.fgram_model,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_group() {
        for (name, rank, expected, muon) in [
            (
                "model/model.embed_tokens.weight",
                2,
                ParameterGroup::Embeddings,
                false,
            ),
            ("model/lm_head.weight", 2, ParameterGroup::Embeddings, false),
            (
                "model/transformer.wpe.weight",
                2,
                ParameterGroup::Embeddings,
                false,
            ),
            (
                "model/model.layers.3.mlp.up_proj.weight",
                2,
                ParameterGroup::Matrices,
                true,
            ),
            (
                "model/model.layers.3.input_layernorm.weight",
                1,
                ParameterGroup::Vectors,
                false,
            ),
            ("model/model.norm.weight", 1, ParameterGroup::Vectors, false),
            (
                "fgram_model/layers.0.mlp.up_proj.weight",
                2,
                ParameterGroup::FgramModel,
                true,
            ),
            (
                "fgram_model/position_embedding.weight",
                2,
                ParameterGroup::FgramModel,
                false,
            ),
        ] {
            assert_eq!(group(name, rank), expected, "{name}");
            assert_eq!(is_block_matrix(name, rank), muon, "{name}");
        }
    }
}
