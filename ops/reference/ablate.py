"""Does each feature of a fixture matter? Neutralise one at a time and compare log-probabilities."""

import copy
import json
import math
import re

import torch

import make_fixtures as mf
from variants import VARIANTS

THRESHOLD = 1e-2

# kinds of tensors: label -> (pattern of names, what a port that drops it would use)
TENSORS = {
    "input norm": (r"\.input_layernorm\.weight$", 1.0),
    "post-attention norm": (r"\.post_attention_layernorm\.weight$", 1.0),
    "final norm": (r"^model\.norm\.weight$", 1.0),
    "q norm": (r"\.q_norm\.weight$", 1.0),
    "k norm": (r"\.k_norm\.weight$", 1.0),
    "q_a norm": (r"\.q_a_layernorm\.weight$", 1.0),
    "kv_a norm": (r"\.kv_a_layernorm\.weight$", 1.0),
    "q bias": (r"\.q_proj\.bias$", 0.0),
    "k bias": (r"\.k_proj\.bias$", 0.0),
    "v bias": (r"\.v_proj\.bias$", 0.0),
    "o bias": (r"\.o_proj\.bias$", 0.0),
    "mlp gate bias": (r"\.mlp\.gate_proj\.bias$", 0.0),
    "mlp up bias": (r"\.mlp\.up_proj\.bias$", 0.0),
    "mlp down bias": (r"\.mlp\.down_proj\.bias$", 0.0),
    "router bias": (r"\.router\.bias$", 0.0),
    "expert gate_up bias": (r"\.experts\.gate_up_proj_bias$", 0.0),
    "expert down bias": (r"\.experts\.down_proj_bias$", 0.0),
    "sinks": (r"\.sinks$", -1e9),
    "score correction bias": (r"e_score_correction_bias$", 0.0),
    "shared expert": (r"\.shared_experts?\.down_proj\.weight$", 0.0),
    "shared expert gate": (r"\.shared_expert_gate\.weight$", 0.0),
}


def config_changes(c):
    """Config fields a port could ignore: label -> changes, for those that are set in `c`."""
    changes = {}
    sparse = any(c.get(k) for k in ("num_experts", "num_local_experts", "n_routed_experts"))
    if c.get("use_sliding_window"):
        changes["sliding window"] = {"use_sliding_window": False}
        changes["max_window_layers"] = {"max_window_layers": 0}
        changes["window one wider"] = {"sliding_window": c["sliding_window"] + 1}
    elif c.get("sliding_window") and c["model_type"] in ("mixtral", "gpt_oss"):
        changes["sliding window"] = {"sliding_window": 4096}
        changes["window one wider"] = {"sliding_window": c["sliding_window"] + 1}
    if "layer_types" in c:
        changes["layer_types"] = {"layer_types": c["layer_types"][::-1]
                                  if c["layer_types"] != c["layer_types"][::-1] else None}
    if c["model_type"] == "llama4_text":
        changes["chunked attention"] = {"attention_chunk_size": 4096}
        changes["chunk one wider"] = {"attention_chunk_size": c["attention_chunk_size"] + 1}
        changes["NoPE layers"] = {"no_rope_layers": [1] * c["num_hidden_layers"]}
        changes["qk norm"] = {"use_qk_norm": not c["use_qk_norm"]}
        if c["attn_temperature_tuning"]:
            changes["temperature tuning"] = {"attn_temperature_tuning": False}
            changes["attn_scale"] = {"attn_scale": 0.1}
    if c.get("rope_parameters"):
        r = c["rope_parameters"]
        variants = {"rope theta": {"rope_theta": r["rope_theta"] * 3}}
        if r["rope_type"] != "default":
            variants["rope scaling"] = None
        if r["rope_type"] == "yarn":
            plain = 0.1 * math.log(r["factor"]) + 1.0
            variants["yarn attention factor"] = {"attention_factor": plain if "mscale" in r else 1.0}
            variants["yarn truncate"] = {"truncate": not r.get("truncate", True)}
        if r.get("beta_fast", 32) != 32:
            variants["yarn beta_fast"] = {"beta_fast": 32}
        if r.get("mscale_all_dim"):
            variants["softmax scale of mscale_all_dim"] = {
                "mscale_all_dim": 0.0, "attention_factor": yarn_attention_factor(r)}
        for label, change in variants.items():
            plain = {"rope_type": "default", "rope_theta": r["rope_theta"]}
            changes[label] = {"rope_parameters": {**r, **change} if change else plain}
    if c.get("clip_qkv"):
        changes["clip_qkv"] = {"clip_qkv": None}
    if "swiglu_limit" in c:
        changes["swiglu clamp"] = {"swiglu_limit": 1e9}
        changes["swiglu alpha"] = {"swiglu_alpha": 1.0}
    if "norm_topk_prob" in c and c["model_type"] != "deepseek_v2":
        changes["norm_topk_prob"] = {"norm_topk_prob": not c["norm_topk_prob"]}
    if "routed_scaling_factor" in c:
        changes["routed scaling"] = {"routed_scaling_factor": 1.0}
    if (c.get("n_group") or 1) > 1:
        changes["group limit"] = {"topk_group": c["n_group"]}
    if c["model_type"] == "deepseek_v3":
        changes["rope interleave"] = {"rope_interleave": not c.get("rope_interleave", True)}
    if c["rms_norm_eps"] > 1e-3:
        changes["norm eps"] = {"rms_norm_eps": 1e-6}
    if sparse:
        changes["experts per token"] = {"num_experts_per_tok": c["num_experts_per_tok"] + 1}
    return changes


def yarn_attention_factor(r):
    scale = lambda m: 0.1 * m * math.log(r["factor"]) + 1.0
    return scale(r["mscale"]) / scale(r["mscale_all_dim"])


def report(name, folder):
    v = VARIANTS[name]
    model = mf.load_reference(folder)
    expected = json.loads((folder / "expected.json").read_text())["cases"]
    tokens = [c["prompt"] + c["continuation"] for c in expected]
    want = [mf.logprobs(model, ids) for ids in tokens]
    difference = lambda other: max((mf.logprobs(other, ids) - w).abs().max().item()
                                   for ids, w in zip(tokens, want))
    results = {}

    for label, (pattern, neutral) in TENSORS.items():
        state = model.state_dict()
        hit = [n for n in state if re.search(pattern, n)]
        if not hit:
            continue
        other = copy.deepcopy(model)
        other.load_state_dict({n: torch.full_like(state[n], neutral) for n in hit}, strict=False)
        results[label] = difference(other)

    config = mf.config_json({**v, "quant": None}, "new")
    text = config.get("text_config", config)
    for label, change in config_changes(text).items():
        changed = copy.deepcopy(config)
        changed.get("text_config", changed).update(change)
        results[label] = difference(mf.build_model(changed, model.state_dict()))

    print(f"{name}: " + ", ".join(f"{k} {d:.2g}" for k, d in results.items()))
    weak = {k: d for k, d in results.items() if not d > THRESHOLD}
    assert not weak, f"{name}: features that do not matter: {weak}"
