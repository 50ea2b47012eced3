//! Configs: what is read, what is refused, and the tensors that follow from them.
use crate::common::{fgram_config, fgram_parameters, parameters, values};
use candle_core::Tensor;
use scone_model::{Error, ModelConfig, Parameters};

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
