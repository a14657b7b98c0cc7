"""Compares the logits of the training code with those of `transformers` on an exported folder, in f32.

    python check_equal.py CHECKPOINT FOLDER
"""

import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import SCORED, held_out
from model import DRAFT, MODEL, Model
from text import Chat

if __name__ == "__main__":
    checkpoint, folder = sys.argv[1:]
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["model"]
    ours = Model(MODEL if "layers.0.mlp.gate" in weights else DRAFT)
    ours.load_state_dict({n: t.to(torch.bfloat16).float() for n, t in weights.items()})
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat, hf_tokenizer = Chat(Tokenizer.from_file(f"{folder}/tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    worst = 0.0
    for name in [n for n in SCORED if n not in ("lookup_2048", "lookup_4096")]:
        turns = held_out(name, 1, chat)[0]
        ids = chat.chat_ids(turns)[0]
        messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
        assert hf_tokenizer.encode(hf_tokenizer.apply_chat_template(messages, tokenize=False)) == ids, "the template and chat_ids differ"
        x = torch.tensor([ids])
        hidden = ours(x, torch.arange(len(ids))[None], None, torch.arange(len(ids)))
        worst = max(worst, float((ours.logits(hidden) - theirs(x).logits[0]).abs().max()))
    print(f"largest difference of logits {worst:.2e}")
    assert worst < 1e-3
