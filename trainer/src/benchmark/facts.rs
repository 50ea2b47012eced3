//! What is known of a model without running it.

use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::Device;
use scone_fgram::Manifest;
use scone_model::Parameters;
use scone_model::checkpoint::{ModelFiles, read_parameters};
use serde::Serialize;

use super::config::Model;
use crate::training::flops::{Flops, inference};

/// Sizes and operations.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    /// Of the main model: what is served.
    pub(super) parameters: u64,
    /// Of A; none for a plain model.
    pub(super) fgram_parameters: Option<u64>,
    /// Operations of one token in serving: products of blocks and output layer.
    pub(super) inference_flops: f64,
    /// Operations of one token in training, main model alone, at the longest context.
    pub(super) training_flops: f64,
    /// Operations of one f-gram prefix in training, in A.
    pub(super) training_flops_a_prefix: f64,
    pub(super) table_rows: Option<u64>,
    /// Of the table's files.
    pub(super) table_bytes: Option<u64>,
}

impl Facts {
    /// Of a model's files.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(super) fn read(model: &Model) -> Result<Self> {
        let cannot_read = || format!("cannot read the model in {}", model.model.display());
        let files = ModelFiles::open(&model.model).with_context(cannot_read)?;
        let main = files.read(&Device::Cpu).with_context(cannot_read)?;
        let own = files.dir().join("fgram_model.safetensors");
        let own = match own.exists() {
            true => Some(read_parameters(&own, &Device::Cpu).with_context(cannot_read)?),
            false => None,
        };
        let config = files.config();
        let flops = Flops::of_weights(config, &main, own.as_ref());
        let table = model.table.as_deref().map(table_of).transpose()?;
        Ok(Self {
            parameters: count(&main),
            fgram_parameters: own.as_ref().map(count),
            inference_flops: inference(config, &main),
            training_flops: flops.of(1, 0),
            training_flops_a_prefix: flops.of(0, 1),
            table_rows: table.map(|(rows, _)| rows),
            table_bytes: table.map(|(_, bytes)| bytes),
        })
    }
}

fn count(parameters: &Parameters) -> u64 {
    let sizes = parameters.values().map(|tensor| tensor.elem_count() as u64);
    sizes.sum()
}

/// Rows and bytes of a table.
fn table_of(dir: &Path) -> Result<(u64, u64)> {
    let cannot_read = || format!("cannot read the table {}", dir.display());
    let manifest = Manifest::read(dir).with_context(cannot_read)?;
    Ok((manifest.rows, bytes_below(dir).with_context(cannot_read)?))
}

fn bytes_below(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        sum += match facts.is_dir() {
            true => bytes_below(&entry.path())?,
            false => facts.len(),
        };
    }
    Ok(sum)
}
