"""Writes the checkpoint fixtures: tiny models in the layout of published checkpoints,
with the log-probabilities that transformers computes for them in float32.

    python make_fixtures.py [--out ../../tests/fixtures] [--ablate] [names...]
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

import quant
from variants import HF, VARIANTS

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEW_TOKENS = 12
PROMPT_LENGTHS = (5, 40)
# Beyond a page of 64 and a chunk of 256 positions, for variants that ask for it.
LONG_PROMPT = 300
MIN_ROUTING_GAP = 1e-3
# So many more choices cannot all keep that distance; this is still fifty times float32's noise.
MIN_ROUTING_GAP_LONG = 5e-5
MIN_LOGPROB_GAP = 2e-3


# ------------------------------------------------------------------ config.json
def rope_fields(rope, spelling):
    if rope is None:
        return {}
    scaling = {k: v for k, v in rope.items() if k != "theta"}
    if spelling == "new":
        return {"rope_parameters": {"rope_type": "default", **scaling, "rope_theta": rope["theta"]}}
    fields = {"rope_theta": rope["theta"]}
    if scaling:
        if spelling == "old-type":
            scaling = {"type": scaling.pop("rope_type"), **scaling}
        fields["rope_scaling"] = scaling
    return fields


def config_json(v, spelling=None):
    """The config.json of a variant, in its own or the given spelling."""
    spelling = spelling or v["spelling"]
    fields = dict(v["config"])
    if spelling == "new":
        fields.pop("rope_scaling", None)
    fields.update(rope_fields(v["rope"], spelling))
    dtype_key = "dtype" if spelling == "new" else "torch_dtype"
    if v["arch"] == "llama4":
        top = {k: fields.pop(k) for k in ("bos_token_id", "eos_token_id")}
        config = {
            "architectures": [HF[v["arch"]]], "boi_token_index": 120, "eoi_token_index": 121,
            "image_token_index": 122, "model_type": "llama4", "tie_word_embeddings": False,
            "text_config": {**top, **fields, "model_type": "llama4_text", dtype_key: v["dtype"]},
            "vision_config": dict(
                model_type="llama4_vision_model", hidden_size=16, intermediate_size=32,
                num_hidden_layers=1, num_attention_heads=2, num_channels=3, image_size=28,
                patch_size=14, pixel_shuffle_ratio=0.5, projector_input_dim=16,
                projector_output_dim=16, vision_output_dim=16, norm_eps=1e-5, rope_theta=10000),
            dtype_key: v["dtype"],
        }
    else:
        config = {"architectures": [HF[v["arch"]]], "model_type": v["arch"], **fields,
                  dtype_key: v["dtype"]}
    if v["quant"]:
        config["quantization_config"] = quant.CONFIG[v["quant"]]
    config["transformers_version"] = transformers.__version__ if spelling == "new" else "4.40.0"
    return config


def load_config(config):
    """A transformers config object from the fields of a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(folder)


def text_config(config):
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    loaded = load_config(config)
    return loaded.text_config if config["model_type"] == "llama4" else loaded


def build_model(config, state=None):
    """A float32 eager model for a config.json, its weights taken from `state` if given."""
    model = AutoModelForCausalLM.from_config(
        text_config(config), dtype=torch.float32, attn_implementation="eager").eval()
    set_eager_experts(model)
    if state is not None:
        model.load_state_dict(state)
    return model


def set_eager_experts(model):
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


# ------------------------------------------------------------------ weights
def random_tensor(name, shape, v, gen):
    """A random value for one tensor, at a scale that keeps hidden states near one."""
    gains, tied = v["gains"], v["config"]["tie_word_embeddings"]
    randn = lambda std: std * torch.randn(shape, generator=gen)
    leaf = name.rsplit(".", 2)[-2]
    if name.endswith("norm.weight") or leaf.endswith("norm"):
        return 1 + 0.3 * torch.randn(shape, generator=gen).clamp(-2, 2)
    if name.endswith("e_score_correction_bias"):
        return randn(gains.get("correction", 0.2))
    if name.endswith("sinks"):
        return 0.5 + randn(1.0)
    if name.endswith("gate_up_proj_bias"):
        return randn(gains.get("gate_up_bias", 0.5))
    if name.endswith("down_proj_bias"):
        return randn(gains.get("down_bias", 0.5))
    if name.endswith("bias"):
        return randn(gains.get("bias", 0.5))
    hidden = v["config"]["hidden_size"]
    if name.endswith("embed_tokens.weight"):
        return randn(2 / math.sqrt(hidden) if tied else 1.0)
    if name.endswith("lm_head.weight"):
        return randn(2 / math.sqrt(hidden))
    transposed = v["arch"] in ("llama4", "llama4_text", "gpt_oss")
    fan_in = shape[1] if len(shape) == 3 and transposed else shape[-1]
    gain = 1.0
    if ".gate.weight" in name or ".router.weight" in name or "shared_expert_gate" in name:
        gain = gains.get("router", 1.5)
    elif any(s in name for s in ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "kv_a_proj")):
        gain = gains.get("qk", 1.4)
    elif ".experts." in name:
        gain = gains.get("expert", 1.3)
    elif tied:  # louder blocks, else a tied model mostly repeats its input
        gain = 1.8
    return randn(gain / math.sqrt(fan_in))


