//! From the training config to the configs of the models.

use anyhow::{Context as _, Result};
use scone_model::checkpoint::StoredDtype;
use scone_model::config::{FgramModelConfig, Gpt2Config, LlamaConfig, ModelConfig, TokenIds};

use super::config::{Family, FgramModelShape, ModelShape};
use crate::tokenizer::{END_OF_TEXT, TextTokenizer};

/// The id that separates documents: the first end-of-text id of a base model, as in evaluation, or
/// that of `<|endoftext|>`.
///
/// # Errors
/// When there is neither.
pub fn eos_id(tokenizer: &TextTokenizer, base: Option<&ModelConfig>) -> Result<u32> {
    let missing = || format!("the tokenizer has no token {END_OF_TEXT} to separate documents with");
    let of_base = base.and_then(|base| base.eos_token_ids().first().copied());
    of_base
        .or_else(|| tokenizer.token_id(END_OF_TEXT))
        .with_context(missing)
}

/// The `config.json` of a main model of this shape, stored as `dtype`.
///
/// # Errors
/// When the model crate refuses the sizes.
pub fn model_config(
    shape: &ModelShape,
    dtype: StoredDtype,
    vocab_size: u32,
    eos: u32,
) -> Result<ModelConfig> {
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
    model.set_torch_dtype(dtype.torch());
    model.validate().context("key `model`")?;
    Ok(model)
}

/// Shape of A beside the main model `main`, for f-grams of at most `max_n` tokens. What `own` leaves
/// open is the main model's.
pub fn fgram_model_config(
    own: &FgramModelShape,
    main: &ModelConfig,
    max_n: u8,
) -> FgramModelConfig {
    let shape = main.shape();
    // Some models have heads of another width than their share; A's divide the width.
    let divides = |heads: &usize| shape.hidden_size.is_multiple_of(*heads);
    let all = || (1..=shape.num_heads).rev().find(divides).unwrap_or(1);
    let heads = own.num_attention_heads.unwrap_or_else(all);
    // Grouped heads only where A has the main model's heads.
    let grouped = heads == shape.num_heads && shape.num_kv_heads != heads;
    FgramModelConfig {
        num_hidden_layers: own.num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: grouped.then_some(shape.num_kv_heads),
        intermediate_size: own.intermediate_size.unwrap_or(shape.intermediate_size),
        final_norm: own.final_norm,
        max_n: usize::from(max_n),
    }
}
