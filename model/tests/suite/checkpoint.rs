//! Model directories: round trips, foreign layouts, hostile files.
use crate::common::{embeddings, fgram_config, fgram_parameters, parameters, values};
use candle_core::{Device, Tensor};
use scone_model::checkpoint::{
    FgramParts, StoredDtype, load_model_dir, read_parameters, save_model_dir, write_parameters,
};
use scone_model::{Decoder, Error, ModelConfig, Parameters, SconeConfig};
use std::path::Path;

fn hidden(decoder: &Decoder) -> Vec<f32> {
    values(&decoder.forward(&embeddings(&[1, 6, 16], 0.5)).unwrap())
}

fn save_scone(dir: &Path, config: &ModelConfig) -> (Parameters, String) {
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

#[test]
fn weights_that_are_not_those_of_scone_json_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    save_scone(dir.path(), &config);
    let mut main = parameters(&config);
    let table = &main["model.embed_tokens.weight"];
    let changed = (table * 1.001).unwrap();
    main.insert("model.embed_tokens.weight".into(), changed);
    let path = dir.path().join("model.safetensors");
    write_parameters(&path, &main, StoredDtype::F32).unwrap();
    let error = load_model_dir(dir.path(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("scone.json"), "{error}");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let config = crate::common::llama(true);
    let mut main = parameters(&config);
    let name = "model.layers.1.mlp.up_proj.weight";
    let load = |main: &Parameters| {
        let vb = crate::common::builder(main, candle_core::DType::F32);
        Decoder::load(&config, vb).unwrap_err()
    };
    main.insert(name.into(), embeddings(&[16, 20], 0.1));
    let error = load(&main);
    assert!(matches!(&error, Error::TensorShape { name: n, .. } if n == name));
    main.remove(name);
    assert!(matches!(load(&main), Error::MissingTensor { name: n } if n == name));
}

#[test]
fn truncated_and_flipped_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    save_scone(dir.path(), &config);
    for file in ["model.safetensors", "fgram_model.safetensors"] {
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for len in (0..bytes.len()).step_by(bytes.len() / 40) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(load_model_dir(dir.path(), &Device::Cpu).is_err(), "{len}");
        }
        // In the header anything may change; it must end in a model or an error.
        for i in (0..bytes.len().min(3000)).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[i] ^= 1 << (i % 8);
            std::fs::write(&path, &flipped).unwrap();
            let _ = load_model_dir(dir.path(), &Device::Cpu);
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(load_model_dir(dir.path(), &Device::Cpu).is_ok());
    for file in ["config.json", SconeConfig::FILE] {
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        for len in (0..text.len() - 2).step_by(13) {
            std::fs::write(&path, &text[..len]).unwrap();
            assert!(load_model_dir(dir.path(), &Device::Cpu).is_err(), "{len}");
        }
        std::fs::write(&path, text).unwrap();
    }
}

#[test]
fn a_huge_length_in_the_header_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let header = r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend([0; 4]);
    std::fs::write(&path, &bytes).unwrap();
    assert!(read_parameters(&path, &Device::Cpu).is_err());
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(read_parameters(&path, &Device::Cpu).is_err());
}

/// Shapes are compared with the config before a number is read: what does not fit costs no memory.
#[test]
fn numbers_that_are_none_and_headers_that_lie_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    let name = "model.layers.1.mlp.up_proj.weight";
    let load_with = |change: &dyn Fn(&mut Parameters)| {
        let mut main = parameters(&config);
        change(&mut main);
        save_model_dir(dir.path(), &config, &main, None).unwrap();
        load_model_dir(dir.path(), &Device::Cpu)
    };
    for bad in [f32::NAN, f32::INFINITY] {
        let error = load_with(&|main| {
            let mut numbers = values(&main[name]);
            numbers[17] = bad;
            let tensor = Tensor::from_vec(numbers, main[name].dims(), &Device::Cpu).unwrap();
            main.insert(name.into(), tensor);
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("element 17"),
            "{error}"
        );
    }
    let error = load_with(&|main| {
        main.insert(name.into(), embeddings(&[16, 20], 0.1));
    });
    assert!(matches!(error, Err(Error::TensorShape { name: n, .. }) if n == name));
    let error = load_with(&|main| {
        main.remove(name);
    });
    assert!(matches!(error, Err(Error::MissingTensor { name: n }) if n == name));
    // A tensor that no model asks for is left alone.
    assert!(
        load_with(&|main| {
            let nan = Tensor::full(f32::NAN, 3, &Device::Cpu).unwrap();
            main.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), nan);
        })
        .is_ok()
    );
}

