//! A file of tensors: what its header promises, and its numbers, read piece by piece.

use super::dtype::StoredDtype;
use crate::config::TensorSpec;
use crate::error::{Error, Result};
use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes read at once, about.
const PIECE: usize = 1 << 20;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain(StoredDtype),
    /// Quantised in blocks, as llama.cpp does.
    Blocks(GgmlDType),
    /// A type that no weight has: buffers of old checkpoints (gpt2's attention masks).
    Other,
}

impl Encoding {
    /// Numbers of a block, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.size()),
            Self::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
            Self::Other => (1, 1),
        }
    }

    /// The narrowest type that holds the numbers; `None` where they are no weights.
    fn dtype(self) -> Option<StoredDtype> {
        match self {
            Self::Plain(dtype) => Some(dtype),
            Self::Blocks(_) => Some(StoredDtype::F32),
            Self::Other => None,
        }
    }

    /// Appends the numbers of whole blocks.
    fn decode(self, bytes: &[u8], out: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Plain(dtype) => dtype.decode(bytes, out),
            Self::Blocks(dtype) => {
                let elements = bytes.len() / dtype.type_size() * dtype.block_size();
                let blocks = dtype.from_data(bytes.into());
                out.extend_from_slice(blocks.dequantize(elements)?.as_slice::<f32>()?);
            }
            Self::Other => {}
        }
        Ok(())
    }
}

/// Where a tensor is in its file; inside of it, as was checked when the header was read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) encoding: Encoding,
    pub(super) shape: Vec<usize>,
    /// First byte.
    pub(super) start: u64,
    /// For queries and keys of GGUF files: the width of a head, whose rows i and i + half follow
    /// each other.
    pub(super) interleaved: Option<usize>,
}

/// An open file of tensors, whose header has been checked against its length.
#[derive(Debug)]
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// A tensor as f32.
    ///
    /// # Errors
    /// As [`numbers`](Self::numbers).
    pub(super) fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (numbers, shape) = self.numbers(name)?;
        Ok(Tensor::from_vec(numbers, shape, device)?)
    }

    /// The numbers of a tensor as f32, and its shape.
    ///
    /// # Errors
    /// A file that cannot be read, a tensor of a type that no weight has, or a number that is
    /// infinite or none.
    pub(super) fn numbers(&self, name: &str) -> Result<(Vec<f32>, &[usize])> {
        let path = &self.path;
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error::MissingTensor { name: name.into() })?;
        let mut values = read_pieces(&self.file, path, entry)?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let reason = format!("tensor `{name}` holds {} at element {i}", values[i]);
            return Err(unusable(path, reason));
        }
        if let Some(head_dim) = entry.interleaved {
            values = half_split(&values, head_dim, entry.shape.get(1).copied().unwrap_or(1));
        }
        Ok((values, &entry.shape))
    }
}

fn read_pieces(mut file: &File, path: &Path, entry: &Entry) -> Result<Vec<f32>> {
    let failed = || scone_files::Error::at("read", path);
    let elements = entry.shape.iter().product::<usize>();
    let (block, size) = entry.encoding.block();
    let mut values = Vec::with_capacity(elements);
    file.seek(SeekFrom::Start(entry.start)).map_err(failed())?;
    let whole = PIECE / size * size;
    let mut bytes = vec![0; whole.min(elements / block * size)];
    while values.len() < elements {
        let left = (elements - values.len()) / block * size;
        let piece = &mut bytes[..left.min(whole)];
        file.read_exact(piece).map_err(failed())?;
        entry.encoding.decode(piece, &mut values)?;
    }
    Ok(values)
}

/// Rows of heads from the order 0, half, 1, half + 1, … to 0, 1, …, half, half + 1, …
fn half_split(values: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * width) {
        for first in 0..2 {
            let rows = head.chunks(width).skip(first).step_by(2);
            out.extend(rows.flatten());
        }
    }
    out
}

/// A tensor that was found.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// Which of the files holds it.
    pub(super) file: usize,
    /// Its name there.
    pub(super) stored_as: String,
    /// The narrowest type that holds its numbers.
    pub(super) dtype: StoredDtype,
}

/// Finds tensors in the headers of some files, by their names in the config.
///
/// # Errors
/// A tensor that is in no file, or has another shape or no type of a weight there.
pub(super) fn locate(
    files: &[TensorFile],
    wanted: &[TensorSpec],
) -> Result<BTreeMap<String, Located>> {
    let found = |spec: &TensorSpec| Ok((spec.name.clone(), locate_one(files, spec)?));
    wanted.iter().map(found).collect()
}

fn locate_one(files: &[TensorFile], spec: &TensorSpec) -> Result<Located> {
    // gpt2's names come with and without the prefix.
    let bare = spec.name.strip_prefix("transformer.");
    let names = [Some(spec.name.as_str()), bare];
    let held = |name| {
        let mut files = files.iter().enumerate();
        files.find_map(|(i, file)| Some((i, name, file.entries.get(name)?)))
    };
    let (file, name, entry) =
        names
            .into_iter()
            .flatten()
            .find_map(held)
            .ok_or_else(|| Error::MissingTensor {
                name: spec.name.clone(),
            })?;
    if entry.shape != spec.shape {
        return Err(Error::TensorShape {
            name: name.to_owned(),
            expected: spec.shape.clone(),
            got: entry.shape.clone(),
        });
    }
    let dtype = entry.encoding.dtype().ok_or_else(|| {
        let reason = format!("tensor `{name}` is of no type that weights are stored in");
        unusable(&files[file].path, reason)
    })?;
    Ok(Located {
        file,
        stored_as: name.to_owned(),
        dtype,
    })
}

/// [`Error::Weights`].
pub(super) fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Weights {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
