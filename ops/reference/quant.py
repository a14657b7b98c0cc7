"""Block FP8 (DeepSeek-V3), MXFP4 (gpt-oss), GPTQ and AWQ: quantise for storage, dequantise for the reference."""

import numpy as np
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FP8_BLOCK = 128
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


# ------------------------------------------------------------------ block FP8
def expand_blocks(scale, rows, cols):
    full = scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return full[:rows, :cols]


def fp8_quantise(weight, generator):
    """Weight [out, in] -> (float8_e4m3fn weight, float32 weight_scale_inv per 128x128 block)."""
    rows, cols = weight.shape
    grid = (-(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK))
    # blocks of unlike magnitude, so that a scale read from the wrong block shows
    weight = weight * expand_blocks(0.5 + torch.rand(grid, generator=generator), rows, cols)
    scale = torch.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            block = weight[i * FP8_BLOCK:(i + 1) * FP8_BLOCK, j * FP8_BLOCK:(j + 1) * FP8_BLOCK]
            scale[i, j] = block.abs().max() / 448.0
    return (weight / expand_blocks(scale, rows, cols)).to(torch.float8_e4m3fn), scale


def fp8_dequantise(weight, scale_inv):
    return weight.float() * expand_blocks(scale_inv, *weight.shape)


def fp8_is_quantised(name):
    """DeepSeek-V3 quantises the linear layers of the blocks; router, norms, embeddings stay."""
    return (name.startswith("model.layers.") and
            name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight")) and
            not name.endswith("eh_proj.weight"))


