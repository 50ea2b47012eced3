//! How much arithmetic a table takes, and how much the machine could do.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use scone_model::config::{Family, Shape};

/// Floating-point operations of A's matrix products so far.
pub(super) struct Work {
    /// Of one token of a prefix.
    per_node: f64,
    nodes: usize,
}

impl Work {
    /// No work yet for an f-gram model of this shape.
    pub(super) fn of(shape: &Shape) -> Self {
        let (d, inner) = (shape.hidden_size, shape.intermediate_size);
        let (queries, keys) = (
            shape.num_heads * shape.head_dim,
            shape.num_kv_heads * shape.head_dim,
        );
        let attention = d * (queries + 2 * keys) + queries * d;
        let forward = match shape.family {
            Family::Gpt2 => 2 * d * inner,
            _ => 3 * d * inner,
        };
        Self {
            // A multiplication and an addition for each weight; attention over at most K tokens is
            // too little to count.
            per_node: 2.0 * (shape.num_layers * (attention + forward)) as f64,
            nodes: 0,
        }
    }

    /// Adds a batch, sorted by ids: its distinct prefixes are computed.
    pub(super) fn add(&mut self, fgrams: &[&[u32]]) {
        let mut before: &[u32] = &[];
        for &ids in fgrams {
            let shared = ids.iter().zip(before).take_while(|(a, b)| a == b).count();
            self.nodes += ids.len() - shared;
            before = ids;
        }
    }

    /// Operations in all.
    pub(super) fn flops(&self) -> f64 {
        self.per_node * self.nodes as f64
    }
}

/// f32 operations a second of a large matrix product on `device`, with all threads.
pub(super) fn matmul_peak(device: &Device) -> Result<f64> {
    const SIZE: usize = 768;
    const FOR: Duration = Duration::from_millis(300);
    let a = Tensor::ones((SIZE, SIZE), DType::F32, device)?;
    // Once to warm up, and wait for a device that works on its own.
    a.matmul(&a)?;
    device.synchronize()?;
    let started = Instant::now();
    let mut products = 0;
    while started.elapsed() < FOR {
        a.matmul(&a)?;
        device.synchronize()?;
        products += 1;
    }
    let flops = 2.0 * (SIZE as f64).powi(3) * f64::from(products);
    Ok(flops / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_prefixes_count_once() {
        let mut work = Work {
            per_node: 2.0,
            nodes: 0,
        };
        work.add(&[&[1, 2], &[1, 2, 3], &[1, 3], &[2, 3]]);
        assert_eq!(work.nodes, 2 + 1 + 1 + 2);
        work.add(&[&[2, 3, 4]]);
        assert_eq!(work.flops(), 2.0 * 9.0);
    }

    #[test]
    fn a_machine_multiplies_at_some_speed() {
        let peak = matmul_peak(&Device::Cpu);
        assert!(peak.is_ok_and(|peak| peak.is_finite() && peak > 0.0));
    }
}
