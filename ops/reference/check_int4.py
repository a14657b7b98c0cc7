"""Is `quant.int4_dequantise` what the formats' own libraries make of the fixtures? Compares every element.

    pip install gptqmodel    # 7.7.0 was compared; its TorchLinear runs without a GPU
    python check_int4.py [PATH/TO/autoawq/awq/utils/packing_utils.py]

AutoAWQ (0.2.9 was compared) no longer loads with this transformers; the one file named is enough.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

import quant
from make_fixtures import read_tensors

FIXTURES = Path(__file__).resolve().parent / "../../tests/fixtures"


def gptqmodel_weight(tensors, module, config):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    parts = {leaf: tensors[module + leaf] for leaf in ("qweight", "qzeros", "scales", "g_idx")}
    layer = TorchLinear(
        bits=4, group_size=config["group_size"], sym=config["sym"], desc_act=config["desc_act"],
        in_features=8 * parts["qweight"].shape[0], out_features=parts["qweight"].shape[1], bias=False,
        pack_dtype=torch.int32)
    for leaf, value in parts.items():
        value = value.float() if leaf == "scales" else value.clone()
        layer.register_buffer(leaf, value)
    if config["checkpoint_format"] == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, bits=4, pack_dtype=torch.int32)
    layer.post_init()
    return layer.dequantize_weight().float().T


def autoawq_weight(awq, tensors, module, config):
    parts = [tensors[module + leaf] for leaf in ("qweight", "qzeros", "scales")]
    return awq.dequantize_gemm(parts[0], parts[1], parts[2].float(), 4, config["group_size"]).float().T


def main():
    awq = None
    if len(sys.argv) > 1:
        spec = importlib.util.spec_from_file_location("packing_utils", sys.argv[1])
        awq = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(awq)
    for folder in sorted(FIXTURES.iterdir()):
        config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
        method = config.get("quant_method")
        if method not in ("gptq", "awq") or (method == "awq" and awq is None):
            continue
        tensors = read_tensors(folder)
        modules = [name.removesuffix("qweight") for name in tensors if name.endswith(".qweight")]
        for module in modules:
            ours = quant.int4_dequantise(tensors, module, config)
            theirs = (gptqmodel_weight(tensors, module, config) if method == "gptq"
                      else autoawq_weight(awq, tensors, module, config))
            assert torch.equal(ours, theirs), f"{folder.name}: {module} differs"
        print(f"{folder.name}: {len(modules)} layers are equal in every element")


if __name__ == "__main__":
    main()
