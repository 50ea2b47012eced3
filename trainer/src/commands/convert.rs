//! `trainer convert`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use candle_core::Device;
use scone_files::write_atomic;
use scone_model::checkpoint::{ModelFiles, StoredDtype, save_model_dir};

use super::output;
use crate::model_dir::copy_beside;

/// Flags of `trainer convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file, or model directory in Hugging Face layout; its f-gram model stays behind.
    #[arg(long, env = "SCONE_MODEL")]
    model: PathBuf,
    /// Model directory to write, one model.safetensors in Hugging Face layout.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
    /// Type of the weights, f32, f16 or bf16; default: that of the model, f32 if it is quantised.
    #[arg(long, env = "SCONE_DTYPE", value_parser = parse_dtype)]
    dtype: Option<StoredDtype>,
}

fn parse_dtype(text: &str) -> anyhow::Result<StoredDtype> {
    match text {
        "f32" => Ok(StoredDtype::F32),
        "f16" => Ok(StoredDtype::F16),
        "bf16" => Ok(StoredDtype::Bf16),
        _ => anyhow::bail!("expected f32, f16 or bf16"),
    }
}

/// Runs `trainer convert`.
///
/// # Errors
/// A model that cannot be read, or an output directory that holds a model or cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let dtype = convert(&args.model, &args.out, args.dtype)?;
    output::line(format_args!("{}: {}", args.out.display(), dtype.torch()))
}

fn convert(model: &Path, out: &Path, dtype: Option<StoredDtype>) -> anyhow::Result<StoredDtype> {
    ensure!(
        !out.join("config.json").exists(),
        "{} already holds a model",
        out.display()
    );
    let cannot_read = || format!("cannot read the model {}", model.display());
    let files = ModelFiles::open(model).with_context(cannot_read)?;
    let dtype = dtype.unwrap_or(files.stored_dtype());
    let mut config = files.config().clone();
    config.set_torch_dtype(dtype.torch());
    let dir = files.dir().to_owned();
    let tokenizer = std::fs::read(dir.join("tokenizer.json"))
        .with_context(|| format!("cannot read {}", dir.join("tokenizer.json").display()))?;
    let parameters = files.read(&Device::Cpu).with_context(cannot_read)?;
    let cannot_write = || format!("cannot write the model to {}", out.display());
    std::fs::create_dir_all(out).with_context(cannot_write)?;
    write_atomic(&out.join("tokenizer.json"), &tokenizer)?;
    copy_beside(&dir, out)?;
    save_model_dir(out, &config, &parameters, None).with_context(cannot_write)?;
    Ok(dtype)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use scone_model::checkpoint::load_model_dir;
    use scone_model::config::LlamaConfig;
    use scone_model::{ModelConfig, init_parameters};

    use super::*;

    #[test]
    fn weights_are_rounded_once_and_the_rest_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut config = ModelConfig::Llama(LlamaConfig::new(20, 8, 1, 2, 16, 32));
        config.set_torch_dtype("float16");
        let parameters = init_parameters(&config, 1).unwrap();
        save_model_dir(&from, &config, &parameters, None).unwrap();
        assert!(convert(&from, &to, None).is_err(), "no tokenizer.json");
        std::fs::write(from.join("tokenizer.json"), "{}").unwrap();
        std::fs::write(from.join("generation_config.json"), "{ }").unwrap();
        assert_eq!(convert(&from, &to, None).unwrap(), StoredDtype::F16);
        for name in ["model.safetensors", "config.json", "generation_config.json"] {
            let bytes = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert_eq!(bytes(&from), bytes(&to), "{name}");
        }
        assert!(convert(&from, &to, None).is_err(), "a model is there");
        let narrow = dir.path().join("narrow");
        convert(&from, &narrow, Some(StoredDtype::Bf16)).unwrap();
        let loaded = load_model_dir(&narrow, &Device::Cpu).unwrap();
        assert_eq!(loaded.config.torch_dtype(), "bfloat16");
        let table = |x: &candle_core::Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let whole = load_model_dir(&from, &Device::Cpu).unwrap();
        let rounded = StoredDtype::Bf16.round(whole.decoder.token_embedding());
        assert_eq!(
            table(loaded.decoder.token_embedding()),
            table(&rounded.unwrap())
        );
    }
}
