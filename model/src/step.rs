//! Serving: prefill chunks and decode steps of several sequences in one call.

use crate::best::{NO_BEST, best_of_rows};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::input::{self, Position};
use crate::kv_blocks::{KV_BLOCK_POSITIONS, Part};
use crate::kv_pool::KvPool;
use candle_core::{DType, Tensor};
use scone_row::EncodedRow;

/// A sequence's part of a [`step`](Decoder::step): its next positions.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Where its positions are held: block i of the pool for positions from
    /// `i *` [`KV_BLOCK_POSITIONS`] on. As many as the new positions need, too.
    pub blocks: &'a [u32],
    /// Positions computed before.
    pub held: usize,
    /// Token ids of the next positions, 1 or more.
    pub token_ids: &'a [u32],
    /// For each of them the row of the longest f-gram that ends there; without one the token
    /// embedding is the input.
    pub rows: &'a [Option<EncodedRow<'a>>],
    /// Whether the logits of the last position are wanted.
    pub samples: bool,
}

/// What a step gives of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Giving {
    /// The logits of its last position, if it samples.
    #[default]
    Last,
    /// The logits of all its positions, in order, whether it samples or not.
    All,
    /// The token of the largest logit at its last position, if it samples: no logits leave the
    /// device.
    Best,
}

/// What a step gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// V numbers a position, in the order of the segments, without those that gave their best.
    pub logits: Vec<f32>,
    /// For each segment that gave its best, in order, the token with the largest logit, the lowest of
    /// several; none when a logit is NaN or the largest one is not finite.
    pub best: Vec<Option<u32>>,
}

