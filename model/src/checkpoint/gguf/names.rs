//! llama.cpp's names of llama's tensors, and `transformers`' for them.

/// A tensor under `transformers`' name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    /// Whether its rows are queries or keys, which llama.cpp has in another order.
    pub(super) turned: bool,
}

/// The name `transformers` has for a tensor; `None` for a tensor that no llama has.
pub(super) fn translate(name: &str) -> Option<Named> {
    let whole = |name: &str| {
        Some(Named {
            name: name.to_owned(),
            turned: false,
        })
    };
    match name {
        "token_embd.weight" => return whole("model.embed_tokens.weight"),
        "output_norm.weight" => return whole("model.norm.weight"),
        "output.weight" => return whole("lm_head.weight"),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, turned) = match part {
        "attn_norm.weight" => ("input_layernorm", false),
        "attn_q.weight" => ("self_attn.q_proj", true),
        "attn_k.weight" => ("self_attn.k_proj", true),
        "attn_v.weight" => ("self_attn.v_proj", false),
        "attn_output.weight" => ("self_attn.o_proj", false),
        "ffn_norm.weight" => ("post_attention_layernorm", false),
        "ffn_gate.weight" => ("mlp.gate_proj", false),
        "ffn_up.weight" => ("mlp.up_proj", false),
        "ffn_down.weight" => ("mlp.down_proj", false),
        _ => return None,
    };
    Some(Named {
        name: format!("model.layers.{layer}.{part}.weight"),
        turned,
    })
}
