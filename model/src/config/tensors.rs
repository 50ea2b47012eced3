//! The tensors of a model: their names and shapes, as `transformers` has them.

use super::{Family, FgramModelConfig, ModelConfig, Shape};
use crate::error::Result;

/// Name and shape of a tensor that a model consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Sizes, the outermost first.
    pub shape: Vec<usize>,
}

impl ModelConfig {
    /// Every tensor of the main model, gpt2's with the prefix `transformer.`.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let shape = self.shape();
        let mut list = List::new(&shape);
        let table = [shape.vocab_size, shape.hidden_size];
        list.push(self.token_embedding_name(), &table);
        match shape.family {
            Family::Llama => {
                list.blocks("model.layers");
                list.norm("model.norm");
            }
            Family::Gpt2 => {
                let positions = [shape.max_positions, shape.hidden_size];
                list.push("transformer.wpe.weight", &positions);
                list.blocks("transformer.h");
                list.norm("transformer.ln_f");
            }
        }
        if !self.tied() {
            list.push("lm_head.weight", &table);
        }
        list.tensors
    }

    /// Name of T, the token embedding.
    pub fn token_embedding_name(&self) -> &'static str {
        match self.shape().family {
            Family::Llama => "model.embed_tokens.weight",
            Family::Gpt2 => "transformer.wte.weight",
        }
    }
}

impl FgramModelConfig {
    /// Every tensor of A beside this main model.
    ///
    /// # Errors
    /// A config that does not fit the main model.
    pub fn tensors(&self, main: &ModelConfig) -> Result<Vec<TensorSpec>> {
        let shape = self.shape(main)?;
        let mut list = List::new(&shape);
        let positions = [shape.max_positions, shape.hidden_size];
        list.push("position_embedding.weight", &positions);
        list.blocks("layers");
        if self.final_norm {
            list.norm("norm");
        }
        Ok(list.tensors)
    }
}

struct List<'a> {
    shape: &'a Shape,
    tensors: Vec<TensorSpec>,
}

impl<'a> List<'a> {
    fn new(shape: &'a Shape) -> Self {
        Self {
            shape,
            tensors: Vec::new(),
        }
    }

    fn push(&mut self, name: &str, shape: &[usize]) {
        self.tensors.push(TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
        });
    }

    fn norm(&mut self, name: &str) {
        let width = [self.shape.hidden_size];
        self.push(&format!("{name}.weight"), &width);
        if self.shape.family == Family::Gpt2 {
            self.push(&format!("{name}.bias"), &width);
        }
    }

    fn conv1d(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.push(&format!("{name}.weight"), &[inputs, outputs]);
        self.push(&format!("{name}.bias"), &[outputs]);
    }

    fn blocks(&mut self, prefix: &str) {
        for i in 0..self.shape.num_layers {
            match self.shape.family {
                Family::Llama => self.llama_block(&format!("{prefix}.{i}")),
                Family::Gpt2 => self.gpt2_block(&format!("{prefix}.{i}")),
            }
        }
    }

    fn llama_block(&mut self, p: &str) {
        let (d, f) = (self.shape.hidden_size, self.shape.intermediate_size);
        let heads = self.shape.heads();
        let (q, kv) = (heads.q_width(), heads.kv_width());
        self.norm(&format!("{p}.input_layernorm"));
        for (name, outputs) in [("q", q), ("k", kv), ("v", kv)] {
            self.push(&format!("{p}.self_attn.{name}_proj.weight"), &[outputs, d]);
            if self.shape.qkv_bias {
                self.push(&format!("{p}.self_attn.{name}_proj.bias"), &[outputs]);
            }
        }
        if self.shape.qk_norm {
            let head = [self.shape.head_dim];
            self.push(&format!("{p}.self_attn.q_norm.weight"), &head);
            self.push(&format!("{p}.self_attn.k_norm.weight"), &head);
        }
        self.push(&format!("{p}.self_attn.o_proj.weight"), &[d, q]);
        self.norm(&format!("{p}.post_attention_layernorm"));
        self.push(&format!("{p}.mlp.gate_proj.weight"), &[f, d]);
        self.push(&format!("{p}.mlp.up_proj.weight"), &[f, d]);
        self.push(&format!("{p}.mlp.down_proj.weight"), &[d, f]);
    }

    fn gpt2_block(&mut self, p: &str) {
        let (d, f) = (self.shape.hidden_size, self.shape.intermediate_size);
        let heads = self.shape.heads();
        self.norm(&format!("{p}.ln_1"));
        self.conv1d(&format!("{p}.attn.c_attn"), d, heads.width());
        self.conv1d(&format!("{p}.attn.c_proj"), heads.q_width(), d);
        self.norm(&format!("{p}.ln_2"));
        self.conv1d(&format!("{p}.mlp.c_fc"), d, f);
        self.conv1d(&format!("{p}.mlp.c_proj"), f, d);
    }
}
