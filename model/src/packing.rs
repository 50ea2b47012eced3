//! Packing a model for serving.

use crate::decoder::Decoder;
use crate::error::Result;
use crate::packed_ends::{PackedEnds, Packing, not_on_the_cpu, nothing};
use crate::path::{Path, packed};
use crate::weight_type::WeightType;
use std::sync::Arc;

impl Decoder {
    /// The model with its weights converted to a type and packed for the kernels that serve, the
    /// output layer included; what they were before is dropped with `self`, so memory falls with
    /// the type. A packed model serves ([`step`](Self::step), [`logits`](Self::logits)) and can be
    /// evaluated ([`forward`](Self::forward), [`token_losses`](Self::token_losses), by the same
    /// kernels), but does not train; its [`token_embedding`](Self::token_embedding) is an empty
    /// `(0, D)`, and [`input_embeddings`](Self::input_embeddings) reads rows of the packed one.
    ///
    /// A row's result depends on its sequence alone, bit for bit, with every type. With f32 the
    /// results of a llama model are those without packing. With int8 and int4 they are the same
    /// on every processor. In int4 the output layer is int8.
    ///
    /// # Errors
    /// A model that is not in f32 in host memory, or packed already.
    pub fn pack(mut self, kind: WeightType) -> Result<Self> {
        if self.packed.is_some() {
            return Err(packed());
        }
        if self.path != Path::Cpu {
            return Err(not_on_the_cpu(&self.token_embedding));
        }
        let nothing = nothing(self.shape())?;
        let bytes = self.blocks.pack(kind)?;
        let tied = self.output.weight.id() == self.token_embedding.id();
        let embedding = std::mem::replace(&mut self.token_embedding, nothing.clone());
        let output = std::mem::replace(&mut self.output.weight, nothing);
        let mut ends = match tied {
            true => PackedEnds::tied(kind, embedding)?,
            false => PackedEnds::apart(kind, embedding, || Ok(output))?,
        };
        ends.count_blocks(bytes);
        self.packed = Some(Arc::new(ends));
        Ok(self)
    }

    /// How the model is packed; `None` when it is not.
    pub fn packing(&self) -> Option<Packing> {
        self.packed.as_ref().map(|packed| packed.packing())
    }
}
