//! safetensors files: f32, f16 and bf16 in, any of the three out.

use super::MODEL_FILE;
use crate::error::{Error, Result};
use crate::init::Parameters;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Type of the weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl StoredDtype {
    /// From the name in `config.json`.
    ///
    /// # Errors
    /// A name other than `float32`, `float16` and `bfloat16`.
    pub fn from_torch(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::F32),
            "float16" => Ok(Self::F16),
            "bfloat16" => Ok(Self::Bf16),
            other => Err(Error::config(
                "torch_dtype",
                format!("`{other}` is not float32, float16 or bfloat16"),
            )),
        }
    }

    /// A tensor as it will be read back, in f32.
    ///
    /// # Errors
    /// A tensor that cannot be converted.
    pub fn round(self, tensor: &Tensor) -> Result<Tensor> {
        let dtype = match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        };
        Ok(tensor.to_dtype(dtype)?.to_dtype(DType::F32)?)
    }

    pub(super) fn round_all(self, parameters: &Parameters) -> Result<Parameters> {
        parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), self.round(tensor)?)))
            .collect()
    }

    fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            Self::Bf16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        }
    }
}

/// Reads every floating-point tensor of a safetensors file as f32.
///
/// # Errors
/// A file that cannot be read, or whose header does not hold what it promises.
pub fn read_parameters(path: &Path, device: &Device) -> Result<Parameters> {
    let bytes = std::fs::read(path).map_err(scone_files::Error::at("read", path))?;
    let corrupt = |e: safetensors::SafeTensorError| Error::Weights {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let file = SafeTensors::deserialize(&bytes).map_err(corrupt)?;
    let mut parameters = Parameters::new();
    for (name, view) in file.iter() {
        // Other types are buffers of old checkpoints (gpt2's attention masks).
        if let Some(values) = decode(&view) {
            let tensor = Tensor::from_vec(values, view.shape(), device)?;
            parameters.insert(name.to_owned(), tensor);
        }
    }
    Ok(parameters)
}

/// Values as f32; `None` for a type that no weight has.
fn decode(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        Dtype::F16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&b| f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&b| bf16::from_le_bytes(b).to_f32())
            .collect(),
        _ => return None,
    })
}

/// Reads `model.safetensors`, or the parts that `model.safetensors.index.json` lists.
pub(super) fn read_model(dir: &Path, device: &Device) -> Result<Parameters> {
    let single = dir.join(MODEL_FILE);
    let index = dir.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return read_parameters(&single, device);
    }
    let text = std::fs::read_to_string(&index).map_err(scone_files::Error::at("read", &index))?;
    let parsed: ShardIndex = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.clone(),
        source,
    })?;
    let mut parameters = Parameters::new();
    for part in parsed.weight_map.values().collect::<BTreeSet<_>>() {
        // A part is a file of this directory, whatever the index says.
        if part.contains(['/', '\\']) {
            return Err(Error::Weights {
                path: index,
                reason: format!("`{part}` is not a plain file name"),
            });
        }
        parameters.extend(read_parameters(&dir.join(part), device)?);
    }
    Ok(parameters)
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

/// Writes tensors as a safetensors file that `transformers` reads, by atomic rename.
///
/// # Errors
/// A file that cannot be written.
pub fn write_parameters(path: &Path, parameters: &Parameters, dtype: StoredDtype) -> Result<()> {
    let mut encoded = Vec::with_capacity(parameters.len());
    for (name, tensor) in parameters {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        encoded.push((name, tensor.dims().to_vec(), dtype.encode(&values)));
    }
    let failed = |e: safetensors::SafeTensorError| Error::Weights {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let views = encoded
        .iter()
        .map(|(name, dims, bytes)| {
            TensorView::new(dtype.safetensors(), dims.clone(), bytes).map(|view| (*name, view))
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(failed)?;
    // `transformers` refuses a file without this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(failed)?;
    Ok(scone_files::write_atomic(path, &bytes)?)
}
