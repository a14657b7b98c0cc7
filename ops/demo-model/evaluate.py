"""Accuracy of an exported folder on held-out prompts, through `transformers`.

Greedy. A prompt counts when every token of its answer is the likeliest one after the right beginning, which is
the same as greedy decoding to exactly that answer; --generate N also decodes N prompts per task for real.

    python evaluate.py FOLDER [--draft FOLDER] [--count 100] [--long 25] [--generate 8] [--json FILE]
"""

import argparse
import json
import math

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import SCORED, held_out
from text import Chat, IM_END, END_OF_TEXT

STORIES = 60


def batches(pairs, size):
    """(ids [B, S], where answers are [B, S]) of prompts of like length, padded on the right."""
    pairs = sorted(pairs, key=lambda p: len(p[0]))
    for i in range(0, len(pairs), size):
        group = pairs[i : i + size]
        longest = max(len(p[0]) for p in group)
        ids = torch.full((len(group), longest), END_OF_TEXT)
        answer = torch.zeros(len(group), longest, dtype=torch.bool)
        real = torch.zeros(len(group), longest, dtype=torch.bool)
        for r, (tokens, marks, last) in enumerate(group):
            ids[r, : len(tokens)], real[r, : len(tokens)] = torch.tensor(tokens), True
            answer[r, : len(tokens)] = torch.tensor(marks) == last
        yield ids, answer, real


class Tally:
    """Sums over all prompts: right answers, expert use, agreement with the draft, likelihood."""

    def __init__(self, experts, layers):
        self.use = torch.zeros(layers, max(1, experts))
        self.agreed = self.compared = self.nll = self.nll_tokens = 0


def predict(model, ids, real, tally=None):
    """Logits; counts each layer's chosen experts over the real tokens."""
    moe = tally is not None and getattr(model.config, "num_experts", 0)
    out = model(ids, output_router_logits=True) if moe else model(ids)
    if moe:
        for layer, logits in enumerate(out.router_logits):
            chosen = logits.view(*ids.shape, -1)[real].topk(model.config.num_experts_per_tok, -1).indices
            tally.use[layer] += torch.bincount(chosen.flatten(), minlength=model.config.num_experts)
    return out.logits.float()


def score(model, draft, pairs, size, tally):
    """Share of prompts whose whole answer is right."""
    right = total = 0
    for ids, answer, real in batches(pairs, size):
        logits = predict(model, ids, real, tally)
        top, target, at = logits[:, :-1].argmax(-1), ids[:, 1:], answer[:, 1:]
        right += int(((top == target) | ~at).all(1).sum())
        total += len(ids)
        nll = -logits[:, :-1].log_softmax(-1).gather(-1, target[..., None])[..., 0]
        tally.nll, tally.nll_tokens = tally.nll + float(nll[at].sum()), tally.nll_tokens + int(at.sum())
        if draft:
            drafted = predict(draft, ids, real)[:, :-1].argmax(-1)
            tally.agreed += int(((drafted == top) & at).sum())
            tally.compared += int(at.sum())
    return right / total


def generated(model, hf_tokenizer, prompts):
    """Share of prompts answered exactly by real decoding, through the chat template."""
    right = 0
    for turns in prompts:
        messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})][:-1]
        ids = torch.tensor([hf_tokenizer.encode(hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))])
        out = model.generate(ids, max_new_tokens=120, do_sample=False, eos_token_id=[IM_END, END_OF_TEXT])
        right += hf_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == turns[-1][1]
    return right / len(prompts)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--draft")
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--long", type=int, default=25, help="prompts per task of 1,024 tokens and more")
    p.add_argument("--generate", type=int, default=0)
    p.add_argument("--json")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    chat = Chat(Tokenizer.from_file(f"{a.folder}/tokenizer.json"))
    hf_tokenizer = AutoTokenizer.from_pretrained(a.folder)
    model = AutoModelForCausalLM.from_pretrained(a.folder, dtype=torch.bfloat16).eval()
    draft = AutoModelForCausalLM.from_pretrained(a.draft, dtype=torch.bfloat16).eval() if a.draft else None
    tally = Tally(getattr(model.config, "num_experts", 0), model.config.num_hidden_layers)
    result = {"accuracy": {}, "generated": {}}
    for name in SCORED + ["about"]:
        long = name.startswith("lookup_") and int(name[7:]) > 512
        prompts = held_out(name, a.long if long else a.count, chat)
        pairs = [chat.chat_ids(t) + (len(t) - 1,) for t in prompts]
        result["accuracy"][name] = score(model, draft, pairs, 1 if long else 25, tally)
        if a.generate and not long:
            result["generated"][name] = generated(model, hf_tokenizer, prompts[: a.generate])
        print(f"{name:16} {result['accuracy'][name]:6.1%}", f"{result['generated'].get(name, math.nan):6.1%}", flush=True)
    if tally.compared:
        print(f"draft agrees on {tally.agreed / tally.compared:.1%} of {tally.compared} answer tokens")
        result["draft_agreement"] = tally.agreed / tally.compared
    stories = Tally(tally.use.shape[1], len(tally.use))
    score(model, None, [chat.chat_ids(t) + (0,) for t in held_out("story", STORIES, chat)], 20, stories)
    result["story_perplexity"] = math.exp(stories.nll / stories.nll_tokens)
    print(f"perplexity on held-out stories {result['story_perplexity']:.3f}")
    if hasattr(model.config, "num_experts"):
        share = tally.use / tally.use.sum(1, keepdim=True) * tally.use.shape[1]
        result["expert_share"] = share.tolist()
        for layer, row in enumerate(share):
            print(f"layer {layer}: least expert {row.min():.2f}, most {row.max():.2f} of a fair share")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
