//! Model directories in Hugging Face layout, and GGUF files.
//!
//! | file | content |
//! |---|---|
//! | `config.json`, `generation_config.json` | as `transformers` writes them |
//! | `model.safetensors`, or parts and `model.safetensors.index.json` | main model, under `transformers`' names |
//! | `scone.json` | K, hashes, shape of A; a directory without it is a plain model |
//! | `fgram_model.safetensors` | A; serving does not need it |
//!
//! A GGUF file, named itself or alone in a directory, stands for `config.json` and
//! `model.safetensors`; the other files lie beside it.

mod dtype;
mod file;
mod gguf;
mod hash;
mod load;
mod model_files;
mod names;
mod safetensors;
mod save;

pub use dtype::StoredDtype;
pub use hash::model_hash;
pub use load::{
    LoadedModel, TableModel, load_model, load_model_dir, load_packed_model, load_table_model,
};
pub use model_files::{ModelFiles, model_dir};
pub use names::{FGRAM_MODEL_FILE, MODEL_FILE};
pub use safetensors::{read_parameters, write_parameters};
pub use save::{FgramParts, save_model_dir};
