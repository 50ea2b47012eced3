//! From the training config to the configs of the models.

use anyhow::{Context as _, Result};
use scone_model::config::{FgramModelConfig, Gpt2Config, LlamaConfig, ModelConfig, TokenIds};

use super::config::{Family, OutputDtype, TrainConfig};
use crate::tokenizer::{END_OF_TEXT, TextTokenizer};

/// The id that separates documents.
///
/// # Errors
/// When the tokenizer has no `<|endoftext|>`.
pub fn eos_id(tokenizer: &TextTokenizer) -> Result<u32> {
    let missing = || format!("the tokenizer has no token {END_OF_TEXT} to separate documents with");
    tokenizer.token_id(END_OF_TEXT).with_context(missing)
}

/// The main model's `config.json`.
///
/// # Errors
/// When the model crate refuses the sizes.
pub fn model_config(config: &TrainConfig, vocab_size: u32, eos: u32) -> Result<ModelConfig> {
    let shape = &config.model;
    let vocab_size = vocab_size as usize;
    let ids = Some(TokenIds::One(eos));
    let mut model = match shape.family {
        Family::Llama => {
            let mut llama = LlamaConfig::new(
                vocab_size,
                shape.hidden_size,
                shape.num_hidden_layers,
                shape.num_attention_heads,
                shape.intermediate_size(),
                shape.max_position_embeddings,
            );
            llama.num_key_value_heads = Some(shape.num_key_value_heads());
            llama.rope_theta = shape.rope_theta;
            llama.tie_word_embeddings = shape.tie_word_embeddings;
            (llama.bos_token_id, llama.eos_token_id) = (Some(eos), ids);
            ModelConfig::Llama(llama)
        }
        Family::Gpt2 => {
            let mut gpt2 = Gpt2Config::new(
                vocab_size,
                shape.hidden_size,
                shape.num_hidden_layers,
                shape.num_attention_heads,
                shape.max_position_embeddings,
            );
            gpt2.n_inner = shape.intermediate_size;
            gpt2.tie_word_embeddings = shape.tie_word_embeddings;
            (gpt2.bos_token_id, gpt2.eos_token_id) = (Some(eos), ids);
            ModelConfig::Gpt2(gpt2)
        }
    };
    model.set_torch_dtype(match config.output.dtype {
        OutputDtype::F32 => "float32",
        OutputDtype::Bf16 => "bfloat16",
        OutputDtype::F16 => "float16",
    });
    model.validate().context("key `model`")?;
    Ok(model)
}

/// Shape of A for f-grams of at most `max_n` tokens.
pub fn fgram_model_config(config: &TrainConfig, max_n: u8) -> FgramModelConfig {
    let heads = config.fgram_heads();
    // Grouped heads only where A has the main model's heads.
    let kv_heads =
        (heads == config.model.num_attention_heads).then(|| config.model.num_key_value_heads());
    FgramModelConfig {
        num_hidden_layers: config.fgram_model.num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads.filter(|&kv| kv != heads),
        intermediate_size: config.fgram_intermediate_size(),
        final_norm: config.fgram_model.final_norm,
        max_n: usize::from(max_n),
    }
}
