"""Trains the model, or with --draft its draft; a run that is cut off goes on with --resume.

In: a folder with the tokenizer (make_tokenizer.py). Out, in --out: last.pt (weights, optimiser, step, measured
accuracies), log.jsonl (the curve). Seeds are fixed: the batches depend on --seed, the step and the accuracies.

    python train.py --tokenizer DIR --out DIR --tokens 30e6 --decay-from 18e6 [--resume]
    python train.py --draft --teacher MODEL_DIR/last.pt --tokenizer DIR --out DIR --tokens 15e6 --decay-from 5e6
"""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import SCORED, Rows, held_out, long_rows, packed_rows
from model import DRAFT, MODEL, Model
from optim import Optimizer
from text import Chat

MICRO_TOKENS = 4096
BALANCE = 0.02
WARMUP_STEPS = 60
SAVE_EVERY_S = 240


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--draft", action="store_true")
    p.add_argument("--teacher", help="a last.pt of the model: the draft learns its distribution")
    p.add_argument("--tokens", type=float, default=30e6, help="stop here")
    p.add_argument("--decay-from", type=float, default=15e6, help="tokens at which the linear decay of the rates begins")
    p.add_argument("--long-from", type=float, default=0.25, help="share of --tokens after which rows of 1,024 and 2,048 are mixed in")
    p.add_argument("--longest-from", type=float, default=0.6, help="the same for rows of 4,096")
    p.add_argument("--micro", type=int, default=3, help="parts of 4,096 tokens per step")
    p.add_argument("--muon", type=float, default=0.02)
    p.add_argument("--adam", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--eval-every", type=float, default=2e6)
    return p.parse_args()


class Scores:
    """Running accuracy per task, from the training batches themselves: every prompt there is new."""

    def __init__(self):
        self.of = {}

    def add(self, owners, wrong):
        for name, bad in zip(owners, wrong):
            self.of[name] = 0.985 * self.of.get(name, 0.0) + 0.015 * (not bad)


def micro_batches(a, chat, step, progress, scores):
    """The parts of one step; every second step one of them holds long rows."""
    for part in range(a.micro):
        seed = f"{a.seed} {step} {part}"
        if part == 0 and step % 2 == 0 and progress >= a.long_from:
            lengths = [512, 1024, 1024, 2048] if progress < a.longest_from else [512, 1024, 2048, 2048, 4096, 4096]
            length = lengths[step // 2 % len(lengths)]
            yield long_rows(seed, chat, length, MICRO_TOKENS // length)
        else:
            yield packed_rows(seed, chat, MICRO_TOKENS // 256, progress, scores)


def run_part(model, rows: Rows, device, teacher=None):
    """Loss over the answers of one part: (sum of losses, answer tokens, wrong flag per answer, loss for balance)."""
    ids, position, answer, document = (torch.from_numpy(x).to(device) for x in (rows.ids, rows.position, rows.answer, rows.document))
    one_document = bool((rows.document[:, :1] == rows.document).all()) or rows.ids.shape[1] > 256
    document = None if one_document else document
    at = (answer.view(-1) >= 0).nonzero()[:, 0]
    target, owner = ids.view(-1)[at], answer.view(-1)[at]
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        hidden = model(ids, position, document)
        logits = model.logits(hidden.view(-1, hidden.shape[-1])[at - 1]).float()
        if teacher is None:
            loss = F.cross_entropy(logits, target, reduction="sum")
        else:
            with torch.no_grad():
                h = teacher(ids, position, document)
                wanted = teacher.logits(h.view(-1, h.shape[-1])[at - 1]).float()
            loss = F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
    wrong = torch.zeros(len(rows.owners), device=device)
    wrong.index_add_(0, owner, (logits.argmax(-1) != target).float())
    return loss, len(at), (wrong > 0).tolist(), model.balance()


@torch.no_grad()
def accuracy(model, chat, device, count=32, long_count=8, names=SCORED):
    """Held-out exact match by task. All answer tokens right under the true prefix is the same as greedy exact match."""
    result = {}
    for name in names:
        is_long = name.startswith("lookup_") and int(name[7:]) > 512
        prompts = held_out(name, long_count if is_long else count, chat)
        pairs = sorted((chat.chat_ids(t) + (len(t) - 1,) for t in prompts), key=lambda x: len(x[0]))
        right = 0
        for i in range(0, len(pairs), 1 if is_long else 16):
            group = pairs[i : i + (1 if is_long else 16)]
            longest = max(len(g[0]) for g in group)
            rows = Rows(len(group), longest)
            for r, (ids, marks, last) in enumerate(group):
                rows.place(r, 0, ids, [0 if m == last else -1 for m in marks], [name], 0)
            rows.document[:] = 0
            _, _, wrong, _ = run_part(model, rows, device)
            right += len(wrong) - sum(wrong)
        result[name] = right / len(pairs)
    return result


def rate(a, step, tokens):
    left = 1.0 if tokens < a.decay_from else max(0.0, (a.tokens - tokens) / max(1.0, a.tokens - a.decay_from))
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(left, 0.01)


def load_teacher(path, device):
    teacher = Model(MODEL).to(device)
    teacher.load_state_dict(torch.load(path, map_location=device)["model"])
    return teacher.eval()


def save(path, **state):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.makedirs(a.out, exist_ok=True)
    chat = Chat(Tokenizer.from_file(f"{a.tokenizer}/tokenizer.json"))
    model = Model(DRAFT if a.draft else MODEL).to(device)
    optimizer = Optimizer(model, muon=a.muon, adam=a.adam)
    teacher = load_teacher(a.teacher, device) if a.teacher else None
    step, tokens, spent, scores, last = 0, 0, 0.0, Scores(), f"{a.out}/last.pt"
    if a.resume and os.path.exists(last):
        state = torch.load(last, map_location=device, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens, spent, scores.of = state["step"], state["tokens"], state["seconds"], state["scores"]
    log = open(f"{a.out}/log.jsonl", "a", buffering=1)
    started, saved, spent_before, window = time.time(), time.time(), spent, []
    next_eval = (tokens // a.eval_every + 1) * a.eval_every
    use = torch.zeros(())
    while tokens < a.tokens:
        begun, loss_sum, loss_tokens, fresh = time.time(), 0.0, 0, 0
        for p in model.parameters():
            p.grad = None
        for rows in micro_batches(a, chat, step, tokens / a.tokens, scores.of):
            loss, count, wrong, balance = run_part(model, rows, device, teacher)
            # about 1,200 answer tokens per part: a fixed divisor keeps long rows from weighing more per answer
            (loss / (1200 * a.micro) + BALANCE / a.micro * balance).backward()
            scores.add(rows.owners, wrong)
            loss_sum, loss_tokens, fresh = loss_sum + loss.item(), loss_tokens + count, fresh + rows.ids.size
            use = model.use() if a.draft is False and rows.ids.shape[1] == 256 else use
        now = rate(a, step, tokens)
        optimizer.step(now)
        step, tokens, spent = step + 1, tokens + fresh, spent_before + time.time() - started
        window.append((loss_sum / loss_tokens, fresh, time.time() - begun))
        if step % 20 == 0:
            speed = sum(w[1] for w in window) / sum(w[2] for w in window)
            entry = {"step": step, "tokens": tokens, "seconds": round(spent), "loss": round(sum(w[0] for w in window) / len(window), 4),
                     "rate": round(now, 3), "tokens_per_s": round(speed), "least_expert": round(float(use.min() * model.s.experts), 3)}
            log.write(json.dumps(entry) + "\n")
            window = []
        if time.time() - saved > SAVE_EVERY_S or tokens >= a.tokens:
            save(last, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, tokens=tokens, seconds=spent, scores=scores.of)
            saved = time.time()
        if tokens >= next_eval:
            next_eval += a.eval_every
            held = accuracy(model, chat, device)
            log.write(json.dumps({"step": step, "tokens": tokens, "seconds": round(spent), "held_out": held,
                                  "training": {k: round(v, 3) for k, v in scores.of.items()}}) + "\n")


if __name__ == "__main__":
    main()
