"""Block FP8 (DeepSeek-V3) and MXFP4 (gpt-oss): quantise for storage, dequantise for the reference."""

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


# ------------------------------------------------------------------ whole checkpoints
def quantise(tensors, kind, generator):
    out = {}
    for name, t in tensors.items():
        if kind == "fp8" and fp8_is_quantised(name):
            out[name], out[name + "_scale_inv"] = fp8_quantise(t.float(), generator)
        elif kind == "mxfp4" and t.dim() == 3:
            out[name + "_blocks"], out[name + "_scales"] = mxfp4_quantise(t.float(), generator)
        else:
            out[name] = t
    return out


def dequantise(tensors):
    out = {}
    for name, t in tensors.items():
        if name.endswith("_scale_inv") or name.endswith("_scales"):
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
}
