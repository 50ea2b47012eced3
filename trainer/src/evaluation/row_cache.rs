//! The rows an evaluation has seen.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

use super::rows::RowSource;

/// Rows by f-gram, each fetched once.
pub(super) struct RowCache {
    dim: usize,
    device: Device,
    slots: HashMap<Box<[u32]>, usize>,
    values: Vec<f32>,
}

impl RowCache {
    /// An empty cache of rows `dim` wide, for a model on `device`.
    pub(super) fn new(dim: usize, device: &Device) -> Self {
        Self {
            dim,
            device: device.clone(),
            slots: HashMap::new(),
            values: Vec::new(),
        }
    }

    /// The rows of `fgrams`, `(F, D)`; `None` when there are none.
    pub(super) fn rows(
        &mut self,
        fgrams: &[&[u32]],
        source: &mut dyn RowSource,
    ) -> Result<Option<Tensor>> {
        if fgrams.is_empty() {
            return Ok(None);
        }
        let new: Vec<&[u32]> = fgrams
            .iter()
            .copied()
            .filter(|&ids| !self.slots.contains_key(ids))
            .collect();
        if !new.is_empty() {
            let rows = source.rows(&new)?;
            ensure!(
                rows.len() == new.len() * self.dim,
                "rows have another width than the model, {}",
                self.dim
            );
            for (at, ids) in (self.slots.len()..).zip(&new) {
                self.slots.insert((*ids).into(), at);
            }
            self.values.extend_from_slice(&rows);
        }
        let mut values = Vec::with_capacity(fgrams.len() * self.dim);
        for &ids in fgrams {
            let at = self.slots[ids] * self.dim;
            values.extend_from_slice(&self.values[at..at + self.dim]);
        }
        Ok(Some(Tensor::from_vec(
            values,
            (fgrams.len(), self.dim),
            &self.device,
        )?))
    }
}