impl Decoder {
    /// Computes the next positions of some sequences. Returns the logits of the segments that
    /// sample, V numbers each, in order. A segment's positions follow those it held before; their keys
    /// and values are in the pool afterwards. Segments must not write to a block that another one
    /// has.
    ///
    /// On the CPU path the logits depend on their sequence alone, bit for bit: not on the other
    /// segments, nor on how the sequence was cut into calls. No gradients.
    ///
    /// # Errors
    /// An empty segment, another number of rows than ids, a row of another width, a token id out
    /// of vocabulary, more positions than the model or the blocks have, a block beyond the pool, a
    /// pool of another model.
    pub fn step(&self, pool: &mut KvPool, segments: &[Segment<'_>]) -> Result<Vec<f32>> {
        Ok(self.step_giving(pool, segments, &[])?.logits)
    }

    /// As [`step`](Self::step), and of segment i what `giving[i]` says; what is left away is
    /// [`Giving::Last`].
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_giving(
        &self,
        pool: &mut KvPool,
        segments: &[Segment<'_>],
        giving: &[Giving],
    ) -> Result<Given> {
        let mut positions = Vec::new();
        let (mut logits_of, mut best_of) = (Vec::new(), Vec::new());
        for (i, segment) in segments.iter().enumerate() {
            self.check(pool, segment)?;
            let ids = segment.token_ids.iter().zip(segment.rows);
            let indices = segment.held as u32..;
            positions.extend(ids.zip(indices).map(|((&token_id, &row), index)| Position {
                token_id,
                row,
                index,
            }));
            let end = positions.len() as u32;
            let start = end - segment.token_ids.len() as u32;
            match giving.get(i).copied().unwrap_or_default() {
                Giving::All => logits_of.extend(start..end),
                Giving::Last if segment.samples => logits_of.push(end - 1),
                Giving::Best if segment.samples => best_of.push(end - 1),
                Giving::Last | Giving::Best => {}
            }
        }
        let (tokens, learned) = (self.token_embedding(), self.position_embedding.as_ref());
        let input = match &self.packed {
            Some(ends) => {
                let token = |id, out: &mut [f32]| ends.embed(&[id], out);
                input::numbers(self.shape().hidden_size, token, learned, &positions)?
            }
            None => self.path.input(tokens, learned, &positions)?,
        };
        let parts: Vec<Part<'_>> = segments
            .iter()
            .map(|segment| Part {
                blocks: segment.blocks,
                held: segment.held,
                len: segment.token_ids.len(),
            })
            .collect();
        let hidden = self.blocks.step(input, pool, &parts, tokens.device())?;
        let mut given = Given::default();
        if !logits_of.is_empty() {
            let logits = self.logits_of(&hidden, logits_of)?;
            given.logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        }
        if !best_of.is_empty() {
            let best = best_of_rows(&self.logits_of(&hidden, best_of)?)?;
            given.best = best
                .into_iter()
                .map(|id| (id != NO_BEST).then_some(id))
                .collect();
        }
        Ok(given)
    }

    /// Logits of some rows of hidden states before the final norm.
    fn logits_of(&self, hidden: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, hidden.device())?;
        let last = hidden.index_select(&rows, 0)?;
        self.logits(&self.path.serve_norm(&self.norm, &last)?)
    }

    fn check(&self, pool: &KvPool, segment: &Segment<'_>) -> Result<()> {
        let (shape, held) = (self.shape(), segment.held);
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
        if segment.blocks.len() * KV_BLOCK_POSITIONS < held + ids {
            return Err(Error::Argument(format!(
                "{} blocks for {} positions",
                segment.blocks.len(),
                held + ids
            )));
        }
        if let Some(block) = segment
            .blocks
            .iter()
            .find(|&&b| b as usize >= pool.blocks())
        {
            return Err(Error::Argument(format!(
                "block {block} of a pool of {}",
                pool.blocks()
            )));
        }
        if !pool.fits(shape) {
            return Err(Error::Argument("a pool of another model".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Gpt2Config, LlamaConfig};
    use crate::{
        Decoder, Dtype, Giving, KvDtype, KvPool, ModelConfig, Segment, init_parameters, var_builder,
    };
    use candle_core::Device;
    use scone_row::{EncodedRow, RowDtype};

    /// A step of two sequences, in which every third position has a row.
    fn step(model: &Decoder, round: u32, pool: &mut KvPool, held: [usize; 2]) -> Vec<f32> {
        let lens = [1 + round % 3, 7];
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
        // Blocks in no order, of both sequences mixed.
        let blocks: [&[u32]; 2] = [&[7, 1, 4], &[3, 8, 0, 2, 5, 9]];
        let segments: Vec<Segment<'_>> = (0..2)
            .map(|i| Segment {
                blocks: blocks[i],
                held: held[i],
                token_ids: &ids[i],
                rows: &rows[i],
                samples: true,
            })
            .collect();
        model.step(pool, &segments).unwrap()
    }

    /// Logits of a position are the same whether they are asked for beside others or alone.
    #[test]
    fn scoring_gives_the_logits_of_every_position() {
        let config = ModelConfig::Llama(LlamaConfig::new(11, 16, 2, 4, 20, 100));
        let parameters = init_parameters(&config, 3).unwrap();
        let cpu = Decoder::load(&config, var_builder(&parameters, &Device::Cpu)).unwrap();
        for model in [cpu.clone(), cpu.on_the_tensor_path()] {
            let mut pool = model.new_pool(KvDtype::F32, 2).unwrap();
            let (ids, rows) = ([1, 5, 2, 9], [None; 4]);
            let segment = |block, held, len, samples| Segment {
                blocks: block,
                held,
                token_ids: &ids[held..held + len],
                rows: &rows[held..held + len],
                samples,
            };
            let mut single = Vec::new();
            for held in 0..4 {
                single.extend(
                    model
                        .step(&mut pool, &[segment(&[0], held, 1, true)])
                        .unwrap(),
                );
            }
            let both = [segment(&[1], 0, 3, false), segment(&[0], 3, 1, true)];
            let giving = [Giving::All];
            let all = model.step_giving(&mut pool, &both, &giving).unwrap().logits;
            assert_eq!(all.len(), 4 * 11);
            for (a, b) in all.iter().zip(single) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    /// Half precision runs on the tensor path wherever it is.
    #[test]
    fn half_precision_is_near_single() {
        let config = ModelConfig::Llama(LlamaConfig::new(11, 16, 2, 4, 20, 100));
        let parameters = init_parameters(&config, 3).unwrap();
        let single = Decoder::load(&config, var_builder(&parameters, &Device::Cpu)).unwrap();
        let mut pool = single.new_pool(KvDtype::F32, 10).unwrap();
        let expected = step(&single, 0, &mut pool, [0, 0]);
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (dtype, tolerance) in [(Dtype::F16, 0.005), (Dtype::Bf16, 0.03)] {
            let half = single.clone().cast(dtype).unwrap();
            let mut pool = half.new_pool(KvDtype::F16, 10).unwrap();
            let got = step(&half, 0, &mut pool, [0, 0]);
            for (a, b) in got.iter().zip(&expected) {
                assert!((a - b).abs() < tolerance * largest, "{dtype}: {a} {b}");
            }
        }
    }

    /// What runs on other devices, run on the CPU.
    #[test]
    fn the_two_paths_agree() {
        let mut llama = LlamaConfig::new(11, 16, 2, 4, 20, 100);
        llama.num_key_value_heads = Some(2);
        let gpt2 = Gpt2Config::new(11, 16, 2, 4, 100);
        for config in [ModelConfig::Llama(llama), ModelConfig::Gpt2(gpt2)] {
            for (dtype, tolerance) in [(KvDtype::F32, 1e-4), (KvDtype::F16, 1e-3)] {
                let parameters = init_parameters(&config, 3).unwrap();
                let cpu = Decoder::load(&config, var_builder(&parameters, &Device::Cpu)).unwrap();
                let tensor = cpu.clone().on_the_tensor_path();
                let mut pools = [&cpu, &tensor].map(|model| model.new_pool(dtype, 10).unwrap());
                let mut held = [0, 0];
                for round in 0..12 {
                    let expected = step(&cpu, round, &mut pools[0], held);
                    let got = step(&tensor, round, &mut pools[1], held);
                    assert_eq!(expected.len(), 2 * 11);
                    for (a, b) in got.iter().zip(expected) {
                        assert!((a - b).abs() < tolerance, "{a} {b}");
                    }
                    held = [held[0] + 1 + (round % 3) as usize, held[1] + 7];
                }
                let other = [Segment {
                    blocks: &[0],
                    held: 0,
                    token_ids: &[1],
                    rows: &[None],
                    samples: true,
                }];
                assert!(
                    cpu.step(&mut pools[1], &other).is_err(),
                    "the other path's pool"
                );
            }
        }
    }
}
