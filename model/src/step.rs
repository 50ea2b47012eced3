//! Serving: prefill chunks and decode steps of several sequences in one call.

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::infer::{self, Context, Head};
use crate::kernels::rows::{rotary_angles, rotary_frequencies, rotate};
use crate::kv_cache::Segment;
use crate::ops::{self, Heads};
use candle_core::Tensor;

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
        if !embeds.device().is_cpu() {
            return self.composed_step(embeds, segments);
        }
        let embeds = embeds.to_dtype(candle_core::DType::F32)?.contiguous()?;
        let mut x = infer::with_values(&embeds, <[f32]>::to_vec)?;
        for segment in segments.iter_mut() {
            segment.cache.rollback();
            segment.cache.reserve(segment.len);
        }
        let mut context = Sequences::new(segments, self.shape().rope_theta, self.head_dim());
        if let Some(table) = self.position_embedding() {
            infer::with_values(table, |table| context.add_positions(&mut x, table, width))?;
        }
        for (layer, block) in self.blocks().iter().enumerate() {
            infer::block(block, layer, &mut x, &mut context)?;
        }
        let hidden = infer::norm(self.norm(), &x)?;
        for segment in segments.iter_mut() {
            segment.cache.commit(segment.len);
        }
        Ok(Tensor::from_vec(hidden, (n, width), embeds.device())?)
    }

    /// Logits of `hidden (N, D)`, `(N, V)`, for serving: as [`logits`](Self::logits), but a row
    /// does not depend on the others, bit for bit (on a CPU). No gradients.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn step_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let (n, width) = hidden.dims2()?;
        if width != self.shape().hidden_size {
            return Err(Error::Argument(format!(
                "hidden states of width {width}, the model has {}",
                self.shape().hidden_size
            )));
        }
        if !hidden.device().is_cpu() {
            return self.logits(hidden);
        }
        let hidden = hidden.contiguous()?;
        let logits = infer::with_values(&hidden, |x| infer::linear(self.output(), x))??;
        let dims = (n, self.shape().vocab_size);
        Ok(Tensor::from_vec(logits, dims, hidden.device())?)
    }

    /// [`step`](Self::step) of candle's operations, for other devices than the CPU.
    fn composed_step(&self, embeds: &Tensor, segments: &mut [Segment<'_>]) -> Result<Tensor> {
        let places = segments
            .iter()
            .flat_map(|s| s.cache.len() as u32..(s.cache.len() + s.len) as u32);
        let mut x = match self.position_embedding() {
            Some(table) => {
                let positions =
                    ops::composed::select_rows(table, None, &places.collect::<Vec<_>>())?;
                (embeds + positions)?
            }
            None => embeds.clone(),
        };
        for (layer, block) in self.blocks().iter().enumerate() {
            let attention = &block.attention;
            let (q, k, v) = attention.project(&block.attention_norm.forward(&x)?)?;
            let mut mixed = Vec::with_capacity(segments.len());
            let mut start = 0;
            for segment in segments.iter_mut() {
                let part = |x: &Tensor| x.narrow(0, start, segment.len);
                let (mut q, mut k, v) = (part(&q)?, part(&k)?, part(&v)?);
                if let Some(theta) = attention.heads.rope_theta {
                    let first = segment.cache.len();
                    q = ops::composed::rotate_rows(&q, &attention.heads, theta, first)?;
                    k = ops::composed::rotate_rows(&k, &attention.heads, theta, first)?;
                }
                let (k, v) = segment.cache.append(layer, &k, &v)?;
                mixed.push(ops::composed::cached_attention(
                    &q,
                    &k,
                    &v,
                    &attention.heads,
                )?);
                start += segment.len;
            }
            x = (x + attention.output.forward(&Tensor::cat(&mixed, 0)?)?)?;
            let mlp = block.mlp.forward(&block.mlp_norm.forward(&x)?)?;
            x = (x + mlp)?;
        }
        for segment in segments.iter_mut() {
            segment.cache.commit(segment.len);
        }
        self.norm().forward(&x)
    }

    fn head_dim(&self) -> usize {
        self.shape().head_dim
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
            let cache = &segment.cache;
            if segment.len == 0 || segment.len > cache.room() {
                return Err(Error::Argument(format!(
                    "a segment of {} positions after {}, the model has {} in all",
                    segment.len,
                    cache.len(),
                    shape.max_positions
                )));
            }
            if cache.layers.len() != shape.num_layers
                || cache.width != shape.num_kv_heads * shape.head_dim
            {
                return Err(Error::Argument("a cache of another model".into()));
            }
        }
        Ok(())
    }
}

