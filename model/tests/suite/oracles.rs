//! The same logits as the models of candle-transformers, by both paths' entry points.
use crate::common::{
    assert_close, builder, decoder, embeddings, llama, parameters, qwen2, qwen3, values,
};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::Activation;
use candle_transformers::models;
use scone_model::config::LlamaConfig;
use scone_model::{Decoder, KvDtype, ModelConfig, Segment};
use serde_json::json;

const IDS: [u32; 21] = [
    3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 22,
];

fn fields(config: &ModelConfig) -> &LlamaConfig {
    match config {
        ModelConfig::Llama(config) => config,
        ModelConfig::Gpt2(_) => unreachable!(),
    }
}

/// Logits of the last of [`IDS`]: by the forward pass, by serving, and by the tensor path in f64.
fn assert_logits(what: &str, config: &ModelConfig, expected: &Tensor) {
    let expected = values(expected);
    let main = parameters(config);
    let single = decoder(config, &main);
    assert_close(what, &whole(&single), &expected, 1e-4);
    let served = serve(&single);
    assert_close(&format!("{what}, serving"), &served, &expected, 1e-4);
    let double = decoder(config, &crate::common::variables(&main, DType::F64));
    assert_close(&format!("{what}, f64"), &whole(&double), &expected, 1e-4);
}

/// By the forward pass.
fn whole(decoder: &Decoder) -> Vec<f32> {
    let embeds = decoder.input_embeddings(None, &IDS).unwrap();
    let hidden = decoder.forward(&embeds.unsqueeze(0).unwrap()).unwrap();
    let logits = decoder.logits(&hidden.i((.., IDS.len() - 1)).unwrap());
    values(&logits.unwrap().to_dtype(DType::F32).unwrap())
}

/// By serving.
fn serve(decoder: &Decoder) -> Vec<f32> {
    let segment = Segment {
        blocks: &[1, 0],
        held: 0,
        token_ids: &IDS,
        rows: &[None; IDS.len()],
        samples: true,
    };
    let mut pool = decoder.new_pool(KvDtype::F32, 2).unwrap();
    decoder.step(&mut pool, &[segment]).unwrap()
}

fn llama_oracle(
    config: &ModelConfig,
    rope_scaling: Option<models::llama::Llama3RopeConfig>,
) -> Tensor {
    let c = fields(config);
    let oracle_config = models::llama::Config {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        vocab_size: c.vocab_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads.unwrap(),
        use_flash_attn: false,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope_theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: c.max_position_embeddings,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    let vb = builder(&parameters(config), DType::F32);
    let model = models::llama::Llama::load(vb, &oracle_config).unwrap();
    let mut cache =
        models::llama::Cache::new(false, DType::F32, &oracle_config, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[IDS], &Device::Cpu).unwrap();
    model.forward(&ids, 0, &mut cache).unwrap()
}

#[test]
fn the_same_logits_as_the_llama_of_candle_transformers() {
    for tied in [true, false] {
        let config = llama(tied);
        assert_logits("llama", &config, &llama_oracle(&config, None));
    }
}

#[test]
fn the_same_logits_with_the_positions_of_llama_3() {
    let ModelConfig::Llama(mut c) = llama(true) else {
        unreachable!()
    };
    // Both pairs of a head and what lies between are reached: frequencies of 1 and 0.3.
    c.rope_theta = 10.0;
    c.rope_scaling = Some(json!({
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }));
    let scaled = ModelConfig::Llama(c.clone());
    let oracle = models::llama::Llama3RopeConfig {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
        rope_type: models::llama::Llama3RopeType::Llama3,
    };
    let expected = llama_oracle(&scaled, Some(oracle));
    assert_logits("llama 3", &scaled, &expected);
    // The scaling makes a difference that the tolerance does not hide.
    let plain = values(&llama_oracle(&scaled, None));
    let largest = values(&expected)
        .iter()
        .zip(&plain)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(largest > 0.01, "{largest}");
    // Where newer files keep it.
    let scaling = c.rope_scaling.take();
    c.rope_parameters = scaling.map(|mut scaling| {
        scaling["rope_theta"] = 10.0.into();
        scaling
    });
    c.rope_theta = 10_000.0;
    let newer = ModelConfig::Llama(c);
    assert_eq!(newer.shape(), scaled.shape());
}

#[test]
fn linear_scaling_is_a_slower_walk() {
    let ModelConfig::Llama(mut c) = llama(true) else {
        unreachable!()
    };
    let main = parameters(&ModelConfig::Llama(c.clone()));
    let plain = decoder(&ModelConfig::Llama(c.clone()), &main);
    c.rope_scaling = Some(json!({"type": "linear", "factor": 2.0}));
    let scaled = decoder(&ModelConfig::Llama(c), &main);
    // Two positions: the second is half as far from the first as in the plain model.
    let embeds = embeddings(&[1, 2, 16], 0.3);
    let (a, b) = (
        plain.forward(&embeds).unwrap(),
        scaled.forward(&embeds).unwrap(),
    );
    let first = |x: &Tensor| values(&x.i((0, 0)).unwrap());
    let second = |x: &Tensor| values(&x.i((0, 1)).unwrap());
    assert_eq!(first(&a), first(&b));
    assert_ne!(second(&a), second(&b));
}

#[test]
fn the_same_logits_as_the_qwen2_of_candle_transformers() {
    for tied in [true, false] {
        let config = qwen2(tied);
        let c = fields(&config);
        let oracle_config = models::qwen2::Config {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads.unwrap(),
            max_position_embeddings: c.max_position_embeddings,
            sliding_window: 1 << 15,
            max_window_layers: 2,
            tie_word_embeddings: tied,
            rope_theta: c.rope_theta,
            rms_norm_eps: c.rms_norm_eps,
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        };
        let vb = builder(&parameters(&config), DType::F32);
        let mut model = models::qwen2::ModelForCausalLM::new(&oracle_config, vb).unwrap();
        let ids = Tensor::new(&[IDS], &Device::Cpu).unwrap();
        let expected = model.forward(&ids, 0).unwrap();
        assert_logits("qwen2", &config, &expected);
    }
}

#[test]
fn the_same_logits_as_the_qwen3_of_candle_transformers() {
    let config = qwen3();
    let c = fields(&config);
    let oracle_config = models::qwen3::Config {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        head_dim: c.head_dim.unwrap(),
        attention_bias: false,
        num_key_value_heads: c.num_key_value_heads.unwrap(),
        max_position_embeddings: c.max_position_embeddings,
        sliding_window: None,
        max_window_layers: 2,
        tie_word_embeddings: true,
        rope_theta: c.rope_theta,
        rms_norm_eps: c.rms_norm_eps,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let vb = builder(&parameters(&config), DType::F32);
    let mut model = models::qwen3::ModelForCausalLM::new(&oracle_config, vb).unwrap();
    let ids = Tensor::new(&[IDS], &Device::Cpu).unwrap();
    let expected = model.forward(&ids, 0).unwrap();
    assert_logits("qwen3", &config, &expected);
}
