#!/usr/bin/env python3
"""Writes a GGUF of OLMoE's shape with random weights, for measurements beside llama.cpp and of `bench --compare`.

    python benches/peer/model.py OUT.gguf [olmoe-1b-7b|mini] [LAYERS]

Weights are Q4_0 as `llama-quantize` writes them, but for one thing: a code is drawn from 1 to 15, so that its mean is 8,
which is zero. Codes from 0 to 15 have a mean of -0.5 steps. That is a rank of its own in every matrix, W = noise - 0.5 s 11^T,
whose gain (0.5 s K for K columns) is larger than the noise's (4.6 s (sqrt K + sqrt N)): every row of the residual stream turns
towards the vector of ones, gates see the same row for all tokens, and all streams go to the same experts. With the mean at zero,
and embeddings as large as what layers add to them, a token's experts are its own, as in a trained model, and a step of 16
streams reads many. Bytes and time of everything else are the same.
The tokenizer is a byte-level BPE of the shape's size that has a token for each word of which `gaterail bench` makes prompts.
Needs numpy and gguf.
"""
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

SHAPES = {
    # layers, hidden, heads, head width, experts, of which a token takes, expert width, vocabulary, context
    "olmoe-1b-7b": (16, 2048, 16, 128, 64, 8, 1024, 50304, 4096),
    "mini": (4, 512, 8, 64, 16, 4, 512, 4096, 4096),
}
# Codes 1 to 15 are this many steps off their mean, as a rule.
DEVIATION = (sum((code - 8) ** 2 for code in range(1, 16)) / 15) ** 0.5
BLOCK = 32
WORDS = Path(__file__).parents[2] / "cli/src/bench/words.rs"


def merges():
    """Pairs that lead from a space to each word, letter by letter."""
    pairs = {}
    for word in re.findall('"([a-z]+)"', WORDS.read_text()):
        for at in range(len(word)):
            pairs[(chr(288) + word[:at], word[at])] = None
    return sorted(pairs, key=lambda pair: len(pair[0]))


class File:
    def __init__(self, path, shape, layers=None):
        self.rng = np.random.default_rng(0)
        self.to = gguf.GGUFWriter(path, "olmoe", use_temp_file=False)
        (self.layers, self.hidden, self.heads, self.head, self.experts, self.top_k, self.width,
         self.vocab, self.context) = SHAPES[shape]
        self.layers = layers or self.layers

    def matrix(self, name, *shape, size=None):
        """Values of mean zero, of that size or so that a product keeps the size of its row."""
        blocks = int(np.prod(shape)) // BLOCK
        scale = (size or shape[-1] ** -0.5) / DEVIATION
        data = np.empty((blocks, 18), np.uint8)
        scales = scale * self.rng.uniform(0.9, 1.1, blocks)
        data[:, :2] = scales.astype(np.float16).view(np.uint8).reshape(blocks, 2)
        low, high = (self.rng.integers(1, 16, (blocks, 16), dtype=np.uint8) for _ in range(2))
        data[:, 2:] = low | high << 4
        self.to.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=Kind.Q4_0)

    def vector(self, name, length):
        self.to.add_tensor(name, np.ones(length, np.float32))

    def header(self):
        to = self.to
        to.add_block_count(self.layers)
        to.add_context_length(self.context)
        to.add_embedding_length(self.hidden)
        to.add_feed_forward_length(self.width)
        to.add_head_count(self.heads)
        to.add_head_count_kv(self.heads)
        to.add_layer_norm_rms_eps(1e-5)
        to.add_rope_freq_base(10000.0)
        to.add_key_length(self.head)
        to.add_value_length(self.head)
        to.add_expert_count(self.experts)
        to.add_expert_used_count(self.top_k)
        to.add_file_type(2)
        to.add_vocab_size(self.vocab)

    def tokenizer(self):
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        letters = {byte: chr(byte) for byte in shown}
        letters.update({byte: chr(256 + at) for at, byte in enumerate(b for b in range(256) if b not in shown)})
        pairs = merges()
        tokens = [letters[byte] for byte in range(256)] + ["".join(pair) for pair in pairs]
        tokens += [f"tok{at}" for at in range(self.vocab - len(tokens))]
        tokens[-1] = "<|endoftext|>"
        to, last = self.to, self.vocab - 1
        to.add_tokenizer_model("gpt2")
        to.add_tokenizer_pre("olmo")
        to.add_token_list(tokens)
        to.add_token_types([1] * last + [3])
        to.add_token_merges([" ".join(pair) for pair in pairs])
        to.add_eos_token_id(last)
        to.add_bos_token_id(last)

    def tensors(self):
        hidden, inner = self.hidden, self.heads * self.head
        self.matrix("token_embd.weight", self.vocab, hidden, size=1.0)
        self.vector("output_norm.weight", hidden)
        self.matrix("output.weight", self.vocab, hidden)
        for at in range(self.layers):
            name = f"blk.{at}."
            for norm, length in [("attn", hidden), ("ffn", hidden), ("attn_q", inner), ("attn_k", inner)]:
                self.vector(f"{name}{norm}_norm.weight", length)
            for part in "qkv":
                self.matrix(f"{name}attn_{part}.weight", inner, hidden)
            self.matrix(f"{name}attn_output.weight", hidden, inner)
            gate = self.rng.standard_normal((self.experts, hidden), np.float32) * (2.0 / hidden**0.5)
            self.to.add_tensor(f"{name}ffn_gate_inp.weight", gate.astype(np.float32))
            for part in ("gate", "up"):
                self.matrix(f"{name}ffn_{part}_exps.weight", self.experts, self.width, hidden)
            self.matrix(f"{name}ffn_down_exps.weight", self.experts, hidden, self.width)

    def write(self):
        self.header()
        self.tokenizer()
        self.tensors()
        self.to.write_header_to_file()
        self.to.write_kv_data_to_file()
        self.to.write_tensors_to_file(progress=False)
        self.to.close()


if __name__ == "__main__":
    path, shape, layers = (*sys.argv[1:], *["", "olmoe-1b-7b", "0"][len(sys.argv) - 1:])
    File(path, shape, int(layers)).write()
