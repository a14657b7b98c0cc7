"""The products of the same expert layers in torch, bf16, beside `gaterail-gpu-check`: torch_products.py OUT.json

One matrix product per chosen expert and projection, rows gathered beforehand: no activation, no sum. What a plain
implementation reads and multiplies at least.
"""

import json
import sys

import torch

SHAPES = [("Qwen3-30B-A3B", 2048, 768, 128, 8), ("OLMoE-1B-7B", 2048, 1024, 64, 8),
          ("gpt-oss-20b", 2880, 2880, 32, 4), ("Mixtral-8x7B", 4096, 14336, 8, 2)]
TOKENS = [1, 8, 64, 2048]


def measure(h, f, experts, k, tokens):
    new = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / 64
    gate_up, down = [new(h, 2 * f) for _ in range(experts)], [new(f, h) for _ in range(experts)]
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
                x @ gate_up[expert]
                a @ down[expert]

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
for name, h, f, experts, k in SHAPES:
    for tokens in TOKENS:
        seconds = measure(h, f, experts, k, tokens)
        print(f"{name:16} {tokens:6} {seconds * 1e6:10.1f} us")
        rows.append({"model": name, "tokens": tokens, "seconds": seconds})
    torch.cuda.empty_cache()
with open(sys.argv[1], "w") as file:
    json.dump({"torch": torch.__version__, "device": torch.cuda.get_device_name(), "products": rows}, file, indent=1)
