//! GGUF files: every type against the same weights in safetensors, and hostile ones.
use crate::common::{embeddings, parameters, values};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use scone_model::checkpoint::{ModelFiles, StoredDtype, load_model_dir, save_model_dir};
use scone_model::config::LlamaConfig;
use scone_model::{Error, ModelConfig, Parameters};
use std::io::Cursor;
use std::path::Path;

/// A llama with rows of 256 numbers: a block of the types that have the largest.
fn config(tied: bool) -> ModelConfig {
    let mut config = LlamaConfig::new(40, 256, 2, 4, 256, 64);
    config.num_key_value_heads = Some(2);
    config.tie_word_embeddings = tied;
    config.initializer_range = 0.1;
    config.rope_theta = 50_000.0;
    config.bos_token_id = Some(1);
    config.eos_token_id = Some(scone_model::config::TokenIds::Many(vec![2, 7]));
    ModelConfig::Llama(config)
}

type Metadata = Vec<(&'static str, Value)>;

fn metadata() -> Metadata {
    vec![
        ("general.architecture", Value::String("llama".into())),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(256)),
        ("llama.block_count", Value::U32(2)),
        ("llama.feed_forward_length", Value::U32(256)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(50_000.0)),
        ("llama.rope.dimension_count", Value::U64(64)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.eot_token_id", Value::U32(7)),
        (
            "tokenizer.ggml.tokens",
            Value::Array(vec![Value::String("a".into()), Value::String("b".into())]),
        ),
    ]
}

/// llama.cpp's name of a tensor, and the heads of its rows where it changes their order.
fn ggml_name(name: &str) -> (String, Option<usize>) {
    let parts = [
        ("model.embed_tokens", "token_embd", None),
        ("model.norm", "output_norm", None),
        ("lm_head", "output", None),
        ("input_layernorm", "attn_norm", None),
        ("self_attn.q_proj", "attn_q", Some(4)),
        ("self_attn.k_proj", "attn_k", Some(2)),
        ("self_attn.v_proj", "attn_v", None),
        ("self_attn.o_proj", "attn_output", None),
        ("post_attention_layernorm", "ffn_norm", None),
        ("mlp.gate_proj", "ffn_gate", None),
        ("mlp.up_proj", "ffn_up", None),
        ("mlp.down_proj", "ffn_down", None),
    ];
    let (theirs, ours, heads) = parts
        .iter()
        .find(|(theirs, ..)| name.contains(theirs))
        .unwrap();
    let name = name.replace(theirs, ours).replace("model.layers.", "blk.");
    (name, *heads)
}

/// As llama.cpp's converter orders the rows of queries and keys, and back.
fn reorder(tensor: &Tensor, heads: usize, back: bool) -> Tensor {
    let (rows, width) = tensor.dims2().unwrap();
    let half = rows / heads / 2;
    let dims = match back {
        false => [heads, 2, half, width],
        true => [heads, half, 2, width],
    };
    let turned = tensor.reshape(dims.as_slice()).unwrap();
    let turned = turned.transpose(1, 2).unwrap().contiguous().unwrap();
    turned.reshape((rows, width)).unwrap()
}

/// A file with matrices of one type, and the weights that are in it.
fn write(
    path: &Path,
    main: &Parameters,
    dtype: GgmlDType,
    metadata: &[(&str, Value)],
) -> Parameters {
    let mut tensors = Vec::new();
    let mut stored = Parameters::new();
    for (name, tensor) in main {
        let (their_name, heads) = ggml_name(name);
        let turned = match heads {
            Some(heads) => reorder(tensor, heads, false),
            None => tensor.clone(),
        };
        let kind = match tensor.rank() {
            1 => GgmlDType::F32,
            _ => dtype,
        };
        let quantised = QTensor::quantize(&turned, kind).unwrap();
        let read = quantised.dequantize(&Device::Cpu).unwrap();
        let read = match heads {
            Some(heads) => reorder(&read, heads, true),
            None => read,
        };
        stored.insert(name.clone(), read);
        tensors.push((their_name, quantised));
    }
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(name, value)| (*name, value))
        .collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    std::fs::write(path, file.into_inner()).unwrap();
    stored
}