def random_state(model, v, gen):
    state = {}
    for name, t in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and v["config"]["tie_word_embeddings"]:
            continue
        state[name] = random_tensor(name, tuple(t.shape), v, gen)
    return state


def published_names(state, arch):
    """From the tensors transformers holds in memory to those of published checkpoints."""
    split = arch in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
    names = ("w1", "w3", "w2") if arch == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for name, t in state.items():
        if arch == "mixtral":
            name = name.replace(".mlp.", ".block_sparse_moe.")
        if arch == "llama4":
            name = "language_model." + name
        if split and name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for e, fused in enumerate(t):
                gate, up = fused.chunk(2)
                out[f"{prefix}{e}.{names[0]}.weight"] = gate
                out[f"{prefix}{e}.{names[1]}.weight"] = up
        elif split and name.endswith("experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            for e, down in enumerate(t):
                out[f"{prefix}{e}.{names[2]}.weight"] = down
        else:
            out[name] = t
    return out


def bystanders(v, gen):
    """Tensors that published checkpoints carry and that the text model does not read."""
    randn = lambda *shape: torch.randn(shape, generator=gen)
    if v["arch"] == "llama4":
        return {
            "multi_modal_projector.linear_1.weight": randn(48, 16),
            "vision_model.class_embedding": randn(16),
            "vision_model.layernorm_pre.weight": randn(16),
            "vision_model.model.layers.0.self_attn.q_proj.weight": randn(16, 16),
            "vision_model.model.layers.0.self_attn.q_proj.bias": randn(16),
            "vision_model.patch_embedding.linear.weight": randn(16, 588),
        }
    if v["quant"] == "fp8":  # the multi-token-prediction layer behind the last one
        c = v["config"]
        h, p = c["hidden_size"], f"model.layers.{c['num_hidden_layers']}."
        return {
            p + "embed_tokens.weight": randn(c["vocab_size"], h),
            p + "enorm.weight": randn(h),
            p + "hnorm.weight": randn(h),
            p + "eh_proj.weight": randn(h, 2 * h),
            p + "input_layernorm.weight": randn(h),
            p + "self_attn.q_a_proj.weight": randn(c["q_lora_rank"], h),
            p + "mlp.gate.weight": randn(c["n_routed_experts"], h),
            p + "mlp.gate.e_score_correction_bias": randn(c["n_routed_experts"]),
            p + "shared_head.norm.weight": randn(h),
        }
    return {}


def stored(tensors, dtype):
    """Everything in the storage dtype but what is quantised, a scale, or always float32."""
    def cast(name, t):
        exact = (name.endswith(("e_score_correction_bias", "_scale_inv", ".scales"))
                 or t.element_size() == 1 or not t.is_floating_point())
        return (t if exact else t.to(dtype)).contiguous().clone()
    return {name: cast(name, t) for name, t in tensors.items()}


# ------------------------------------------------------------------ folders
def write_folder(folder, config, tensors, shards):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    size = lambda t: t.numel() * t.element_size()
    total, done, weight_map, parts = sum(map(size, tensors.values())), 0, {}, {}
    for name, t in tensors.items():
        i = min(shards - 1, done * shards // total)
        done += size(t)
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        weight_map[name] = file
        parts.setdefault(file, {})[name] = t
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def read_tensors(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def load_reference(folder):
    """The model that transformers makes of the finished folder, in float32 and eager."""
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        with tempfile.TemporaryDirectory() as tmp:
            plain = {k: v for k, v in config.items() if k != "quantization_config"}
            tensors = dequantise_f32(read_tensors(folder), config["quantization_config"])
            write_folder(Path(tmp) / "m", plain, tensors, 1)
            return load_reference(Path(tmp) / "m")
    extra = {"config": text_config(config)} if config["model_type"] == "llama4" else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **extra)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    strangers = [k for k in info["unexpected_keys"]
                 if not ("vision" in k or "multi_modal" in k or
                         f"layers.{model.config.num_hidden_layers}." in k)]
    assert not strangers, strangers
    set_eager_experts(model)
    return model.eval()


def dequantise_f32(tensors, config):
    return {n: t.float().contiguous() for n, t in quant.dequantise(tensors, config).items()}


# ------------------------------------------------------------------ expected values
class RoutingGaps(TorchFunctionMode):
    """Watches every torch.topk of a forward pass: how near is the first one left out?"""

    smallest = math.inf

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.topk:
            scores = args[0]
            k = kwargs["k"] if "k" in kwargs else args[1]
            if k < scores.shape[-1]:
                top = torch.sort(scores, dim=-1, descending=True).values
                gap = (top[..., k - 1] - top[..., k]) / top[..., k - 1].abs().clamp_min(1e-9)
                RoutingGaps.smallest = min(RoutingGaps.smallest, gap.min().item())
        return func(*args, **kwargs)


@torch.no_grad()
def logprobs(model, ids):
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits, -1)


def prompts(v):
    gen = torch.Generator().manual_seed(len(v["arch"]) * 1000 + v["config"]["hidden_size"])
    return [torch.randint(3, v["config"]["vocab_size"], (n,), generator=gen).tolist()
            for n in PROMPT_LENGTHS + ((LONG_PROMPT,) if v["long"] else ())]


def expected_cases(model, v):
    """The recorded cases, or the reason why this seed is no good."""
    cases = []
    for prompt in prompts(v):
        ids, RoutingGaps.smallest = list(prompt), math.inf
        for _ in range(NEW_TOKENS):
            last = logprobs(model, ids)[-1]
            best = torch.topk(last, 2)
            if best.values[0] - best.values[1] < MIN_LOGPROB_GAP:
                return None, "near tie in the continuation"
            if best.indices[0] <= 2:
                return None, "special token in the continuation"
            ids.append(best.indices[0].item())
        with RoutingGaps():
            table = logprobs(model, ids)
        if not torch.isfinite(table).all():
            return None, "not finite"
        least = MIN_ROUTING_GAP_LONG if len(prompt) == LONG_PROMPT else MIN_ROUTING_GAP
        if RoutingGaps.smallest < least:
            return None, f"near tie in the routing ({RoutingGaps.smallest:.1e})"
        rows = torch.topk(table, 5)
        cases.append({
            "prompt": prompt,
            "continuation": ids[len(prompt):],
            "top": [[[i, float(f"{p:.7g}")] for i, p in zip(ii, pp)] for ii, pp in
                    zip(rows.indices[:-1].tolist(), rows.values[:-1].tolist())],
        })
    if len(set(cases[1]["continuation"])) < 5:
        return None, "monotonous continuation"
    return cases, None


# ------------------------------------------------------------------ one variant
def write_variant(v, folder, seed):
    gen = torch.Generator().manual_seed(seed)
    config = config_json(v)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(text_config(config))
    tensors = published_names(random_state(skeleton, v, gen), v["arch"])
    tensors.update(bystanders(v, gen))
    if v["quant"]:
        tensors = quant.quantise(tensors, v["quant"], gen, DTYPES[v["dtype"]])
    tensors = stored(tensors, DTYPES[v["dtype"]])
    write_folder(folder, config, tensors, v["shards"])


def check_other_spelling(v, model):
    """transformers reads the older and the newer spelling of config.json to the same numbers."""
    ids = prompts(v)[1]
    want = logprobs(model, ids)
    for spelling in ("old", "old-type", "new"):
        other = build_model(config_json(v, spelling), model.state_dict())
        assert torch.equal(want, logprobs(other, ids)), f"spelling {spelling} differs"


def make(name, out):
    v = VARIANTS[name]
    start = sum(map(ord, (v["same_weights_as"] or name))) * 100
    for seed in range(start, start + 200):
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp) / name
            write_variant(v, folder, seed)
            model = load_reference(folder)
            cases, why = expected_cases(model, v)
            if cases is None:
                print(f"  {name}: seed {seed}: {why}")
                continue
            check_other_spelling(v, model)
            note = (f"made by ops/reference/make_fixtures.py, seed {seed}, with transformers "
                    f"{transformers.__version__} and torch {torch.__version__.split('+')[0]}: float32, "
                    "eager attention, one forward pass over prompt and continuation; top[i] is the "
                    "distribution after reading token i")
            (folder / "expected.json").write_text(
                json.dumps({"note": note, "cases": cases}, separators=(",", ":")) + "\n")
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(folder, out / name)
        break
    else:
        sys.exit(f"{name}: no seed passed")
    tops = [row[0][1] for c in cases for row in c["top"]]
    size = sum(f.stat().st_size for f in (out / name).iterdir())
    print(f"{name}: seed {seed}, {size / 1000:.0f} kB, routing gap {RoutingGaps.smallest:.1e}, "
          f"top-1 log-prob {min(tops):.2f}..{max(tops):.2f}, median {sorted(tops)[len(tops) // 2]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="variants (default: all)")
    parser.add_argument("--out", type=Path,
                        default=Path(__file__).resolve().parent / "../../tests/fixtures")
    parser.add_argument("--ablate", action="store_true",
                        help="do not write; check that every randomised feature matters")
    args = parser.parse_args()
    for name in args.names or VARIANTS:
        if args.ablate:
            import ablate
            ablate.report(name, args.out / name)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            make(name, args.out)


if __name__ == "__main__":
    main()
