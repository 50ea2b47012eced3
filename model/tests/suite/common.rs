//! Tiny models and helpers for the tests.
use candle_core::{DType, Device, Tensor, Var};
use scone_model::config::{Gpt2Config, LlamaConfig, LlamaVariant};
use scone_model::{
    Decoder, FgramModel, FgramModelConfig, ModelConfig, Parameters, init_fgram_parameters,
    init_parameters,
};

pub(crate) fn llama(tied: bool) -> ModelConfig {
    let mut config = LlamaConfig::new(23, 16, 2, 4, 20, 64);
    config.num_key_value_heads = Some(2);
    config.tie_word_embeddings = tied;
    config.initializer_range = 0.3;
    config.eos_token_id = Some(scone_model::config::TokenIds::One(2));
    ModelConfig::Llama(config)
}

pub(crate) fn gpt2() -> ModelConfig {
    let mut config = Gpt2Config::new(23, 16, 2, 4, 64);
    config.initializer_range = 0.3;
    ModelConfig::Gpt2(config)
}

/// qwen2, tied or not.
pub(crate) fn qwen2(tied: bool) -> ModelConfig {
    variant(LlamaVariant::Qwen2, tied)
}

/// qwen3, with heads that are together wider than the model.
pub(crate) fn qwen3() -> ModelConfig {
    let ModelConfig::Llama(mut config) = variant(LlamaVariant::Qwen3, true) else {
        unreachable!()
    };
    config.head_dim = Some(6);
    ModelConfig::Llama(config)
}

fn variant(model_type: LlamaVariant, tied: bool) -> ModelConfig {
    let ModelConfig::Llama(mut config) = llama(tied) else {
        unreachable!()
    };
    config.model_type = model_type;
    ModelConfig::Llama(config)
}

pub(crate) fn families() -> [ModelConfig; 5] {
    [llama(true), llama(false), gpt2(), qwen2(true), qwen3()]
}

pub(crate) fn fgram_config(final_norm: bool) -> FgramModelConfig {
    FgramModelConfig {
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: None,
        intermediate_size: 24,
        final_norm,
        max_n: 5,
    }
}

/// Numbers that look random and are the same everywhere.
pub(crate) fn numbers(n: usize, seed: f64) -> Vec<f64> {
    (0..n)
        .map(|i| (i as f64 * 12.9898 + seed * 78.233).sin() * 0.9)
        .collect()
}

pub(crate) fn embeddings(dims: &[usize], seed: f64) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_vec(numbers(n, seed), dims, &Device::Cpu)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
}

/// Fresh parameters; norms, biases and what starts at 0 moved off their neutral values.
pub(crate) fn parameters(config: &ModelConfig) -> Parameters {
    roughen(init_parameters(config, 5).unwrap())
}

pub(crate) fn fgram_parameters(config: &FgramModelConfig, main: &ModelConfig) -> Parameters {
    roughen(init_fgram_parameters(config, main, 5).unwrap())
}

fn roughen(parameters: Parameters) -> Parameters {
    parameters
        .into_iter()
        .map(|(name, tensor)| {
            let other = (embeddings(tensor.dims(), name.len() as f64) * 0.3).unwrap();
            let is_zero = values(&tensor).iter().all(|&x| x == 0.0);
            let tensor = match tensor.rank() {
                1 => (tensor + other).unwrap(),
                _ if is_zero => other,
                _ => tensor,
            };
            (name, tensor)
        })
        .collect()
}

/// The parameters as variables of a type, under the same names.
pub(crate) fn variables(parameters: &Parameters, dtype: DType) -> Parameters {
    parameters
        .iter()
        .map(|(name, tensor)| {
            let var = Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap();
            (name.clone(), var.as_tensor().clone())
        })
        .collect()
}

/// A builder in the type of the parameters.
pub(crate) fn builder(parameters: &Parameters, dtype: DType) -> candle_nn::VarBuilder<'static> {
    let map = parameters
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect();
    candle_nn::VarBuilder::from_tensors(map, dtype, &Device::Cpu)
}

pub(crate) fn decoder(config: &ModelConfig, parameters: &Parameters) -> Decoder {
    let dtype = parameters.values().next().unwrap().dtype();
    Decoder::load(config, builder(parameters, dtype)).unwrap()
}

pub(crate) fn fgram_model(
    config: &FgramModelConfig,
    main: &ModelConfig,
    parameters: &Parameters,
) -> FgramModel {
    let dtype = parameters.values().next().unwrap().dtype();
    FgramModel::load(config, main, builder(parameters, dtype)).unwrap()
}

pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what}[{i}]: {a} instead of {b}"
        );
    }
}
