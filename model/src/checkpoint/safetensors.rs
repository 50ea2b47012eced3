//! safetensors files, in and out.

use super::dtype::StoredDtype;
use super::file::{Encoding, Entry, TensorFile, unusable};
use crate::device::host;
use crate::error::{Error, Result};
use crate::init::Parameters;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Longest header, as the format has it.
const MAX_HEADER: u64 = 100_000_000;

/// Opens a file and reads its header.
///
/// # Errors
/// A file that cannot be read, or a header that promises what the file does not hold: offsets that
/// overlap or leave gaps, sizes that are not those of the shapes or of the file.
pub(super) fn open(path: &Path) -> Result<TensorFile> {
    let (file, metadata, start) = read_header(path)?;
    let entries = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let encoding = StoredDtype::from_safetensors(info.dtype);
            let entry = Entry {
                encoding: encoding.map_or(Encoding::Other, Encoding::Plain),
                shape: info.shape.clone(),
                start: start + info.data_offsets.0 as u64,
                interleaved: None,
            };
            (name, entry)
        })
        .collect();
    Ok(TensorFile {
        path: path.to_owned(),
        file,
        entries,
    })
}

/// The header, and where the numbers begin.
fn read_header(path: &Path) -> Result<(File, Metadata, u64)> {
    let failed = || scone_files::Error::at("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let len = file.metadata().map_err(failed())?.len();
    let mut size = [0; 8];
    if len < 8 {
        return Err(unusable(path, "it ends within its first 8 bytes"));
    }
    file.read_exact(&mut size).map_err(failed())?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > len - 8 {
        let reason = format!("a header of {size} bytes does not fit a file of {len}");
        return Err(unusable(path, reason));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(failed())?;
    // This checks sizes against shapes, and that the tensors lie end to end.
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| unusable(path, format!("its header is wrong: {e}")))?;
    let (promised, held) = (metadata.data_len() as u64, len - 8 - size);
    if promised != held {
        let reason = format!("its header promises {promised} bytes of numbers, it has {held}");
        return Err(unusable(path, reason));
    }
    Ok((file, metadata, 8 + size))
}

/// Reads every floating-point tensor of a safetensors file as f32.
///
/// # Errors
/// A file that cannot be read, whose header does not hold what it promises, or with a number that
/// is infinite or none.
pub fn read_parameters(path: &Path, device: &Device) -> Result<Parameters> {
    let mut file = open(path)?;
    let is_float = |entry: &Entry| entry.encoding != Encoding::Other;
    file.entries.retain(|_, entry| is_float(entry));
    let names: Vec<String> = file.entries.keys().cloned().collect();
    let read = |name: String| Ok((name.clone(), file.read(&name, device)?));
    names.into_iter().map(read).collect()
}

/// Writes tensors, on whatever device they are, as a safetensors file that `transformers` reads, by
/// atomic rename.
///
/// # Errors
/// A tensor that cannot be read from its device, or a file that cannot be written.
pub fn write_parameters(path: &Path, parameters: &Parameters, dtype: StoredDtype) -> Result<()> {
    let header = header(parameters, dtype).map_err(|reason| unusable(path, reason))?;
    scone_files::write_atomic_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut bytes = Vec::new();
        for tensor in parameters.values() {
            let values = host_values(tensor).map_err(io::Error::other)?;
            bytes.clear();
            dtype.encode(&values, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    })
    .map_err(Error::from)
}

/// A tensor's numbers as f32 in host memory.
pub(super) fn host_values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    let tensor = tensor.to_device(&host())?.to_dtype(DType::F32)?;
    tensor.flatten_all()?.to_vec1()
}

fn header(parameters: &Parameters, dtype: StoredDtype) -> std::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let tensors = parameters.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.elem_count() * dtype.size();
        let info = TensorInfo {
            dtype: dtype.safetensors(),
            shape: tensor.dims().to_vec(),
            data_offsets: (start, end),
        };
        (name.clone(), info)
    });
    // `transformers` refuses a file without this entry.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), tensors.collect()).map_err(|e| e.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    // Numbers begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}
