//! Serving: prefill chunks and decode steps of several sequences in one call.

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::input::Position;
use crate::kv_cache::KvCache;
use candle_core::{DType, Tensor};
use scone_row::EncodedRow;

/// A sequence's part of a [`step`](Decoder::step): its next positions.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What came before; the step adds its positions.
    pub cache: &'a mut KvCache,
    /// Token ids of the next positions, 1 or more.
    pub token_ids: &'a [u32],
    /// For each of them the row of the longest f-gram that ends there; without one the token
    /// embedding is the input.
    pub rows: &'a [Option<EncodedRow<'a>>],
    /// Whether the logits of the last position are wanted.
    pub samples: bool,
}

impl Decoder {
    /// Computes the next positions of some sequences. Returns the logits of the segments that
    /// sample, V numbers each, in order. A segment's positions follow those its cache holds; the
    /// cache gets theirs.
    ///
    /// On the CPU path the logits depend on their sequence alone, bit for bit: not on the other
    /// segments, nor on how the sequence was cut into calls. No gradients.
    ///
    /// # Errors
    /// An empty segment, another number of rows than ids, a row of another width, a token id out
    /// of vocabulary, more positions than the model has, a cache of another model: the caches are
    /// as before.
    pub fn step(&self, segments: &mut [Segment<'_>]) -> Result<Vec<f32>> {
        let mut positions = Vec::new();
        let mut sampled = Vec::new();
        for segment in &*segments {
            self.check(segment)?;
            let ids = segment.token_ids.iter().zip(segment.rows);
            let indices = segment.cache.len() as u32..;
            positions.extend(ids.zip(indices).map(|((&token_id, &row), index)| Position {
                token_id,
                row,
                index,
            }));
            if segment.samples {
                sampled.push(positions.len() as u32 - 1);
            }
        }
        let (tokens, learned) = (self.token_embedding(), self.position_embedding.as_ref());
        let input = self.path.input(tokens, learned, &positions)?;
        let sequences = segments
            .iter_mut()
            .map(|segment| (&mut *segment.cache, segment.token_ids.len()));
        let hidden = self
            .blocks
            .step(input, sequences.collect(), tokens.device())?;
        if sampled.is_empty() {
            return Ok(Vec::new());
        }
        let count = sampled.len();
        let sampled = Tensor::from_vec(sampled, count, tokens.device())?;
        let last = hidden.index_select(&sampled, 0)?;
        let logits = self.logits(&self.path.serve_norm(&self.norm, &last)?)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn check(&self, segment: &Segment<'_>) -> Result<()> {
        let (shape, held) = (self.shape(), segment.cache.len());
        let (ids, rows) = (segment.token_ids.len(), segment.rows.len());
        if ids != rows {
            return Err(Error::Argument(format!("{rows} rows for {ids} token ids")));
        }
        if ids == 0 || held + ids > shape.max_positions {
            return Err(Error::Argument(format!(
                "a segment of {ids} positions after {held}, the model has {} in all",
                shape.max_positions
            )));
        }
        if !segment.cache.fits(shape) {
            return Err(Error::Argument("a cache of another model".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Gpt2Config, LlamaConfig};
    use crate::{Decoder, KvCache, ModelConfig, Segment, init_parameters, var_builder};
    use candle_core::Device;
    use scone_row::{EncodedRow, RowDtype};

    /// A step of two sequences, in which every third position has a row.
    fn step(model: &Decoder, round: u32, caches: &mut [KvCache; 2], lens: [u32; 2]) -> Vec<f32> {
        let row: Vec<u8> = (0..16)
            .flat_map(|i| ((i + round) as f32).sin().to_le_bytes())
            .collect();
        let dtype = RowDtype::F32;
        let row = |i: u32| {
            i.is_multiple_of(3)
                .then_some(EncodedRow { dtype, bytes: &row })
        };
        let ids = lens.map(|len| (0..len).map(|i| (i * 3 + round) % 11).collect::<Vec<_>>());
        let rows = lens.map(|len| (0..len).map(row).collect::<Vec<_>>());
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(ids.iter().zip(&rows))
            .map(|(cache, (token_ids, rows))| Segment {
                cache,
                token_ids,
                rows,
                samples: true,
            })
            .collect();
        model.step(&mut segments).unwrap()
    }

    /// What runs on other devices, run on the CPU.
    #[test]
    fn the_two_paths_agree() {
        let mut llama = LlamaConfig::new(11, 16, 2, 4, 20, 100);
        llama.num_key_value_heads = Some(2);
        let gpt2 = Gpt2Config::new(11, 16, 2, 4, 100);
        for config in [ModelConfig::Llama(llama), ModelConfig::Gpt2(gpt2)] {
            let parameters = init_parameters(&config, 3).unwrap();
            let cpu = Decoder::load(&config, var_builder(&parameters, &Device::Cpu)).unwrap();
            let tensor = cpu.clone().on_the_tensor_path();
            let mut caches = [&cpu, &tensor].map(|model| [(); 2].map(|()| model.new_cache()));
            for round in 0..12 {
                let lens = [1 + round % 3, 7];
                let expected = step(&cpu, round, &mut caches[0], lens);
                let got = step(&tensor, round, &mut caches[1], lens);
                assert_eq!(expected.len(), 2 * 11);
                for (a, b) in got.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
            let mut other = [Segment {
                cache: &mut caches[1][0],
                token_ids: &[1],
                rows: &[None],
                samples: true,
            }];
            assert!(cpu.step(&mut other).is_err(), "a cache of the other path");
        }
    }
}