#[test]
fn offsets_that_overlap_or_leave_the_file_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = [
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
            12,
        ),
        (r#""a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8),
        (r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 4),
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
            12,
        ),
        (r#""a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
    ];
    for (tensors, data) in tensors {
        let header = format!("{{{tensors}}}");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, &bytes).unwrap();
        let error = read_parameters(&path, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
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

#[test]
fn hostile_configs_are_errors_that_name_the_field() {
    let llama = crate::common::llama(true).to_json();
    let gpt2 = crate::common::gpt2().to_json();
    let cases: [(&str, &str, &str); 16] = [
        (&llama, "num_attention_heads", "0"),
        (&llama, "num_attention_heads", "3"),
        (&llama, "num_key_value_heads", "3"),
        (&llama, "num_key_value_heads", "0"),
        (&llama, "hidden_size", "0"),
        (&llama, "hidden_size", "18446744073709551615"),
        (&llama, "vocab_size", "4294967295"),
        (&llama, "num_hidden_layers", "100000"),
        (&llama, "rms_norm_eps", "-1.0"),
        (&llama, "rope_theta", "0"),
        (&llama, "rope_scaling", r#"{"type": "yarn", "factor": 2.0}"#),
        (&llama, "attention_bias", "true"),
        (&llama, "hidden_act", "\"gelu\""),
        (&llama, "model_type", "\"mamba\""),
        (&gpt2, "n_head", "5"),
        (&gpt2, "activation_function", "\"relu\""),
    ];
    for (base, field, value) in cases {
        let mut config: serde_json::Value = serde_json::from_str(base).unwrap();
        config[field] = serde_json::from_str(value).unwrap();
        let error = ModelConfig::from_json(&config.to_string()).unwrap_err();
        // Heads and width may each be blamed for not fitting the other.
        let text = error.to_string();
        assert!(text.contains(field), "{field} = {value}: {text}");
    }
    let mut config: serde_json::Value = serde_json::from_str(&llama).unwrap();
    config["rope_scaling"] = serde_json::Value::Null;
    config["head_dim"] = 4.into();
    assert!(ModelConfig::from_json(&config.to_string()).is_ok());
    for text in ["", "[]", "{}", "null", "{\"model_type\": \"llama\"}"] {
        assert!(ModelConfig::from_json(text).is_err());
    }
}

/// The fields of openai-community/gpt2 and of a file by transformers 5.
#[test]
fn configs_as_others_write_them_load() {
    let gpt2 = r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_first_dropout": 0.1, "vocab_size": 50257}"#;
    let config = ModelConfig::from_json(gpt2).unwrap();
    assert_eq!(config.shape().intermediate_size, 3072);
    assert!(config.tied());
    let llama = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": [2, 3],
        "head_dim": 32, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 172,
        "max_position_embeddings": 512, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 8, "num_hidden_layers": 5, "num_key_value_heads": 4,
        "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "rope_scaling": null, "tie_word_embeddings": true, "torch_dtype": null,
        "use_cache": true, "vocab_size": 512}"#;
    let config = ModelConfig::from_json(llama).unwrap();
    assert_eq!(config.torch_dtype(), "bfloat16");
    assert_eq!(config.eos_token_ids(), [2, 3]);
    let shape = config.shape();
    assert_eq!((shape.head_dim, shape.rope.unwrap().theta), (32, 500_000.0));
}

/// What a config may say without effect, and what makes it another model.
#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let llama = crate::common::llama(true).to_json();
    let qwen = crate::common::qwen2(true).to_json();
    let with = |base: &str, field: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(base).unwrap();
        config[field] = serde_json::from_str(value).unwrap();
        ModelConfig::from_json(&config.to_string())
    };
    for (field, value) in [
        ("sliding_window", "4096"),
        ("quantization_config", r#"{"bits": 4}"#),
        ("layer_types", r#"["full_attention", "sliding_attention"]"#),
        ("partial_rotary_factor", "0.5"),
        ("attn_logit_softcapping", "50.0"),
        ("final_logit_softcapping", "30.0"),
        ("num_experts", "8"),
        ("num_local_experts", "8"),
        ("attention_bias", "true"),
        ("mlp_bias", "true"),
        ("rope_scaling", r#"{"rope_type": "longrope"}"#),
        ("rope_scaling", r#"{"rope_type": "llama3", "factor": 8.0}"#),
        ("rope_scaling", r#"{"rope_type": "linear", "factor": -1}"#),
        ("rope_scaling", "3"),
        ("rope_parameters", r#"{"full_attention": {}}"#),
        (
            "rope_parameters",
            r#"{"rope_type": "default", "partial_rotary_factor": 0.25}"#,
        ),
    ] {
        let error = with(&llama, field, value).unwrap_err();
        assert!(
            matches!(&error, Error::Config { field: f, .. } if *f == field),
            "{field} = {value}: {error}"
        );
    }
    for (base, field, value) in [
        (&llama, "sliding_window", "null"),
        (
            &llama,
            "layer_types",
            r#"["full_attention", "full_attention"]"#,
        ),
        (&llama, "partial_rotary_factor", "1.0"),
        (&llama, "num_local_experts", "0"),
        (&qwen, "sliding_window", "32768"),
    ] {
        assert!(with(base, field, value).is_ok(), "{field} = {value}");
    }
    let mut used: serde_json::Value = serde_json::from_str(&qwen).unwrap();
    used["sliding_window"] = 32768.into();
    used["use_sliding_window"] = true.into();
    let error = ModelConfig::from_json(&used.to_string()).unwrap_err();
    assert!(error.to_string().contains("sliding_window"), "{error}");
}

#[test]
fn the_tensors_of_a_config_are_those_of_a_fresh_model() {
    let named = |parameters: &Parameters| -> Vec<(String, Vec<usize>)> {
        let named = parameters.iter();
        named
            .map(|(name, x)| (name.clone(), x.dims().to_vec()))
            .collect()
    };
    let listed = |tensors: Vec<scone_model::config::TensorSpec>| {
        let mut all: Vec<_> = tensors.into_iter().map(|t| (t.name, t.shape)).collect();
        all.sort();
        all
    };
    for config in crate::common::families() {
        assert_eq!(listed(config.tensors()), named(&parameters(&config)));
        for final_norm in [false, true] {
            let fgram = fgram_config(final_norm);
            let a = fgram_parameters(&fgram, &config);
            assert_eq!(listed(fgram.tensors(&config).unwrap()), named(&a));
        }
    }
}

#[test]
fn initialisation_is_the_same_everywhere() {
    let config = crate::common::llama(true);
    let first = scone_model::init_parameters(&config, 1).unwrap();
    let same = scone_model::init_parameters(&config, 1).unwrap();
    let other = scone_model::init_parameters(&config, 2).unwrap();
    let name = "model.embed_tokens.weight";
    assert_eq!(values(&first[name]), values(&same[name]));
    assert_ne!(values(&first[name]), values(&other[name]));
    let sum = |x: &Tensor| -> f32 { values(&x.sqr().unwrap()).iter().sum() };
    let std = (sum(&first[name]) / (23.0 * 16.0)).sqrt();
    assert!((std - 0.3).abs() < 0.03, "{std}");
    let down = "model.layers.0.mlp.down_proj.weight";
    let std = (sum(&first[down]) / (16.0 * 20.0)).sqrt();
    assert!((std - 0.15).abs() < 0.02, "two layers halve it: {std}");
}