# ------------------------------------------------------------------ MXFP4
def mxfp4_quantise(weight, generator):
    """Weight [E, in, out] -> (blocks uint8 [E, out, in/32, 16], scales uint8 [E, out, in/32])."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    groups = groups * 2.0 ** torch.randint(-1, 2, groups.shape[:-1] + (1,), generator=generator)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled[..., None] - FP4_VALUES).abs().argmin(-1).to(torch.uint8)
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)  # the earlier value in the low nibble
    return blocks.contiguous(), (exponent + 127).to(torch.uint8).contiguous()


def mxfp4_dequantise(blocks, scales):
    """Back to [E, in, out], with the routine of transformers itself."""
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()


# ------------------------------------------------------------------ GPTQ and AWQ
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def int4_is_quantised(name, config):
    """The linear layers of the blocks but gates, and but what the configuration leaves out."""
    left_out = [rule.removeprefix("-:.*\\.") for rule in config.get("dynamic", {})]
    left_out += config.get("modules_to_not_convert") or []
    return (".layers." in name and name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"))
            and not any(part in name for part in left_out))


def pack_words(codes, order=range(8)):
    """Codes [..., 8] -> int32 [...]: nibble k of a word is code order[k]."""
    words = np.zeros(codes.shape[:-1], np.uint32)
    for k, i in enumerate(order):
        words |= codes[..., i].astype(np.uint32) << np.uint32(4 * k)
    return words.view(np.int32)


def int4_quantise(weight, config, dtype, generator):
    """Weight [out, in] -> the tensors of one layer. Every group has a zero point of its own, from 1 to 15."""
    rows, cols = weight.shape
    group = cols if config["group_size"] == -1 else config["group_size"]
    n = -(-cols // group)
    index = torch.arange(cols) // group
    zeros = torch.full((rows, n), 8)
    if not config.get("sym", False):
        zeros = torch.randint(1, 16, (rows, n), generator=generator)
    # scales of unlike magnitude, so that one read from the wrong group shows
    spread = 0.5 + torch.rand((rows, n), generator=generator)
    scales = (spread * weight.std() / 3).to(dtype)
    if dtype == torch.bfloat16:
        scales.view(-1)[0] = 2.0 ** -20 * 1.2890625  # exact in bfloat16, not in float16
    codes = (weight / scales.float()[:, index] + zeros[:, index]).round().clamp(0, 15).to(torch.uint8)
    codes, zeros = codes.numpy(), zeros.numpy()
    out = {"scales": scales.t().contiguous()}
    if config["quant_method"] == "awq":
        out["qweight"] = pack_words(codes.T.reshape(cols, rows // 8, 8), AWQ_ORDER)
        out["qzeros"] = pack_words(zeros.T.reshape(n, rows // 8, 8), AWQ_ORDER)
    else:
        stored = zeros if config["checkpoint_format"] == "gptq_v2" else zeros - 1
        out["qweight"] = pack_words(codes.T.reshape(cols // 8, 8, rows).transpose(0, 2, 1))
        out["qzeros"] = pack_words(stored.T.reshape(n, rows // 8, 8))
        out["g_idx"] = index.to(torch.int32)
    return {k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v
            for k, v in out.items()}


def int4_dequantise(tensors, module, config):
    """Back to [out, in] in float32, element by element from the definition of the format."""
    qweight, qzeros = (tensors[module + leaf].numpy().view(np.uint32) for leaf in ("qweight", "qzeros"))
    scales = tensors[module + "scales"].float().numpy()
    rows = scales.shape[1]
    row = np.arange(rows)
    if config["quant_method"] == "awq":
        cols = qweight.shape[0]
        group = np.arange(cols) // (cols if config["group_size"] == -1 else config["group_size"])
        # row r of a word of eight is in the nibble that AWQ_ORDER lists it at
        shift = np.array([4 * AWQ_ORDER.index(r % 8) for r in row], np.uint32)
        codes = (qweight[:, row // 8] >> shift) & 15
        zeros = (qzeros[:, row // 8] >> shift) & 15
    else:
        cols = 8 * qweight.shape[0]
        group = tensors[module + "g_idx"].numpy()
        col = np.arange(cols)
        codes = (qweight[col // 8] >> (4 * (col % 8)).astype(np.uint32)[:, None]) & 15
        zeros = (qzeros[:, row // 8] >> (4 * (row % 8)).astype(np.uint32)) & 15
        if config["checkpoint_format"] == "gptq":
            zeros = zeros + 1
    values = scales[group] * (codes.astype(np.float32) - zeros[group].astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(values.T.astype(np.float32)))


# ------------------------------------------------------------------ whole checkpoints
def quantise(tensors, kind, generator, dtype):
    out = {}
    for name, t in tensors.items():
        if kind in INT4 and int4_is_quantised(name, CONFIG[kind]):
            parts = int4_quantise(t.float(), CONFIG[kind], dtype, generator)
            out.update({name.removesuffix("weight") + leaf: part for leaf, part in parts.items()})
        elif kind == "fp8" and fp8_is_quantised(name):
            out[name], out[name + "_scale_inv"] = fp8_quantise(t.float(), generator)
        elif kind == "mxfp4" and t.dim() == 3:
            out[name + "_blocks"], out[name + "_scales"] = mxfp4_quantise(t.float(), generator)
        else:
            out[name] = t
    return out


def dequantise(tensors, config):
    out = {}
    for name, t in tensors.items():
        if name.endswith(("_scale_inv", "_scales", ".qzeros", ".scales", ".g_idx")):
            continue
        if name.endswith(".qweight"):
            module = name.removesuffix("qweight")
            out[module + "weight"] = int4_dequantise(tensors, module, config)
            continue
        if name + "_scale_inv" in tensors:
            out[name] = fp8_dequantise(t, tensors[name + "_scale_inv"])
        elif name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            out[base] = mxfp4_dequantise(t, tensors[base + "_scales"])
        else:
            out[name] = t
    return out


CONFIG = {
    "fp8": dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                weight_block_size=[FP8_BLOCK, FP8_BLOCK]),
    "mxfp4": dict(modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                          "model.embed_tokens", "lm_head"],
                  quant_method="mxfp4"),
    # as GPTQModel writes it
    "gptq_g32": dict(bits=4, checkpoint_format="gptq", desc_act=False, group_size=32, lm_head=False,
                     meta={}, pack_dtype="int32", quant_method="gptq", sym=True),
    "gptq_v2_g64": dict(bits=4, checkpoint_format="gptq_v2", desc_act=False, dynamic={"-:.*\\.o_proj": {}},
                        group_size=64, lm_head=False, pack_dtype="int32", quant_method="gptq", sym=False),
    "gptq_v2_g128": dict(bits=4, checkpoint_format="gptq_v2", desc_act=True, group_size=128,
                         lm_head=False, quant_method="gptq", sym=False),
    "gptq_rows": dict(bits=4, checkpoint_format="gptq", desc_act=False, group_size=-1,
                      quant_method="gptq", sym=False),
    # as AutoAWQ writes it
    "awq_g128": dict(bits=4, group_size=128, modules_to_not_convert=["gate"], quant_method="awq",
                     version="gemm", zero_point=True),
    "awq_g64": dict(backend="autoawq", bits=4, do_fuse=False, exllama_config=None, fuse_max_seq_len=None,
                    group_size=64, modules_to_fuse=None, modules_to_not_convert=None, quant_method="awq",
                    version="gemm", zero_point=True),
}
INT4 = {kind for kind, config in CONFIG.items() if config["quant_method"] in ("gptq", "awq")}
