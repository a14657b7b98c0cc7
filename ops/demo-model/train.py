"""Trains the model, or with --draft its draft; a run that is cut off goes on with --resume.

In: a folder with the tokenizer (make_tokenizer.py). Out, in --out: last.pt (weights, optimiser, step, measured
accuracies), log.jsonl (the curve). Seeds are fixed: the batches depend on --seed, the step and the accuracies.

    python train.py --tokenizer DIR --out DIR --tokens 30e6 --decay-from 18e6 [--resume]
    python train.py --draft [--teacher MODEL_DIR/last.pt] --tokenizer DIR --out DIR --tokens 12e6 --decay-from 4e6
"""

import argparse
import json
import os
import re
import time

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
import words
from data import LENGTHS, SCORED, TASKS, Rows, held_out, long_rows, packed_rows
from model import DRAFT, MODEL, Model, lay_copying
from optim import Optimizer
from text import Chat

MICRO_TOKENS = 2048
BALANCE = 0.02
WARMUP_STEPS = 60
SAVE_EVERY_S = 150


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--draft", action="store_true")
    p.add_argument("--teacher", help="a last.pt of the model: the draft learns its distribution instead of the answers")
    p.add_argument("--tokens", type=float, default=30e6, help="stop here")
    p.add_argument("--decay-from", type=float, default=15e6, help="tokens at which the linear decay of the rates begins")
    p.add_argument("--decay-start", type=float, default=1.0, help="the rate from which --decay-minutes begins")
    p.add_argument("--decay-minutes", type=float, help="decay by the clock instead: from now to a stop after so many minutes")
    p.add_argument("--long-from", type=float, default=0.25, help="share of --tokens after which rows of 1,024 and 2,048 are mixed in")
    p.add_argument("--long-every", type=int, default=2, help="every so many steps one part holds long rows")
    p.add_argument("--longest-from", type=float, default=0.6, help="the same for rows of 4,096")
    p.add_argument("--micro", type=int, default=4, help="parts of 2,048 tokens per step")
    p.add_argument("--muon", type=float, default=0.02)
    p.add_argument("--adam", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=2, help="processes of one thread each that share the parts of a step")
    p.add_argument("--eval-every", type=float, default=2e6)
    p.add_argument("--shares", type=json.loads, default={}, help='factors on the shares of tasks, such as {"lookup": 3, "others": 0.5}')
    p.add_argument("--one-kind", type=float, default=0.3, help="share of short lookups with one kind of fact: 1 until the skill is there")
    p.add_argument("--only", nargs="*", help="tasks to evaluate on the way")
    a = p.parse_args()
    data.SHARES.update(a.shares)
    data.ONE_KIND[0] = a.one_kind
    return a


NAMES = [*TASKS, "lookup"] + [f"lookup_{n}" for n in LENGTHS]


class Scores:
    """Running accuracy per task, from the training batches themselves: every prompt there is new."""

    def __init__(self):
        self.values = torch.zeros(len(NAMES)).share_memory_()

    def of(self):
        return dict(zip(NAMES, self.values.tolist()))

    def add(self, owners, wrong):
        for name, bad in zip(owners, wrong):
            i = NAMES.index(name)
            self.values[i] = 0.985 * self.values[i] + 0.015 * (not bad)


