//! Fields that ask for something no model of this crate has.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// Whether a value leaves the model as it is.
type Harmless = fn(&Value) -> bool;

/// Fields that change what the model computes, and the values that do not.
const FIELDS: [(&str, Harmless); 29] = [
    ("quantization_config", never),
    ("layer_types", full_attention),
    ("attention_chunk_size", never),
    ("no_rope_layers", never),
    ("cross_attention_layers", never),
    ("add_cross_attention", is_false),
    ("partial_rotary_factor", is_one),
    ("rotary_pct", is_one),
    ("attn_logit_softcapping", never),
    ("final_logit_softcapping", never),
    ("query_pre_attn_scalar", never),
    ("attn_output_gate", is_false),
    ("use_qk_norm", is_false),
    ("clip_qkv", never),
    ("logit_scale", is_one),
    ("logits_scaling", is_one),
    ("residual_multiplier", is_one),
    ("embedding_multiplier", is_one),
    ("attention_multiplier", never),
    ("scale_embedding", is_false),
    ("num_experts", is_zero),
    ("num_local_experts", is_zero),
    ("n_routed_experts", is_zero),
    ("n_shared_experts", is_zero),
    ("num_experts_per_tok", is_zero),
    ("moe_intermediate_size", is_zero),
    ("num_nextn_predict_layers", is_zero),
    ("vision_config", never),
    ("text_config", never),
];

/// Refuses a config, nulls removed, by the first field of it that is not implemented.
pub(super) fn refuse(config: &Map<String, Value>) -> Result<()> {
    for (field, harmless) in FIELDS {
        if let Some(value) = config.get(field).filter(|value| !harmless(value)) {
            return Err(not_supported(field, value));
        }
    }
    // qwen2 and qwen3 name a window that is only used when they say so.
    let qwen = matches!(
        config.get("model_type").and_then(Value::as_str),
        Some("qwen2" | "qwen3")
    );
    let used = match config.get("use_sliding_window") {
        Some(used) => !is_false(used),
        None => !qwen,
    };
    match config.get("sliding_window") {
        Some(window) if used => Err(not_supported("sliding_window", window)),
        _ => Ok(()),
    }
}

fn not_supported(field: &'static str, value: &Value) -> Error {
    let mut text = value.to_string();
    if text.len() > 60 {
        text = "the value given".to_owned();
    }
    Error::config(field, format!("{text} is not supported"))
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn full_attention(value: &Value) -> bool {
    let full = |kind: &Value| kind.as_str() == Some("full_attention");
    value.as_array().is_some_and(|kinds| kinds.iter().all(full))
}
