//! The SCONE transformer: main model, f-gram model, KV blocks, sampling, checkpoints.
//!
//! The main model ([`Decoder`]) reads at each position the token embedding or, where an f-gram
//! ends, its row: in training that is what the f-gram model gives, in serving what a table holds.
//! The [`FgramModel`] turns an f-gram's token embeddings into such a row, in training and when the
//! table is built.
//!
//! There are two paths through the same weights, chosen once by device and type:
//! - the *tensor path* of candle's operations: every device and type, with gradients;
//! - the *CPU path* of our own kernels, f32: fused training, and serving whose results do not
//!   depend on what else is computed in the same call, bit for bit.
//!
//! Both train and evaluate ([`Decoder::forward`], [`Decoder::loss`], [`FgramModel::forward_tree`])
//! and serve ([`Decoder::step`], [`FgramModel::rows`]).
//!
//! Weights and configs have the layout of Hugging Face `transformers`: llama, qwen2, qwen3, gpt2.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod best;
pub mod checkpoint;
pub mod config;
mod cpu;
mod decoder;
mod device;
mod error;
mod fgram_model;
mod init;
mod input;
mod kv_blocks;
mod kv_pool;
mod layers;
mod layout;
mod packed_ends;
mod packed_forward;
mod packed_weights;
mod packing;
mod path;
mod positions;
mod precision;
mod prefix_tree;
pub mod sampling;
mod step;
mod storage;
mod tensor;
mod weight_type;

pub use config::{FgramModelConfig, ModelConfig, SconeConfig};
pub use decoder::Decoder;
pub use device::{COMPILED_DEVICES, DeviceChoice, Dtype, allow_tf32};
pub use error::{Error, Result};
pub use fgram_model::FgramModel;
pub use init::{Parameters, init_fgram_parameters, init_parameters, var_builder};
pub use kv_blocks::{KV_BLOCK_POSITIONS, KvDtype};
pub use kv_pool::KvPool;
pub use packed_ends::Packing;
pub use packed_weights::PackedWeights;
pub use precision::Precision;
pub use prefix_tree::PrefixTree;
pub use step::{Given, Giving, Segment};
pub use weight_type::WeightType;
