//! Whole sequences through a packed model, by the kernels that serve: for evaluation.

use crate::decoder::Decoder;
use crate::error::Result;
use crate::input::Input;
use crate::kv_blocks::{KV_BLOCK_POSITIONS, KvDtype, Part};
use crate::storage::Numbers;
use candle_core::Tensor;

impl Decoder {
    /// [`forward`](Self::forward) of a packed model, without gradients.
    pub(crate) fn packed_forward(&self, embeds: &Tensor) -> Result<Tensor> {
        let (batch, len, width) = embeds.dims3()?;
        let each = len.div_ceil(KV_BLOCK_POSITIONS);
        // Keys and values as they are: what differs is the weights' doing.
        let mut pool = self.new_pool(KvDtype::F32, batch * each)?;
        let blocks: Vec<u32> = (0..(batch * each) as u32).collect();
        let part = |blocks| Part {
            blocks,
            held: 0,
            len,
        };
        let parts: Vec<Part<'_>> = blocks.chunks(each).map(part).collect();
        let input = Input::Numbers(Numbers::of(&embeds.contiguous()?)?.values().to_vec());
        let hidden = self
            .blocks
            .step(input, &mut pool, &parts, embeds.device())?;
        let hidden = self.path.serve_norm(&self.norm, &hidden)?;
        Ok(hidden.reshape((batch, len, width))?)
    }
}