/// The sequences of one call.
struct Sequences<'a, 'b> {
    segments: &'a mut [Segment<'b>],
    /// Segment and position of each row.
    places: Vec<(usize, usize)>,
    /// Rotary angles of each row, none without rotary positions.
    angles: Vec<f32>,
}

impl<'a, 'b> Sequences<'a, 'b> {
    fn new(segments: &'a mut [Segment<'b>], rope_theta: Option<f64>, head_dim: usize) -> Self {
        let places: Vec<_> = segments
            .iter()
            .enumerate()
            .flat_map(|(i, s)| {
                let start = s.cache.len();
                (start..start + s.len).map(move |position| (i, position))
            })
            .collect();
        let mut angles = Vec::new();
        if let Some(theta) = rope_theta {
            let frequencies = rotary_frequencies(theta, head_dim);
            angles.resize(places.len() * head_dim, 0.0);
            for (out, place) in angles.chunks_mut(head_dim).zip(&places) {
                rotary_angles(&frequencies, place.1, out);
            }
        }
        Self {
            segments,
            places,
            angles,
        }
    }

    fn add_positions(&self, x: &mut [f32], table: &[f32], width: usize) {
        for (x, place) in x.chunks_mut(width).zip(&self.places) {
            let row = &table[place.1 * width..(place.1 + 1) * width];
            for (x, p) in x.iter_mut().zip(row) {
                *x += p;
            }
        }
    }

    fn rotate(&self, rows: &mut [f32], head_dim: usize) {
        if self.angles.is_empty() {
            return;
        }
        let width = rows.len() / self.places.len();
        let angles = self.angles.chunks(head_dim);
        for (row, angles) in rows.chunks_mut(width).zip(angles) {
            for head in row.chunks_mut(head_dim) {
                rotate(head, angles, 1.0);
            }
        }
    }
}

impl Context for Sequences<'_, '_> {
    fn extend(&mut self, layer: usize, q: &mut [f32], k: &mut [f32], v: &[f32], heads: &Heads) {
        self.rotate(q, heads.head_dim);
        self.rotate(k, heads.head_dim);
        let mut start = 0;
        for segment in self.segments.iter_mut() {
            let end = start + segment.len * segment.cache.width;
            let cache = &mut segment.cache.layers[layer];
            cache.keys.extend_from_slice(&k[start..end]);
            cache.values.extend_from_slice(&v[start..end]);
            start = end;
        }
    }

    fn attend(&self, head: &Head<'_>, row: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
        let (segment, position) = self.places[row];
        let cache = &self.segments[segment].cache.layers[head.layer];
        head.over(&cache.keys, &cache.values, 0..=position, scores, out);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Gpt2Config, LlamaConfig};
    use crate::{Decoder, KvCache, ModelConfig, Segment, init_parameters, var_builder};
    use candle_core::{Device, Tensor};

    /// The path of other devices, run on the CPU.
    #[test]
    fn the_composed_step_equals_the_step() {
        let mut llama = LlamaConfig::new(11, 16, 2, 4, 20, 100);
        llama.num_key_value_heads = Some(2);
        let gpt2 = Gpt2Config::new(11, 16, 2, 4, 100);
        for config in [ModelConfig::Llama(llama), ModelConfig::Gpt2(gpt2)] {
            let parameters = init_parameters(&config, 3).unwrap();
            let model = Decoder::load(&config, var_builder(&parameters, &Device::Cpu)).unwrap();
            let mut caches: Vec<KvCache> = (0..4).map(|_| KvCache::new(model.shape())).collect();
            for round in 0..12 {
                let lens = [1 + round % 3, 7];
                let rows = lens.iter().sum();
                let x = Tensor::randn(0f32, 0.1, (rows, 16), &Device::Cpu).unwrap();
                let mut halves = caches.chunks_mut(2);
                let mut run = |composed: bool| {
                    let caches = halves.next().unwrap();
                    let mut segments: Vec<Segment<'_>> = caches
                        .iter_mut()
                        .zip(lens)
                        .map(|(cache, len)| Segment { cache, len })
                        .collect();
                    let hidden = if composed {
                        model.composed_step(&x, &mut segments)
                    } else {
                        model.step(&x, &mut segments)
                    };
                    hidden
                        .unwrap()
                        .flatten_all()
                        .unwrap()
                        .to_vec1::<f32>()
                        .unwrap()
                };
                for (a, b) in run(true).iter().zip(run(false)) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }
}