def long_length(a, step, progress) -> int:
    """Length of the long rows in this step's first part, or 0."""
    if step % a.long_every or progress < a.long_from:
        return 0
    lengths = [512, 512, 1024, 1024, 2048] if progress < a.longest_from else [512, 1024, 2048, 1024, 2048, 4096]
    return lengths[step // a.long_every % len(lengths)]


def parts_of(a, step, progress) -> int:
    """A part of long rows takes as long as several others: more of those, so that the second worker need not wait."""
    return a.micro + {2048: 1, 4096: 4}.get(long_length(a, step, progress), 0)


def part_rows(a, chat, step, part, progress, scores) -> Rows:
    """One part of a step; in every --long-every-th step the first one holds long rows."""
    seed, length = f"{a.seed} {step} {part}", long_length(a, step, progress)
    if part == 0 and length:
        return long_rows(seed, chat, length, max(1, MICRO_TOKENS // length))
    return packed_rows(seed, chat, MICRO_TOKENS // 256, progress, scores)


def bf16_pays():
    """Twice as fast where the processor has the instructions, slower elsewhere."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def run_part(model, rows: Rows, device, teacher=None):
    """Loss over the answers of one part: (sum of losses, answer tokens, wrong flag per answer, loss for balance)."""
    ids, position, answer, document = (torch.from_numpy(x).to(device) for x in (rows.ids, rows.position, rows.answer, rows.document))
    one_document = bool((rows.document[:, :1] == rows.document).all()) or rows.ids.shape[1] > 256
    document = None if one_document else document
    at = (answer.view(-1) >= 0).nonzero()[:, 0]
    target, owner = ids.view(-1)[at], answer.view(-1)[at]
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or bf16_pays()):
        logits = model.logits(model(ids, position, document, at - 1)).float()
        if teacher is None:
            loss = F.cross_entropy(logits, target, reduction="sum")
        else:
            with torch.no_grad():
                wanted = teacher.logits(teacher(ids, position, document, at - 1)).float()
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


def rate(a, step, tokens, minutes):
    """Factor on both learning rates; `minutes` since this process began."""
    if a.decay_minutes:
        left = a.decay_start * (1 - minutes / a.decay_minutes)
    else:
        left = 1.0 if tokens < a.decay_from else (a.tokens - tokens) / max(1.0, a.tokens - a.decay_from)
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(left, 0.01)


def load_teacher(path, device):
    teacher = Model(MODEL).to(device)
    teacher.load_state_dict(torch.load(path, map_location=device)["model"])
    return teacher.eval()


def save(path, **state):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


class Shared:
    """What the workers have in common besides the weights: whose turn it is, and the sums of the step."""

    def __init__(self, workers):
        self.barrier, self.next_part, self.next_unit = mp.Barrier(workers), mp.Value("i", 0), mp.Value("i", 0)
        self.sums = torch.zeros(workers, 3, dtype=torch.float64).share_memory_()  # loss, answer tokens, tokens
        self.stop = mp.Value("b", 0)
        self.use = torch.ones(MODEL.layers, MODEL.experts).share_memory_()


def taken(counter, end):
    """Takes numbers from a shared counter until `end`: a worker on a busy core takes fewer."""
    while True:
        with counter.get_lock():
            i = counter.value
            counter.value += 1
        if i >= end:
            return
        yield i


def work(worker, a, model, optimizer, shared, scores, start):
    """One worker's loop; worker 0 also writes the log, the checkpoints and the held-out accuracy."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(f"{a.tokenizer}/tokenizer.json")
    chat = Chat(tokenizer)
    words.PIECES[:] = sorted({p.lstrip("Ġ") for p in tokenizer.get_vocab() if re.fullmatch("Ġ?[a-z]+", p)})
    teacher = load_teacher(a.teacher, device) if a.teacher else None
    step, tokens, spent_before = start
    begun = time.time()
    book = Book(a, model, optimizer, shared, scores, chat, tokens, spent_before) if worker == 0 else None
    while not shared.stop.value:
        optimizer.attach(worker)
        shared.sums[worker] = 0
        for part in taken(shared.next_part, parts_of(a, step, tokens / a.tokens)):
            rows = part_rows(a, chat, step, part, tokens / a.tokens, scores.of())
            loss, count, wrong, balance = run_part(model, rows, device, teacher)
            # a fixed divisor, about the answer tokens of a part, keeps long rows from weighing more per answer
            (loss / (600 * a.micro) + BALANCE / a.micro * balance).backward()
            scores.add(rows.owners, wrong)
            shared.sums[worker] += torch.tensor([loss.item(), count, rows.ids.size])
            if model.s.experts:
                shared.use.lerp_(model.use() * model.s.experts, 0.02)
        shared.barrier.wait()
        now = rate(a, step, tokens, (time.time() - begun) / 60)
        tokens += int(shared.sums[:, 2].sum())
        loss = float(shared.sums[:, 0].sum() / shared.sums[:, 1].sum())
        shared.next_part.value = 0
        for unit in taken(shared.next_unit, len(optimizer.units)):
            optimizer.update(unit, step, now)
        shared.barrier.wait()
        shared.next_unit.value = 0
        step += 1
        if book:
            book.step_done(step, tokens, loss, now)
        shared.barrier.wait()


class Book:
    """The log, the checkpoints and the held-out accuracy of a run."""

    def __init__(self, a, model, optimizer, shared, scores, chat, tokens, spent_before):
        self.a, self.model, self.optimizer, self.shared, self.scores, self.chat = a, model, optimizer, shared, scores, chat
        self.log = open(f"{a.out}/log.jsonl", "a", buffering=1)
        self.process_started, self.started, self.saved, self.window_at = time.time(), time.time() - spent_before, time.time(), (time.time(), tokens)
        self.next_eval = (tokens // a.eval_every + 1) * a.eval_every
        self.losses = []

    def write(self, **entry):
        self.log.write(json.dumps(entry) + "\n")

    def step_done(self, step, tokens, loss, now):
        a, spent = self.a, time.time() - self.started
        over = tokens >= a.tokens or bool(a.decay_minutes) and time.time() - self.process_started > 60 * a.decay_minutes
        if os.path.exists(f"{a.out}/stop"):  # to resume with other shares
            os.remove(f"{a.out}/stop")
            over = True
        self.shared.stop.value = over
        self.losses.append(loss)
        if step % 30 == 0:
            speed = (tokens - self.window_at[1]) / (time.time() - self.window_at[0])
            self.write(step=step, tokens=tokens, seconds=round(spent), loss=round(sum(self.losses) / len(self.losses), 4),
                       rate=round(now, 3), tokens_per_s=round(speed), least_expert=round(float(self.shared.use.min()), 3), training={k: round(v, 2) for k, v in self.scores.of().items()})
            self.losses, self.window_at = [], (time.time(), tokens)
        if time.time() - self.saved > SAVE_EVERY_S or over:
            save(f"{a.out}/last.pt", model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), step=step, tokens=tokens,
                 seconds=spent, scores=self.scores.values)
            self.saved = time.time()
        if tokens >= self.next_eval:
            self.next_eval += a.eval_every
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.write(step=step, tokens=tokens, seconds=round(spent), held_out=accuracy(self.model, self.chat, device, names=a.only or SCORED))


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    on_gpu = torch.cuda.is_available()
    workers = 1 if on_gpu else a.workers
    os.makedirs(a.out, exist_ok=True)
    model = Model(DRAFT if a.draft else MODEL)
    if a.draft:
        lay_copying(model)
    model.to("cuda" if on_gpu else "cpu")
    if not on_gpu:
        model.share_memory()
    optimizer, shared, scores = Optimizer(model, workers, muon=a.muon, adam=a.adam), Shared(workers), Scores()
    start = (0, 0, 0.0)
    if a.resume and os.path.exists(f"{a.out}/last.pt"):
        state = torch.load(f"{a.out}/last.pt", map_location="cpu", weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if len(state["scores"]) == len(NAMES):
            scores.values.copy_(state["scores"])
        else:  # a task has come or gone since
            scores.values.fill_(0.7)
        start = state["step"], state["tokens"], state["seconds"]
    given = (a, model, optimizer, shared, scores, start)
    if workers == 1:
        work(0, *given)
    else:
        mp.start_processes(work, given, nprocs=workers, start_method="fork")


if __name__ == "__main__":
    main()
