"""Writes a checkpoint as an ordinary Hugging Face folder, bf16.

    python export.py CHECKPOINT TOKENIZER_DIR FOLDER
"""

import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from model import DRAFT, MODEL, Shape
from text import END_OF_TEXT, IM_END, write_json

COPIED = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]


def config(s: Shape) -> dict:
    """config.json of Qwen3-MoE, or of dense Qwen3 where there are no experts."""
    common = {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": END_OF_TEXT, "eos_token_id": IM_END, "head_dim": s.head_dim,
        "hidden_act": "silu", "hidden_size": s.hidden, "initializer_range": 0.02, "intermediate_size": s.width,
        "max_position_embeddings": s.context, "num_attention_heads": s.heads, "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads, "rms_norm_eps": s.eps, "rope_scaling": None, "rope_theta": s.theta, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": s.vocab}
    if not s.experts:
        return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **common}
    return {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **common, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "moe_intermediate_size": s.width, "norm_topk_prob": True, "num_experts": s.experts, "num_experts_per_tok": s.top_k,
            "output_router_logits": False, "router_aux_loss_coef": 0.001}


def tensors(weights: dict, s: Shape) -> dict:
    """Our names and fused tensors to the names of the files, one tensor per projection and expert."""
    out = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm.weight"], "lm_head.weight": weights["head"]}
    for i in range(s.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out[theirs + "input_layernorm.weight"] = weights[ours + "norm1.weight"]
        out[theirs + "post_attention_layernorm.weight"] = weights[ours + "norm2.weight"]
        for p in "qkvo":
            out[f"{theirs}self_attn.{p}_proj.weight"] = weights[f"{ours}attention.{p}"]
        for p in ("q_norm", "k_norm"):
            out[f"{theirs}self_attn.{p}.weight"] = weights[f"{ours}attention.{p}.weight"]
        gate_up, down = weights[ours + "mlp.gate_up"], weights[ours + "mlp.down"]
        if not s.experts:
            parts = {"mlp.": (gate_up[0], gate_up[1], down)}
        else:
            out[theirs + "mlp.gate.weight"] = weights[ours + "mlp.gate"]
            parts = {f"mlp.experts.{e}.": (gate_up[0, e], gate_up[1, e], down[e]) for e in range(s.experts)}
        for prefix, three in parts.items():
            for name, t in zip(("gate_proj", "up_proj", "down_proj"), three):
                out[f"{theirs}{prefix}{name}.weight"] = t
    return {n: t.to(torch.bfloat16).contiguous().clone() for n, t in out.items()}


def export(weights: dict, tokenizer: str, folder: str):
    shape = MODEL if any(n.endswith("mlp.gate") for n in weights) else DRAFT
    for name in COPIED:
        shutil.copy(f"{tokenizer}/{name}", f"{folder}/{name}")
    write_json(f"{folder}/config.json", config(shape))
    save_file(tensors(weights, shape), f"{folder}/model.safetensors", metadata={"format": "pt"})
    os.chmod(f"{folder}/model.safetensors", 0o644)


if __name__ == "__main__":
    checkpoint, tokenizer, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    export(torch.load(checkpoint, map_location="cpu", weights_only=False)["model"], tokenizer, folder)
    print(folder, sum(os.path.getsize(f"{folder}/{f}") for f in os.listdir(folder)), "bytes")
