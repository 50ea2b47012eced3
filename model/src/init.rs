//! Fresh weights.

use crate::config::{Family, FgramModelConfig, ModelConfig, Shape};
use crate::device::host;
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Tensors by the name they have in a checkpoint.
pub type Parameters = BTreeMap<String, Tensor>;

/// A [`VarBuilder`] over parameters, in f32. It shares the tensors: built over the tensors of
/// `candle` variables, the model follows the variables.
pub fn var_builder(parameters: &Parameters, device: &Device) -> VarBuilder<'static> {
    let map = parameters
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect();
    VarBuilder::from_tensors(map, DType::F32, device)
}

/// Fresh weights of a main model, on the CPU: normal with the config's `initializer_range`,
/// projections back into the residual stream divided by `sqrt(2 · layers)` (GPT-2), norms 1,
/// biases 0. The same seed gives the same weights on every machine.
///
/// # Errors
/// A config that does not validate.
pub fn init_parameters(config: &ModelConfig, seed: u64) -> Result<Parameters> {
    config.validate()?;
    let shape = config.shape();
    let std = match config {
        ModelConfig::Llama(c) => c.initializer_range,
        ModelConfig::Gpt2(c) => c.initializer_range,
    };
    let mut init = Init::new(seed, std, &shape);
    let (v, d) = (shape.vocab_size, shape.hidden_size);
    let body = match shape.family {
        Family::Llama => {
            init.normal("model.embed_tokens.weight", &[v, d], 1.0)?;
            ("model.layers", "model.norm")
        }
        Family::Gpt2 => {
            init.normal("transformer.wte.weight", &[v, d], 1.0)?;
            init.normal("transformer.wpe.weight", &[shape.max_positions, d], 1.0)?;
            ("transformer.h", "transformer.ln_f")
        }
    };
    init.blocks(body.0)?;
    init.norm(body.1)?;
    if !config.tied() {
        init.normal("lm_head.weight", &[v, d], 1.0)?;
    }
    Ok(init.parameters)
}

/// Fresh weights of an f-gram model, as [`init_parameters`], but A starts out as the token
/// embedding: projections back into the residual stream and positions are 0, so that the vector of
/// an f-gram is that of its last token and a SCONE model starts where its plain twin does. Started
/// at random, A feeds the main model noise until it has learnt to pass the last token on. A final
/// norm starts at the scale of the token embedding.
///
/// # Errors
/// A config that does not fit the main model.
pub fn init_fgram_parameters(
    config: &FgramModelConfig,
    main: &ModelConfig,
    seed: u64,
) -> Result<Parameters> {
    let shape = config.shape(main)?;
    let std = match main {
        ModelConfig::Llama(c) => c.initializer_range,
        ModelConfig::Gpt2(c) => c.initializer_range,
    };
    // Another stream than the main model's, for the same seed.
    let mut init = Init::new(seed ^ 0x5c04_e5c0_4e5c_04e5, std, &shape);
    init.residual = 0.0;
    let positions = [shape.max_positions, shape.hidden_size];
    init.normal("position_embedding.weight", &positions, 0.0)?;
    init.blocks("layers")?;
    if config.final_norm {
        init.norm("norm")?;
        init.constant("norm.weight", shape.hidden_size, std as f32)?;
    }
    Ok(init.parameters)
}

struct Init<'a> {
    rng: ChaCha8Rng,
    std: f64,
    residual: f64,
    shape: &'a Shape,
    parameters: Parameters,
}

