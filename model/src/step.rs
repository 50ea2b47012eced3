//! Serving: prefill chunks and decode steps of several sequences in one call.

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use candle_core::Tensor;

/// A part of a [`step`](Decoder::step): the next `len` positions of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What came before; the step adds its positions.
    pub cache: &'a mut KvCache,
    /// Number of rows of the step that are this sequence's, 1 or more.
    pub len: usize,
}

impl Decoder {
    /// Hidden states after the final norm of the next positions of some sequences: `embeds (N, D)`
    /// holds the rows of all segments end to end, and so does the result. A segment's positions
    /// follow those its cache holds; the cache gets theirs.
    ///
    /// On a CPU a row's result depends on its sequence alone, bit for bit: not on the other
    /// segments, nor on how the sequence was cut into calls. No gradients.
    ///
    /// # Errors
    /// Shapes that do not fit, an empty segment, or more positions than the model has: the caches
    /// are as before.
    pub fn step(&self, embeds: &Tensor, segments: &mut [Segment<'_>]) -> Result<Tensor> {
        let (n, width) = embeds.dims2()?;
        self.check_step(n, width, segments)?;
        let x = match &self.position_embedding {
            Some(table) => {
                let positions: Vec<u32> = segments
                    .iter()
                    .flat_map(|s| s.cache.len() as u32..(s.cache.len() + s.len) as u32)
                    .collect();
                (embeds + self.path.select_rows(table, None, &positions)?)?
            }
            None => embeds.clone(),
        };
        let mut parts: Vec<_> = segments
            .iter_mut()
            .map(|s| (&mut *s.cache, s.len))
            .collect();
        let x = self.blocks.step(&x, &mut parts)?;
        self.path.serve_norm(&self.norm, &x)
    }

    fn check_step(&self, n: usize, width: usize, segments: &[Segment<'_>]) -> Result<()> {
        let shape = self.shape();
        let rows: usize = segments.iter().map(|s| s.len).sum();
        if width != shape.hidden_size || rows != n {
            return Err(Error::Argument(format!(
                "embeddings of shape ({n}, {width}) for segments of {rows} positions and a model \
                 of width {}",
                shape.hidden_size
            )));
        }
        for segment in segments {
            let held = segment.cache.len();
            if segment.len == 0 || held + segment.len > shape.max_positions {
                return Err(Error::Argument(format!(
                    "a segment of {} positions after {held}, the model has {} in all",
                    segment.len, shape.max_positions
                )));
            }
            if !segment.cache.fits(shape) {
                return Err(Error::Argument("a cache of another model".into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Gpt2Config, LlamaConfig};
    use crate::{Decoder, KvCache, ModelConfig, Segment, init_parameters, var_builder};
    use candle_core::{Device, Tensor};

    fn step(model: &Decoder, x: &Tensor, caches: &mut [KvCache], lens: [usize; 2]) -> Vec<f32> {
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(lens)
            .map(|(cache, len)| Segment { cache, len })
            .collect();
        let hidden = model.step(x, &mut segments).unwrap();
        let logits = model.logits(&hidden).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
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
                let x = Tensor::randn(0f32, 0.1, (lens[0] + 7, 16), &Device::Cpu).unwrap();
                let expected = step(&cpu, &x, &mut caches[0], lens);
                let got = step(&tensor, &x, &mut caches[1], lens);
                for (a, b) in got.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
            let held = cpu.step(
                &Tensor::zeros((1, 16), candle_core::DType::F32, &Device::Cpu).unwrap(),
                &mut [Segment {
                    cache: &mut caches[1][0],
                    len: 1,
                }],
            );
            assert!(held.is_err(), "a cache of the other path");
        }
    }
}
