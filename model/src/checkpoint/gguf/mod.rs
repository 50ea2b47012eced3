//! GGUF files, llama.cpp's format: a llama's config and weights in one file. Read only; weights are
//! made f32 as they are read.

mod config;
mod header;
mod names;
mod rope;

use super::dtype::StoredDtype;
use super::file::{Encoding, Entry, TensorFile, unusable};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use candle_core::quantized::GgmlDType;
use header::{Header, TensorHeader};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Opens a file and reads its header. Tensors get the names that `transformers` has for them.
///
/// # Errors
/// A file that cannot be read, an architecture or a value of it that is not supported, a tensor that
/// no llama has or of an unknown type, or tensors that overlap or leave the file.
pub(super) fn open(path: &Path) -> Result<(ModelConfig, TensorFile)> {
    let failed = || scone_files::Error::at("read", path);
    let file = File::open(path).map_err(failed())?;
    let len = file.metadata().map_err(failed())?.len();
    let header = match Header::read(&file, len) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            return Err(unusable(path, e.to_string()));
        }
        read => read.map_err(failed())?,
    };
    let (config, entries) = understand(&file, len, &header).map_err(|e| match e {
        Refused::Config(error) => error,
        Refused::File(reason) => unusable(path, reason),
    })?;
    let file = TensorFile {
        path: path.to_owned(),
        file,
        entries,
    };
    Ok((config, file))
}

/// Why a file is not taken.
enum Refused {
    Config(Error),
    File(String),
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::File(reason)
    }
}

/// What a header says, checked.
fn understand(
    file: &File,
    len: u64,
    header: &Header,
) -> std::result::Result<(ModelConfig, BTreeMap<String, Entry>), Refused> {
    check_places(header, len)?;
    let mut config = config::read(header)?;
    if let Some(factors) = header.tensors.get(rope::FACTORS) {
        let head_dim = config
            .head_dim
            .unwrap_or(config.hidden_size / config.num_attention_heads.max(1));
        if config.rope_scaling.is_some() {
            let both = "has both rope.scaling and rope_freqs.weight, which is not supported";
            return Err(Refused::File(both.to_owned()));
        }
        let start = header.data_start;
        let scaling = rope::scaling(file, start, factors, config.rope_theta, head_dim)?;
        config.rope_scaling = Some(scaling);
    }
    let config = ModelConfig::Llama(config);
    config.validate().map_err(Refused::Config)?;
    let head_dim = config.shape().head_dim;
    let weights = header
        .tensors
        .iter()
        .filter(|(name, _)| *name != rope::FACTORS);
    let entries = weights
        .map(|(name, tensor)| entry(header, name, tensor, head_dim))
        .collect::<std::result::Result<_, _>>()?;
    Ok((config, entries))
}

fn entry(
    header: &Header,
    name: &str,
    tensor: &TensorHeader,
    head_dim: usize,
) -> std::result::Result<(String, Entry), String> {
    let named = names::translate(name).ok_or_else(|| format!("no llama has a tensor `{name}`"))?;
    let (encoding, _) = encoding(name, tensor)?;
    let entry = Entry {
        encoding,
        shape: tensor.shape.clone(),
        start: header.data_start + tensor.offset,
        interleaved: named.turned.then_some(head_dim),
    };
    Ok((named.name, entry))
}

/// How a tensor is stored, and in how many bytes.
fn encoding(name: &str, tensor: &TensorHeader) -> std::result::Result<(Encoding, u64), String> {
    let encoding = match tensor.kind {
        0 => Encoding::Plain(StoredDtype::F32),
        1 => Encoding::Plain(StoredDtype::F16),
        2 => Encoding::Blocks(GgmlDType::Q4_0),
        3 => Encoding::Blocks(GgmlDType::Q4_1),
        6 => Encoding::Blocks(GgmlDType::Q5_0),
        7 => Encoding::Blocks(GgmlDType::Q5_1),
        8 => Encoding::Blocks(GgmlDType::Q8_0),
        10 => Encoding::Blocks(GgmlDType::Q2K),
        11 => Encoding::Blocks(GgmlDType::Q3K),
        12 => Encoding::Blocks(GgmlDType::Q4K),
        13 => Encoding::Blocks(GgmlDType::Q5K),
        14 => Encoding::Blocks(GgmlDType::Q6K),
        30 => Encoding::Plain(StoredDtype::Bf16),
        other => {
            return Err(format!(
                "tensor `{name}` is of ggml type {other}, not supported"
            ));
        }
    };
    let (block, bytes) = encoding.block();
    let row = tensor.shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(format!(
            "tensor `{name}` has rows of {row} numbers, its type blocks of {block}"
        ));
    }
    let elements = tensor
        .shape
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size));
    let size = elements.and_then(|elements| (elements / block).checked_mul(bytes));
    let size = size.ok_or_else(|| format!("tensor `{name}` is too large"))?;
    Ok((encoding, size as u64))
}

/// Tensors lie within the file, and do not overlap.
fn check_places(header: &Header, len: u64) -> std::result::Result<(), String> {
    let mut ranges = Vec::with_capacity(header.tensors.len());
    for (name, tensor) in &header.tensors {
        let (_, size) = encoding(name, tensor)?;
        ranges.push((tensor.offset, size, name));
    }
    ranges.sort_unstable();
    let held = len.saturating_sub(header.data_start);
    let mut end = 0;
    for (offset, size, name) in ranges {
        if offset < end {
            return Err(format!("tensor `{name}` overlaps the one before"));
        }
        end = match offset.checked_add(size) {
            Some(end) if end <= held => end,
            _ => return Err(format!("tensor `{name}` ends beyond the end of the file")),
        };
    }
    Ok(())
}
