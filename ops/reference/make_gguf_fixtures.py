"""Writes the GGUF fixtures: tiny models in one file each, with the log-probabilities that
transformers computes for their dequantised weights in float32.

    python make_gguf_fixtures.py [--out ../../tests/fixtures] [names...]

The way back from a finished file (names, order of rows, dequantisation by the gguf package) is taken
before anything is recorded, so that what is recorded belongs to the file and not to what went into it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

import gguf_tokenizers
import make_fixtures as plain
from gguf_variants import GGUF

ARCH = {"olmoe": gguf.MODEL_ARCH.OLMOE, "qwen3moe": gguf.MODEL_ARCH.QWEN3MOE, "llama": gguf.MODEL_ARCH.LLAMA}
ROWS_PER_TENSOR = 1


# ------------------------------------------------------------------ the order of rows
def heads_of(name, v):
    """The heads of a q or k tensor of arch llama, whose rows the converter reorders; else None."""
    if v["gguf_arch"] != "llama":
        return None
    if ".q_proj." in name:
        return v["config"]["num_attention_heads"]
    return v["config"]["num_key_value_heads"] if ".k_proj." in name else None


def interleave(t, heads):
    """Rows (half, i) of every head become (i, half)."""
    return t.reshape(heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def undo_interleave(t, heads):
    return t.reshape(heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


# ------------------------------------------------------------------ names
def gguf_tensors(v, state):
    """(gguf name, tensor) of transformers' own state."""
    c = v["config"]
    names = gguf.get_tensor_name_map(ARCH[v["gguf_arch"]], c["num_hidden_layers"])
    stacks = {}
    for name, t in plain.published_names(state, v["arch"]).items():
        if ".experts." in name:
            before, expert = name.split(".experts.")
            expert, leaf = expert.split(".", 1)
            if v["each_expert"]:
                mapped = names.get_name(f"{before}.experts.{leaf}", try_suffixes=(".weight",))
                yield mapped.replace("_exps.weight", f".{expert}.weight"), t
            else:
                stacks.setdefault(f"{before}.experts.{leaf}", []).append(t)
            continue
        heads = heads_of(name, v)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), interleave(t, heads) if heads else t
    for name, parts in stacks.items():
        yield names.get_name(name, try_suffixes=(".weight",)), torch.stack(parts)