#[test]
fn every_type_is_the_same_model_as_its_weights_in_safetensors() {
    let main = parameters(&config(true));
    let embeds = embeddings(&[1, 9, 256], 0.2);
    for dtype in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let stored = write(&path, &main, dtype, &metadata());
        if dtype == GgmlDType::F32 {
            assert!(
                main.iter()
                    .all(|(name, x)| values(x) == values(&stored[name]))
            );
        }
        let directory = dir.path().join("safetensors");
        save_model_dir(&directory, &config(true), &stored, None).unwrap();
        let expected = load_model_dir(&directory, &Device::Cpu).unwrap();
        let expected = values(&expected.decoder.forward(&embeds).unwrap());
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let base_hash = |path: &Path| ModelFiles::open(path).unwrap().base_hash().unwrap();
        assert_eq!(base_hash(&path), base_hash(&directory), "{dtype:?}");
        for named in [path.as_path(), dir.path()] {
            let loaded = load_model_dir(named, &Device::Cpu).unwrap();
            assert_eq!(loaded.dir, dir.path());
            assert!(loaded.tokenizer_hash.is_some() && loaded.scone.is_none());
            assert_eq!(loaded.config.shape(), config(true).shape());
            assert_eq!(loaded.config.eos_token_ids(), [2, 7]);
            assert_eq!(loaded.config.bos_token_id(), Some(1));
            let got = values(&loaded.decoder.forward(&embeds).unwrap());
            assert_eq!(got, expected, "{dtype:?}");
        }
    }
}

#[test]
fn an_output_layer_of_its_own_and_the_type_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let main = parameters(&config(false));
    let stored = write(&path, &main, GgmlDType::F32, &metadata());
    let loaded = load_model_dir(&path, &Device::Cpu).unwrap();
    assert!(!loaded.config.tied());
    let hidden = embeddings(&[3, 256], 0.4);
    let expected = crate::common::decoder(&config(false), &stored);
    assert_eq!(
        values(&loaded.decoder.logits(&hidden).unwrap()),
        values(&expected.logits(&hidden).unwrap())
    );
    let dtype_of = |dtype| {
        write(&path, &main, dtype, &metadata());
        ModelFiles::open(&path).unwrap().stored_dtype()
    };
    // Norms are f32 in every file.
    assert_eq!(dtype_of(GgmlDType::F16), StoredDtype::F32);
    assert_eq!(dtype_of(GgmlDType::Q8_0), StoredDtype::F32);
}

#[test]
fn the_factors_of_llama_3_become_its_scaling() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let mut expected = config(true);
    if let ModelConfig::Llama(c) = &mut expected {
        c.rope_scaling = Some(serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }));
    }
    // As llama.cpp's converter computes them.
    let factors: Vec<f32> = (0..32)
        .map(|i| {
            let frequency = 50_000f64.powf(-f64::from(i) / 32.0);
            let wavelength = std::f64::consts::TAU / frequency;
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (1.0 / ((1.0 - smooth) / 8.0 + smooth)).clamp(1.0, 8.0) as f32
        })
        .enumerate()
        .map(|(i, factor)| {
            let wavelength = std::f64::consts::TAU * 50_000f64.powf(i as f64 / 32.0);
            match wavelength {
                long if long > 8192.0 => 8.0,
                short if short < 2048.0 => 1.0,
                _ => factor,
            }
        })
        .collect();
    assert!(factors[0] == 1.0 && factors[31] == 8.0);
    let with = |factors: Vec<f32>| {
        let main = parameters(&config(true));
        write(&path, &main, GgmlDType::F32, &metadata());
        let mut file = std::fs::File::open(&path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let mut tensors: Vec<(String, QTensor)> = content
            .tensor_infos
            .keys()
            .map(|name| {
                (
                    name.clone(),
                    content.tensor(&mut file, name, &Device::Cpu).unwrap(),
                )
            })
            .collect();
        let len = factors.len();
        let factors = Tensor::from_vec(factors, len, &Device::Cpu).unwrap();
        let factors = QTensor::quantize(&factors, GgmlDType::F32).unwrap();
        tensors.push(("rope_freqs.weight".into(), factors));
        let metadata = metadata();
        let metadata: Vec<_> = metadata
            .iter()
            .map(|(name, value)| (*name, value))
            .collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut out = Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors).unwrap();
        std::fs::write(&path, out.into_inner()).unwrap();
        load_model_dir(&path, &Device::Cpu)
    };
    assert_eq!(
        with(factors.clone()).unwrap().config.shape(),
        expected.shape()
    );
    let mut other = factors.clone();
    other[20] *= 1.5;
    let error = with(other).unwrap_err().to_string();
    assert!(error.contains("rope_freqs"), "{error}");
    assert!(with(factors[..16].to_vec()).is_err());
}

