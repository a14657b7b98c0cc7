#!/usr/bin/env python3
"""llama.cpp on the same file with the same number of threads: prefill, and decode with several streams.

usage: llama.py MODEL.gguf [threads] [rounds]          needs: pip install llama-cpp-python

Prints medians over the rounds, smallest and largest beside them, in the words of `--bench forward`. Streams are sequences
of one batch, as llama.cpp's own `llama-batched-bench` runs them; weights are repacked by llama.cpp as it likes.
"""
import ctypes, statistics, sys, time

import llama_cpp as L

path = sys.argv[1]
threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
CONTEXT, PREFILL, STEPS = 128, 512, 8

@L.llama_log_callback
def quiet(level, text, data):
    pass


L.llama_log_set(quiet, None)
L.llama_backend_init()
mp = L.llama_model_default_params()
mp.n_gpu_layers = 0
model = L.llama_model_load_from_file(path.encode(), mp)
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
cp = L.llama_context_default_params()
cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = 16 * 512, 512, 512, 16
cp.n_threads = cp.n_threads_batch = threads
context = L.llama_init_from_model(model, cp)
memory = L.llama_get_memory(context)
batch = L.llama_batch_init(512, 0, 1)


def decode(rows):
    """rows: (token, position, sequence, wants logits)"""
    for i, (token, position, sequence, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token % vocab, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, logits
    batch.n_tokens = len(rows)
    assert L.llama_decode(context, batch) == 0
    L.llama_synchronize(context)


def show(what, rates):
    print(f"{what:32}{statistics.median(rates):10.1f} tokens/s  ({min(rates):.1f} to {max(rates):.1f})", flush=True)


def prefill():
    L.llama_memory_clear(memory, True)
    start = time.perf_counter()
    decode([(i * 7919, i, 0, i == PREFILL - 1) for i in range(PREFILL)])
    return PREFILL / (time.perf_counter() - start)


def stream_rate(streams, step):
    start = time.perf_counter()
    for s in range(STEPS):
        decode([(s * 31 + q * 7919, CONTEXT + step * STEPS + s, q, 1) for q in range(streams)])
    return streams * STEPS / (time.perf_counter() - start)


prefill()
show(f"llama.cpp prefill of {PREFILL}", [prefill() for _ in range(rounds)])
for streams in (1, 2, 4, 8, 16):
    L.llama_memory_clear(memory, True)
    for q in range(streams):
        decode([(i * 7919 + q, i, q, 0) for i in range(CONTEXT)])
    rates = [stream_rate(streams, step) for step in range(rounds + 1)]
    show(f"llama.cpp decode, {streams} streams at {CONTEXT}", rates[1:])
