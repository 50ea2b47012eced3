//! The one error type of this crate.

use std::path::PathBuf;

/// What can go wrong when a model is read, built, run or sampled from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a config file has a value this crate cannot use.
    #[error("config field `{field}`: {reason}")]
    Config {
        /// The field as the file spells it.
        field: &'static str,
        /// What is wrong with it, with the value and the limit.
        reason: String,
    },
    /// A sampling parameter is out of its range.
    #[error("sampling parameter `{field}`: {reason}")]
    Sampling {
        /// The parameter as the protocol spells it.
        field: &'static str,
        /// The limit, and the value that broke it.
        reason: String,
    },
    /// A tensor is not in the checkpoint.
    #[error("tensor `{name}` is missing from the checkpoint")]
    MissingTensor {
        /// The name looked for.
        name: String,
    },
    /// A tensor of the checkpoint has another shape than the config says.
    #[error("tensor `{name}` has shape {got:?}, the config asks for {expected:?}")]
    TensorShape {
        /// Name of the tensor.
        name: String,
        /// Shape the config implies.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// An argument of a call does not fit the model.
    #[error("{0}")]
    Argument(String),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] scone_files::Error),
    /// A JSON file does not parse.
    #[error("{path} is not the JSON expected")]
    Json {
        /// The file, or what the text is when it came from elsewhere.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A weights file is truncated, corrupt or of an unsupported type.
    #[error("{path} is not a usable file of weights: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A device that is not there, or not in this build.
    #[error("device {device}: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// An element type that models do not compute in.
    #[error("dtype {dtype:?} is none of f32, f16, bf16")]
    Dtype {
        /// What was asked for.
        dtype: String,
    },
    /// A row that is not one of the model's width.
    #[error(transparent)]
    Row(#[from] scone_row::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Config {
            field,
            reason: reason.into(),
        }
    }
}