#[test]
fn what_is_not_supported_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let main = parameters(&config(true));
    let refused = |change: &dyn Fn(&mut Metadata)| {
        let mut metadata = metadata();
        change(&mut metadata);
        write(&path, &main, GgmlDType::F32, &metadata);
        load_model_dir(&path, &Device::Cpu).unwrap_err().to_string()
    };
    let text = |text: &str| Value::String(text.into());
    let list = Value::Array(vec![Value::U32(2)]);
    for (name, value, reason) in [
        ("general.architecture", text("mamba"), "`mamba`"),
        ("general.alignment", Value::U32(0), "general.alignment"),
        ("llama.expert_count", Value::U32(8), "expert_count"),
        (
            "llama.attention.sliding_window",
            Value::U32(4096),
            "sliding_window",
        ),
        (
            "llama.rope.dimension_count",
            Value::U32(32),
            "dimension_count",
        ),
        ("llama.rope.scaling.type", text("yarn"), "yarn"),
        (
            "llama.attention.head_count",
            Value::U32(u32::MAX),
            "head, 0",
        ),
        ("llama.attention.head_count_kv", list, "head_count_kv"),
        ("llama.block_count", Value::F32(f32::NAN), "block_count"),
        ("llama.block_count", Value::U32(2000), "num_hidden_layers"),
        (
            "llama.embedding_length",
            Value::U64(u64::MAX),
            "embedding_length",
        ),
    ] {
        let error = refused(&|metadata| {
            metadata.retain(|(other, _)| *other != name);
            metadata.push((name, value.clone()));
        });
        assert!(error.contains(reason), "{name}: {error}");
    }
    let error = refused(&|metadata| metadata.retain(|(name, _)| !name.ends_with("block_count")));
    assert!(error.contains("block_count is missing"), "{error}");
    // One block more than the file holds.
    let error = refused(&|metadata| {
        metadata.retain(|(name, _)| !name.ends_with("block_count"));
        metadata.push(("llama.block_count", Value::U32(3)));
    });
    assert!(error.contains("model.layers.2"), "{error}");
    std::fs::copy(&path, dir.path().join("b.gguf")).unwrap();
    let error = load_model_dir(dir.path(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("name the file"), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let main = parameters(&config(true));
    write(&path, &main, GgmlDType::Q8_0, &metadata());
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..bytes.len()).step_by(bytes.len() / 60) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(load_model_dir(&path, &Device::Cpu).is_err(), "{len}");
    }
    // In the header anything may change; it must end in a model or an error.
    for i in 0..1500 {
        let mut flipped = bytes.clone();
        flipped[i] ^= 1 << (i % 8);
        std::fs::write(&path, &flipped).unwrap();
        let _ = ModelFiles::open(&path);
    }
    // A scale that is no number makes a block that is none.
    let mut file = Cursor::new(&bytes);
    let start = gguf_file::Content::read(&mut file).unwrap();
    let name = "blk.1.ffn_up.weight";
    let at = (start.tensor_data_offset + start.tensor_infos[name].offset) as usize;
    let mut spoilt = bytes.clone();
    spoilt[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(&path, &spoilt).unwrap();
    let error = load_model_dir(&path, &Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::Weights { .. }), "{error}");
    assert!(error.to_string().contains("up_proj"), "{error}");
    // A tensor's size whose bytes do not fit a number, and one that lies on another.
    let dims = bytes
        .windows(name.len())
        .position(|w| w == name.as_bytes())
        .unwrap();
    let dims = dims + name.len() + 4;
    for (at, value) in [(dims, u64::MAX - 255), (dims, 1 << 62), (dims + 20, 0)] {
        let mut spoilt = bytes.clone();
        spoilt[at..at + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, &spoilt).unwrap();
        let error = load_model_dir(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(
            error.contains("too large") || error.contains("overlaps") || error.contains("beyond"),
            "{error}"
        );
    }
}
