//! Model directories: round trips and foreign layouts.
use crate::common::{embeddings, fgram_config, fgram_parameters, parameters, values};
use candle_core::{Device, Tensor};
use scone_model::checkpoint::{
    FgramParts, ModelFiles, StoredDtype, load_model, load_model_dir, read_parameters,
    save_model_dir, write_parameters,
};
use scone_model::{Decoder, Error, ModelConfig, Parameters};
use sha2::{Digest, Sha256};
use std::path::Path;

fn hidden(decoder: &Decoder) -> Vec<f32> {
    values(&decoder.forward(&embeddings(&[1, 6, 16], 0.5)).unwrap())
}

pub(crate) fn save_scone(dir: &Path, config: &ModelConfig) -> (Parameters, String) {
    let main = parameters(config);
    let fgram = fgram_config(true);
    let a = fgram_parameters(&fgram, config);
    let parts = FgramParts {
        config: &fgram,
        parameters: &a,
        fgram_set_hash: "abc",
    };
    let hash = save_model_dir(dir, config, &main, Some(parts)).unwrap();
    (main, hash.unwrap())
}

#[test]
fn what_is_saved_is_loaded() {
    for config in crate::common::families() {
        let dir = tempfile::tempdir().unwrap();
        let (main, hash) = save_scone(dir.path(), &config);
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let loaded = load_model_dir(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(loaded.config, config);
        assert_eq!(loaded.model_hash.as_deref(), Some(hash.as_str()));
        let scone = loaded.scone.unwrap();
        assert_eq!(scone.fgram_model, fgram_config(true));
        assert_eq!(scone.fgram_set_hash, "abc");
        let empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(loaded.tokenizer_hash.as_deref(), Some(empty));
        let before = crate::common::decoder(&config, &main);
        assert_eq!(hidden(&loaded.decoder), hidden(&before));
        let a = fgram_parameters(&fgram_config(true), &config);
        let model = crate::common::fgram_model(&fgram_config(true), &config, &a);
        let fgrams: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
        assert_eq!(
            loaded
                .fgram
                .unwrap()
                .rows(before.token_embedding(), &fgrams)
                .unwrap(),
            model.rows(before.token_embedding(), &fgrams).unwrap()
        );
        let left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("tmp"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_plain_model_and_a_directory_without_a_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    assert_eq!(
        save_model_dir(dir.path(), &config, &parameters(&config), None).unwrap(),
        None
    );
    let loaded = load_model_dir(dir.path(), &Device::Cpu).unwrap();
    assert!(loaded.scone.is_none() && loaded.fgram.is_none() && loaded.model_hash.is_none());
    assert!(loaded.tokenizer_hash.is_none());
    let (_, hash) = save_scone(dir.path(), &config);
    std::fs::remove_file(dir.path().join("fgram_model.safetensors")).unwrap();
    let loaded = load_model_dir(dir.path(), &Device::Cpu).unwrap();
    assert!(loaded.fgram.is_none());
    assert_eq!(loaded.model_hash, Some(hash));
}

#[test]
fn half_precision_is_loaded_as_it_was_rounded() {
    for (name, dtype) in [
        ("bfloat16", StoredDtype::Bf16),
        ("float16", StoredDtype::F16),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::common::gpt2();
        config.set_torch_dtype(name);
        let (main, hash) = save_scone(dir.path(), &config);
        let loaded = load_model_dir(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(loaded.config.torch_dtype(), name);
        assert_eq!(loaded.model_hash, Some(hash));
        let rounded: Parameters = main
            .iter()
            .map(|(name, x)| (name.clone(), dtype.round(x).unwrap()))
            .collect();
        let expected = crate::common::decoder(&config, &rounded);
        assert_eq!(hidden(&loaded.decoder), hidden(&expected));
    }
}

fn base_hash(dir: &Path) -> String {
    ModelFiles::open(dir).unwrap().base_hash().unwrap()
}

/// As docs/formats.md has it, of tensors of one piece.
fn documented_base_hash(main: &Parameters) -> String {
    let mut hash = Sha256::new();
    hash.update("scone-base-1");
    for (name, tensor) in main {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((tensor.rank() as u64).to_le_bytes());
        for &size in tensor.dims() {
            hash.update((size as u64).to_le_bytes());
        }
        let bytes: Vec<u8> = values(tensor)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        hash.update(Sha256::digest(Sha256::digest(bytes)));
    }
    scone_files::hex(&hash.finalize())
}

#[test]
fn the_base_hash_is_of_the_numbers_whatever_lies_beside_them() {
    for config in crate::common::families() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let (main, _) = save_scone(dirs[0].path(), &config);
        let expected = documented_base_hash(&main);
        assert_eq!(base_hash(dirs[0].path()), expected);
        // While it is loaded, on its own, and without A.
        let files = ModelFiles::open(dirs[0].path()).unwrap().hashing();
        let loaded = load_model(&files, &Device::Cpu).unwrap();
        assert_eq!(loaded.base_hash.as_ref(), Some(&expected));
        assert_eq!(files.base_hash().unwrap(), expected);
        let loaded = load_model_dir(dirs[0].path(), &Device::Cpu).unwrap();
        assert_eq!(loaded.base_hash, None);
        save_model_dir(dirs[1].path(), &config, &main, None).unwrap();
        assert_eq!(base_hash(dirs[1].path()), expected);
        // One number of the last tensor.
        let mut other = main.clone();
        let (_, tensor) = other.iter_mut().next_back().unwrap();
        let mut numbers = values(tensor);
        *numbers.last_mut().unwrap() += 1.0;
        *tensor = Tensor::from_vec(numbers, tensor.dims(), &Device::Cpu).unwrap();
        save_model_dir(dirs[2].path(), &config, &other, None).unwrap();
        assert_ne!(base_hash(dirs[2].path()), expected);
        // Numbers that were rounded are others, and the same in whatever type they are stored.
        let rounded: Parameters = main
            .iter()
            .map(|(name, x)| (name.clone(), StoredDtype::Bf16.round(x).unwrap()))
            .collect();
        for dtype in [StoredDtype::Bf16, StoredDtype::F32] {
            let path = dirs[1].path().join(scone_model::checkpoint::MODEL_FILE);
            write_parameters(&path, &rounded, dtype).unwrap();
            assert_eq!(base_hash(dirs[1].path()), documented_base_hash(&rounded));
        }
    }
}

#[test]
fn gpt2_names_with_and_without_the_prefix() {
    let config = crate::common::gpt2();
    let main = parameters(&config);
    let bare: Parameters = main
        .iter()
        .map(|(name, x)| (name.replace("transformer.", ""), x.clone()))
        .collect();
    assert_eq!(
        hidden(&crate::common::decoder(&config, &main)),
        hidden(&crate::common::decoder(&config, &bare))
    );
}

#[test]
fn a_checkpoint_in_parts_loads() {
    let config = crate::common::llama(false);
    let dir = tempfile::tempdir().unwrap();
    let main = parameters(&config);
    save_model_dir(dir.path(), &config, &main, None).unwrap();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let file = format!("model-{part}.safetensors");
        let tensors: Parameters = main
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == part)
            .map(|(_, (name, x))| (name.clone(), x.clone()))
            .collect();
        for name in tensors.keys() {
            map.insert(name.clone(), file.clone().into());
        }
        write_parameters(&dir.path().join(&file), &tensors, StoredDtype::F32).unwrap();
    }
    let first = map.keys().next().unwrap().clone();
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    let loaded = load_model_dir(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(
        hidden(&loaded.decoder),
        hidden(&crate::common::decoder(&config, &main))
    );
    assert_eq!(base_hash(dir.path()), documented_base_hash(&main));
    map.insert(first.clone(), "model-1.safetensors".into());
    std::fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    let error = load_model_dir(dir.path(), &Device::Cpu).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { name } if name == first));
    std::fs::write(&index, r#"{"weight_map": {"a": "../x.safetensors"}}"#).unwrap();
    assert!(load_model_dir(dir.path(), &Device::Cpu).is_err());
}

#[test]
fn the_files_have_the_fields_transformers_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    for (config, class, kind) in [
        (crate::common::llama(true), "LlamaForCausalLM", "llama"),
        (crate::common::gpt2(), "GPT2LMHeadModel", "gpt2"),
        (crate::common::qwen2(true), "Qwen2ForCausalLM", "qwen2"),
        (crate::common::qwen3(), "Qwen3ForCausalLM", "qwen3"),
    ] {
        save_model_dir(dir.path(), &config, &parameters(&config), None).unwrap();
        let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["architectures"], serde_json::json!([class]));
        assert_eq!(value["model_type"], kind);
        assert_eq!(value["torch_dtype"], "float32");
        assert_eq!(ModelConfig::from_json(&text).unwrap(), config);
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    }
}

/// More numbers than are read at once, and what is written is what the crate `safetensors` reads.
#[test]
fn large_tensors_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let large = embeddings(&[700, 1000], 0.3);
    let all = Parameters::from([
        ("large".to_owned(), large.clone()),
        (
            "scalar".to_owned(),
            Tensor::new(0.5f32, &Device::Cpu).unwrap(),
        ),
    ]);
    for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16] {
        write_parameters(&path, &all, dtype).unwrap();
        let read = read_parameters(&path, &Device::Cpu).unwrap();
        assert_eq!(read.len(), 2);
        let expected = dtype.round(&large).unwrap();
        assert_eq!(values(&read["large"]), values(&expected));
        assert_eq!(read["scalar"].to_scalar::<f32>().unwrap(), 0.5);
        let others = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let large = others["large"].to_dtype(candle_core::DType::F32).unwrap();
        assert_eq!(values(&large), values(&expected));
    }
}
