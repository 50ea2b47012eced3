//! The config that the metadata of a GGUF file amounts to.

use super::header::{Header, Value};
use crate::config::{LlamaConfig, TokenIds};

/// Metadata of llama that changes what a model computes, in ways this crate does not have.
const REFUSED: [&str; 8] = [
    "expert_count",
    "expert_used_count",
    "attention.sliding_window",
    "attention.clamp_kqv",
    "attention.scale",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
];

/// A llama's config.
///
/// # Errors
/// Says which value is missing or not supported.
pub(super) fn read(header: &Header) -> Result<LlamaConfig, String> {
    let fields = Fields { header };
    match header.metadata.get("general.architecture") {
        Some(Value::Text(name)) if name == "llama" => {}
        Some(Value::Text(other)) => {
            return Err(format!(
                "architecture `{other}` is not supported, use llama"
            ));
        }
        _ => return Err("general.architecture is missing".to_owned()),
    }
    for name in REFUSED {
        if !matches!(fields.get(name), None | Some(Value::Number(0.0))) {
            return Err(format!("llama.{name} is not supported"));
        }
    }
    let embedding = header.tensors.get("token_embd.weight");
    let [vocab_size, _] = embedding.map_or(&[][..], |t| &t.shape) else {
        return Err("tensor `token_embd.weight` is missing or no matrix".to_owned());
    };
    let heads = fields.size("attention.head_count")?;
    let mut config = LlamaConfig::new(
        *vocab_size,
        fields.size("embedding_length")?,
        fields.size("block_count")?,
        heads,
        fields.size("feed_forward_length")?,
        fields.size("context_length")?,
    );
    config.num_key_value_heads = Some(fields.size_or("attention.head_count_kv", heads)?);
    config.head_dim = head_dim(&fields, &config)?;
    config.rms_norm_eps = fields.number("attention.layer_norm_rms_epsilon")?;
    if fields.get("rope.freq_base").is_some() {
        config.rope_theta = fields.number("rope.freq_base")?;
    }
    config.rope_scaling = rope_scaling(&fields)?;
    config.tie_word_embeddings = !header.tensors.contains_key("output.weight");
    config.bos_token_id = fields.token("bos");
    let ends: Vec<u32> = ["eos", "eot"]
        .into_iter()
        .filter_map(|name| fields.token(name))
        .collect();
    config.eos_token_id = (!ends.is_empty()).then_some(TokenIds::Many(ends));
    Ok(config)
}

/// Width of a head, where it is said; keys, values and what turns must have it.
fn head_dim(fields: &Fields<'_>, config: &LlamaConfig) -> Result<Option<usize>, String> {
    let usual = config.hidden_size / config.num_attention_heads.max(1);
    let keys = fields.size_or("attention.key_length", usual)?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        let other = fields.size_or(name, keys)?;
        if other != keys {
            return Err(format!(
                "llama.{name} is {other}, other than the width of a head, {keys}"
            ));
        }
    }
    Ok((keys != usual).then_some(keys))
}

fn rope_scaling(fields: &Fields<'_>) -> Result<Option<serde_json::Value>, String> {
    match fields.get("rope.scaling.type") {
        // A factor without a type is linear, under its name of today or that of before.
        None => {
            let named = ["rope.scaling.factor", "rope.scale_linear"];
            let Some(name) = named.into_iter().find(|name| fields.get(name).is_some()) else {
                return Ok(None);
            };
            let factor = fields.number(name)?;
            let stretched = factor != 0.0 && factor != 1.0;
            let linear = serde_json::json!({"rope_type": "linear", "factor": factor});
            Ok(stretched.then_some(linear))
        }
        Some(Value::Text(kind)) if kind == "none" => Ok(None),
        Some(Value::Text(kind)) if kind == "linear" => {
            let factor = fields.number("rope.scaling.factor")?;
            Ok(Some(
                serde_json::json!({"rope_type": "linear", "factor": factor}),
            ))
        }
        Some(other) => Err(format!(
            "llama.rope.scaling.type is {other:?}, not supported"
        )),
    }
}

struct Fields<'a> {
    header: &'a Header,
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.header.metadata.get(&format!("llama.{name}"))
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            Some(_) => Err(format!("llama.{name} is not one number")),
            None => Err(format!("llama.{name} is missing")),
        }
    }

    fn size(&self, name: &str) -> Result<usize, String> {
        match self.number(name)? {
            size if size >= 0.0 && size <= f64::from(u32::MAX) && size.fract() == 0.0 => {
                Ok(size as usize)
            }
            other => Err(format!("llama.{name} is {other}, not a size")),
        }
    }

    fn size_or(&self, name: &str, default: usize) -> Result<usize, String> {
        match self.get(name) {
            None => Ok(default),
            Some(_) => self.size(name),
        }
    }

    /// The id of a special token, if the file has one.
    fn token(&self, name: &str) -> Option<u32> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match self.header.metadata.get(&key)? {
            Value::Number(id) if *id >= 0.0 && *id < f64::from(u32::MAX) => Some(*id as u32),
            _ => None,
        }
    }
}
