#!/usr/bin/env python3
"""Writes a model directory of SmolLM2-135M's shape with random weights: for speed, not for text.

usage: random_llama.py TOKENIZER_JSON DIR
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = width // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    normal = lambda *dims: (torch.randn(*dims) * CONFIG["initializer_range"]).to(torch.bfloat16)
    ones = lambda: torch.ones(width, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": normal(CONFIG["vocab_size"], width), "model.norm.weight": ones()}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "input_layernorm.weight": ones(),
            at + "post_attention_layernorm.weight": ones(),
            at + "self_attn.q_proj.weight": normal(width, width),
            at + "self_attn.k_proj.weight": normal(kv, width),
            at + "self_attn.v_proj.weight": normal(kv, width),
            at + "self_attn.o_proj.weight": normal(width, width),
            at + "mlp.gate_proj.weight": normal(inner, width),
            at + "mlp.up_proj.weight": normal(inner, width),
            at + "mlp.down_proj.weight": normal(width, inner),
        }
    return tensors


def main() -> None:
    tokenizer, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2))
    shutil.copy(tokenizer, out / "tokenizer.json")
    save_file(weights(), out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
