//! The SCONE transformer: main model, f-gram model, KV cache, sampling, checkpoints.
//!
//! The main model ([`Decoder`]) takes **input embeddings**, never token ids: whoever calls it
//! decides for each position whether that is the token embedding or the row of an f-gram. The
//! [`FgramModel`] turns an f-gram's token embeddings into such a row, in training and when the
//! table is built.
//!
//! There are two ways through the same weights:
//! - training and evaluation: [`Decoder::forward`], [`Decoder::logits`], [`FgramModel::forward`],
//!   with a gradient for every parameter (candle's own fused operations drop gradients, so
//!   [`ops`] has fused ones with a backward pass);
//! - serving: [`Decoder::step`] and [`FgramModel::rows`], whose results do not depend on what
//!   else is computed in the same call, bit for bit, on a CPU.
//!
//! Weights and configs have the layout of Hugging Face `transformers`, llama and gpt2 families.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod checkpoint;
pub mod config;
mod decoder;
mod device;
mod error;
mod fgram_model;
mod infer;
mod init;
mod kernels;
mod kv_cache;
mod layers;
pub mod loss;
pub mod ops;
pub mod sampling;
mod step;
mod train;

pub use config::{FgramModelConfig, ModelConfig, SconeConfig};
pub use decoder::Decoder;
pub use device::{DeviceChoice, Dtype};
pub use error::{Error, Result};
pub use fgram_model::{FgramModel, PrefixTree};
pub use init::{Parameters, init_fgram_parameters, init_parameters, var_builder};
pub use kv_cache::{KvCache, Segment};