def state_of(v, tensors):
    """transformers' state from the tensors of a file: the way back."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(plain.text_config(plain.config_json(v)))
    shapes = {name: t.shape for name, t in skeleton.state_dict().items()}
    published = plain.published_names({n: torch.empty(s, device="meta") for n, s in shapes.items()}, v["arch"])
    names = gguf.get_tensor_name_map(ARCH[v["gguf_arch"]], v["config"]["num_hidden_layers"])

    def find(name):
        if ".experts." in name:
            before, expert = name.split(".experts.")
            expert, leaf = expert.split(".", 1)
            mapped = names.get_name(f"{before}.experts.{leaf}", try_suffixes=(".weight",))
            each = mapped.replace("_exps.weight", f".{expert}.weight")
            t = tensors[each] if each in tensors else tensors[mapped][int(expert)]
            down = leaf.startswith(("w2", "down_proj"))
            return t * v["scale"] if v["scale"] and down else t
        if name == "lm_head.weight" and v["config"]["tie_word_embeddings"]:
            name = "model.embed_tokens.weight"
        t = tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        heads = heads_of(name, v)
        return undo_interleave(t, heads) if heads else t

    found = {name: find(name) for name in published}
    state = {}
    for name in shapes:
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            path = name.rsplit(".", 1)[0].replace(".mlp.", ".block_sparse_moe.") \
                if v["arch"] == "mixtral" else name.rsplit(".", 1)[0]
            gate, up, down = ("w1", "w3", "w2") if v["arch"] == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            part = lambda leaf: torch.stack([found[f"{path}.{e}.{leaf}.weight"] for e in range(shapes[name][0])])
            state[name] = torch.cat([part(gate), part(up)], 1) if name.endswith("gate_up_proj") else part(down)
        else:
            published_name = name.replace(".mlp.", ".block_sparse_moe.") if v["arch"] == "mixtral" else name
            state[name] = found[published_name]
    return state


# ------------------------------------------------------------------ files
def write_gguf(v, state, path):
    c, arch = v["config"], v["gguf_arch"]
    w = gguf.GGUFWriter(path, arch, use_temp_file=False)
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(v["rope"]["theta"])
    if "head_dim" in c:
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
    if arch == "llama":
        w.add_rope_dimension_count(c["hidden_size"] // c["num_attention_heads"])
        w.add_vocab_size(c["vocab_size"])
    experts = c.get("num_experts", c.get("num_local_experts"))
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c["num_experts_per_tok"])
    if "moe_intermediate_size" in c:
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if v["rope"].get("rope_type") in ("linear", "yarn"):
        w.add_string(f"{arch}.rope.scaling.type", v["rope"]["rope_type"])
        w.add_float32(f"{arch}.rope.scaling.factor", v["rope"]["factor"])
        if "original_max_position_embeddings" in v["rope"]:
            w.add_uint32(f"{arch}.rope.scaling.original_context_length", v["rope"]["original_max_position_embeddings"])
    for key, value in v["keys"].items():
        add = w.add_bool if isinstance(value, bool) else w.add_uint32 if isinstance(value, int) else w.add_float32
        add(f"{arch}.{key}", value)
    if v["tokenizer"]:
        gguf_tokenizers.add_small_tokenizer(w, c["vocab_size"])
    tensors = sorted(gguf_tensors(v, state))
    if v["rope_factors"]:
        tensors.append(("rope_freqs.weight", rope_factors(v)))
    for name, t in tensors:
        kind = next(kind for end, kind in v["types"] if name.endswith(end))
        put(w, name, t.numpy(), Type[kind])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file(progress=False)
    w.close()
    if v["version"] != 3:  # the layout of version 2 is the same
        bytes_ = bytearray(Path(path).read_bytes())
        bytes_[4] = v["version"]
        Path(path).write_bytes(bytes_)


def put(w, name, values, kind):
    if kind == Type.F32:
        w.add_tensor(name, values.astype(np.float32))
    elif kind == Type.F16:
        w.add_tensor(name, values.astype(np.float16))
    else:
        w.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)


def rope_factors(v):
    """What llama3 scaling divides each frequency by."""
    r, width = v["rope"], v["config"]["hidden_size"] // v["config"]["num_attention_heads"]
    frequencies = 1.0 / r["theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    wavelengths = 2 * torch.pi / frequencies
    original, low, high = r["original_max_position_embeddings"], r["low_freq_factor"], r["high_freq_factor"]
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / r["factor"] + smooth)).float()


def read_gguf(path):
    """name -> values, by the gguf package."""
    tensors = {}
    for t in gguf.GGUFReader(path).tensors:
        shape = [int(side) for side in reversed(t.shape)]
        values = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        tensors[t.name] = torch.from_numpy(values.reshape(shape).copy())
    return tensors


def sample_rows(path, tensors):
    """A row of every quantised tensor, as the bits of its values."""
    rows = []
    for t in gguf.GGUFReader(path).tensors:
        if t.tensor_type in (Type.Q4_0, Type.Q8_0, Type.F16, Type.BF16):
            values = tensors[t.name]
            flat = values.reshape(-1, values.shape[-1])
            row = len(flat) * 2 // 3
            bits = flat[row].numpy().view(np.uint32)
            rows.append({"tensor": t.name, "row": row, "bits": [int(bit) for bit in bits]})
    return rows


# ------------------------------------------------------------------ one variant
def make(name, out):
    v = GGUF[name]
    start = sum(map(ord, name)) * 100
    for seed in range(start, start + 200):
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp) / name
            folder.mkdir()
            gen = torch.Generator().manual_seed(seed)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(plain.text_config(plain.config_json(v)))
            path = folder / "model.gguf"
            write_gguf(v, plain.random_state(skeleton, v, gen), path)
            tensors = read_gguf(path)
            model = plain.build_model(plain.config_json(v), state_of(v, tensors))
            cases, why = plain.expected_cases(model, v)
            if cases is None:
                print(f"  {name}: seed {seed}: {why}")
                continue
            note = (f"made by ops/reference/make_gguf_fixtures.py, seed {seed}, with transformers "
                    f"{transformers.__version__}, gguf {gguf_version()} and torch {torch.__version__.split('+')[0]}: "
                    "float32 on the dequantised weights, as make_fixtures.py does it; rows are those of the gguf package")
            expected = {"note": note, "cases": cases, "rows": sample_rows(path, tensors)}
            (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(folder, out / name)
        break
    else:
        sys.exit(f"{name}: no seed passed")
    size = sum(f.stat().st_size for f in (out / name).iterdir())
    print(f"{name}: seed {seed}, {size / 1000:.0f} kB, routing gap {plain.RoutingGaps.smallest:.1e}")


def gguf_version():
    from importlib.metadata import version
    return version("gguf")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="variants (default: all, and the tokenizers)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "../../tests/fixtures")
    args = parser.parse_args()
    for name in args.names or GGUF:
        make(name, args.out)
    if not args.names:
        gguf_tokenizers.make_all(args.out / "../tokenizers")


if __name__ == "__main__":
    main()
