//! A file of tensors: what its header promises, and its numbers, read piece by piece.

use super::dtype::StoredDtype;
use crate::config::TensorSpec;
use crate::error::{Error, Result};
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
    /// A type that no weight has: buffers of old checkpoints (gpt2's attention masks).
    Other,
}

/// Where a tensor is in its file; inside of it, as was checked when the header was read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) encoding: Encoding,
    pub(super) shape: Vec<usize>,
    /// First byte.
    pub(super) start: u64,
}

/// An open file of tensors, whose header has been checked against its length.
#[derive(Debug)]
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// The numbers of a tensor as f32.
    ///
    /// # Errors
    /// A file that cannot be read, a tensor of a type that no weight has, or a number that is
    /// infinite or none.
    pub(super) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        let path = &self.path;
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error::MissingTensor { name: name.into() })?;
        let Encoding::Plain(dtype) = entry.encoding else {
            return Err(unusable(path, format!("tensor `{name}` is not of floats")));
        };
        let elements = entry.shape.iter().product::<usize>();
        let mut values = Vec::with_capacity(elements);
        let failed = scone_files::Error::at("read", path);
        read_pieces(&mut self.file, entry, dtype, elements, &mut values).map_err(failed)?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let reason = format!("tensor `{name}` holds {} at element {i}", values[i]);
            return Err(unusable(path, reason));
        }
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), device)?)
    }
}

fn read_pieces(
    file: &mut File,
    entry: &Entry,
    dtype: StoredDtype,
    elements: usize,
    values: &mut Vec<f32>,
) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(entry.start))?;
    let mut bytes = vec![0; PIECE.min(elements * dtype.size())];
    while values.len() < elements {
        let left = (elements - values.len()) * dtype.size();
        let piece = &mut bytes[..left.min(PIECE)];
        file.read_exact(piece)?;
        dtype.decode(piece, values);
    }
    Ok(())
}

/// A tensor that was found.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// Name in the config.
    pub(super) name: String,
    /// Which of the files holds it.
    pub(super) file: usize,
    /// Its name there.
    pub(super) stored_as: String,
    /// The narrowest type that holds its numbers.
    pub(super) dtype: StoredDtype,
}

/// Finds tensors in the headers of some files.
///
/// # Errors
/// A tensor that is in no file, or has another shape or no type of a weight there.
pub(super) fn locate(files: &[TensorFile], wanted: &[TensorSpec]) -> Result<Vec<Located>> {
    wanted.iter().map(|spec| locate_one(files, spec)).collect()
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
    let Encoding::Plain(dtype) = entry.encoding else {
        let reason = format!("tensor `{name}` is of no type that weights are stored in");
        return Err(unusable(&files[file].path, reason));
    };
    Ok(Located {
        name: spec.name.clone(),
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