impl<'a> Init<'a> {
    fn new(seed: u64, std: f64, shape: &'a Shape) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            std,
            residual: 1.0 / (2.0 * shape.num_layers as f64).sqrt(),
            shape,
            parameters: Parameters::new(),
        }
    }

    fn normal(&mut self, name: &str, dims: &[usize], factor: f64) -> Result<()> {
        let n: usize = dims.iter().product();
        let scale = self.std * factor;
        let mut values = Vec::with_capacity(n + 1);
        while values.len() < n {
            // Box-Muller: two normal numbers of two uniform ones, the first in (0, 1].
            let (u, w) = (1.0 - self.rng.random::<f64>(), self.rng.random::<f64>());
            let radius = scale * (-2.0 * u.ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * w).sin_cos();
            values.push((radius * cos) as f32);
            values.push((radius * sin) as f32);
        }
        values.truncate(n);
        let tensor = Tensor::from_vec(values, dims, &host())?;
        self.parameters.insert(name.to_owned(), tensor);
        Ok(())
    }

    fn constant(&mut self, name: &str, n: usize, value: f32) -> Result<()> {
        let tensor = Tensor::from_vec(vec![value; n], n, &host())?;
        self.parameters.insert(name.to_owned(), tensor);
        Ok(())
    }

    fn norm(&mut self, name: &str) -> Result<()> {
        self.constant(&format!("{name}.weight"), self.shape.hidden_size, 1.0)?;
        if self.shape.family == Family::Gpt2 {
            self.constant(&format!("{name}.bias"), self.shape.hidden_size, 0.0)?;
        }
        Ok(())
    }

    fn conv1d(&mut self, name: &str, inputs: usize, outputs: usize, factor: f64) -> Result<()> {
        self.normal(&format!("{name}.weight"), &[inputs, outputs], factor)?;
        self.constant(&format!("{name}.bias"), outputs, 0.0)
    }

    fn blocks(&mut self, prefix: &str) -> Result<()> {
        for i in 0..self.shape.num_layers {
            match self.shape.family {
                Family::Llama => self.llama_block(&format!("{prefix}.{i}"))?,
                Family::Gpt2 => self.gpt2_block(&format!("{prefix}.{i}"))?,
            }
        }
        Ok(())
    }

    fn llama_block(&mut self, p: &str) -> Result<()> {
        let s = self.shape;
        let (d, f, residual) = (s.hidden_size, s.intermediate_size, self.residual);
        let (q, kv) = (s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim);
        self.norm(&format!("{p}.input_layernorm"))?;
        self.normal(&format!("{p}.self_attn.q_proj.weight"), &[q, d], 1.0)?;
        self.normal(&format!("{p}.self_attn.k_proj.weight"), &[kv, d], 1.0)?;
        self.normal(&format!("{p}.self_attn.v_proj.weight"), &[kv, d], 1.0)?;
        self.normal(&format!("{p}.self_attn.o_proj.weight"), &[d, q], residual)?;
        if s.qkv_bias {
            self.constant(&format!("{p}.self_attn.q_proj.bias"), q, 0.0)?;
            self.constant(&format!("{p}.self_attn.k_proj.bias"), kv, 0.0)?;
            self.constant(&format!("{p}.self_attn.v_proj.bias"), kv, 0.0)?;
        }
        if s.qk_norm {
            self.constant(&format!("{p}.self_attn.q_norm.weight"), s.head_dim, 1.0)?;
            self.constant(&format!("{p}.self_attn.k_norm.weight"), s.head_dim, 1.0)?;
        }
        self.norm(&format!("{p}.post_attention_layernorm"))?;
        self.normal(&format!("{p}.mlp.gate_proj.weight"), &[f, d], 1.0)?;
        self.normal(&format!("{p}.mlp.up_proj.weight"), &[f, d], 1.0)?;
        self.normal(&format!("{p}.mlp.down_proj.weight"), &[d, f], residual)
    }

    fn gpt2_block(&mut self, p: &str) -> Result<()> {
        let s = self.shape;
        let (d, f, residual) = (s.hidden_size, s.intermediate_size, self.residual);
        self.norm(&format!("{p}.ln_1"))?;
        let joint = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
        self.conv1d(&format!("{p}.attn.c_attn"), d, joint, 1.0)?;
        self.conv1d(&format!("{p}.attn.c_proj"), d, d, residual)?;
        self.norm(&format!("{p}.ln_2"))?;
        self.conv1d(&format!("{p}.mlp.c_fc"), d, f, 1.0)?;
        self.conv1d(&format!("{p}.mlp.c_proj"), f, d, residual)
    }
}
