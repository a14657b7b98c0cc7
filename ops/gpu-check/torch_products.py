"""The products of the same expert layers in torch, bf16 and int4, beside `gaterail-gpu-check`: torch_products.py OUT.json

One matrix product per chosen expert and projection, rows gathered beforehand: no activation, no sum. What a plain
implementation reads and multiplies at least. int4 is torch's own (`_weight_int4pack_mm`, groups of 64, bf16 rows), where this
torch has it. The file is written again after every line; a line that fails says why, and the next one runs.
"""

import json
import sys

import torch

SHAPES = [("Qwen3-30B-A3B", 2048, 768, 128, 8), ("OLMoE-1B-7B", 2048, 1024, 64, 8),
          ("gpt-oss-20b", 2880, 2880, 32, 4), ("Mixtral-8x7B", 4096, 14336, 8, 2)]
TOKENS = [1, 8, 64, 2048]


def bf16(k, n):
    weight = torch.randn(k, n, device="cuda", dtype=torch.bfloat16) / 64
    return lambda x: x @ weight


def int4(k, n):
    codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = torch.rand(k // 64, n, 2, device="cuda", dtype=torch.bfloat16) / 64
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, 64, scales)


def layer(make, h, f, experts):
    return [(make(h, 2 * f), make(f, h)) for _ in range(experts)]


def measure(products, h, f, k, tokens):
    experts = len(products)
    new = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / 64
    calls = max(1, experts // k) if tokens == 1 else 4
    plans = []
    for call in range(calls):
        if tokens == 1:
            counts = {(call * k + i) % experts: 1 for i in range(k)}
        else:
            ids = torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).flatten()
            counts = {e: int(c) for e, c in enumerate(torch.bincount(ids, minlength=experts)) if c}
        plans.append([(e, new(c, h), new(c, f)) for e, c in counts.items()])

    def run():
        for plan in plans:
            for expert, x, a in plan:
                products[expert][0](x)
                products[expert][1](a)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10 / calls * 1e-3


rows = []


def keep(row):
    rows.append(row)
    report = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "products": rows}
    with open(sys.argv[1], "w") as file:
        json.dump(report, file, indent=1)


for name, h, f, experts, k in SHAPES:
    for kind, make in [("bf16", bf16), ("int4", int4)]:
        products, row = None, {"model": name, "kind": kind}
        try:
            products = layer(make, h, f, experts)
        except Exception as error:
            print(f"{name:16} {kind} FAILED: {error}")
            keep(row | {"fault": str(error)})
            continue
        for tokens in TOKENS:
            try:
                seconds = measure(products, h, f, k, tokens)
                print(f"{name:16} {kind} {tokens:6} {seconds * 1e6:10.1f} us", flush=True)
                keep(row | {"tokens": tokens, "seconds": seconds})
            except Exception as error:
                print(f"{name:16} {kind} {tokens:6} FAILED: {error}", flush=True)
                keep(row | {"tokens": tokens, "fault": str(error)})
        del products
        torch.cuda.empty_cache()
