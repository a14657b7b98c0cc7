"""Batches: which tasks, in which mix, packed into rows.

In: seed, step, progress and the measured accuracy of each task. Out: arrays for one training step, and
held-out sets for the evaluation. A step is a pure function of its inputs, so a run that is cut off goes on
with the step's number and the accuracies alone.
"""

import numpy as np

import talk
import tasks
from lookup import LENGTHS, PER_QUESTION, lookup
from text import SYSTEMS, Chat
from words import Draw

TASKS = {f.__name__: f for f in tasks.SINGLE + talk.CHAT}
EASY = {"copy", "reverse_list", "reverse_digits", "spell", "join", "count_items", "count_word", "sort_letters", "count_up", "about", "story",
        "follow_name", "next_item", "count_letters", "reverse_word"}
# share of drawn chats beside 1.0; long answers pay less, direct arithmetic more
BASE = {"add": 2.5, "sub": 2.5, "add_steps": 1.5, "sub_steps": 1.5, "sort_numbers": 1.3, "sort_big": 1.0, "about": 0.25, "story": 0.3,
        "lookup": 5.0, "compare": 1.2, "compare_yes": 2.0, "sort_words": 1.3, "count_word": 1.5, "copy": 1.3}
ROW = 256


ONE_KIND = [0.3]  # share of short lookups with one kind of fact
SHARES = {}  # factors on the weights below, for a run that is resumed with other shares


def mix(progress: float, accuracy: dict):
    """Weight of each task: easy ones first, and later whatever is not yet answered right."""
    names = [*TASKS, "lookup"]
    weights = []
    for name in names:
        w = BASE.get(name, 1.0) * (0.12 + 1.6 * (1 - accuracy.get(name, 0.0)))
        if progress < 0.08 and name not in EASY | {"lookup"}:
            w *= 0.15
        w *= SHARES.get(name, SHARES.get("others", 1.0))
        weights.append(w)
    return names, weights


def short_lookup(d: Draw, chat: Chat):
    """Few notes and many questions: the skill is learned here, the long rows only stretch it."""
    if d.rng.random() < ONE_KIND[0]:
        questions = d.rng.randint(3, 6)
        return lookup(d, d.rng.randint(20, 80) + PER_QUESTION * questions, chat.measure, questions, one_kind=True)
    questions = d.rng.randint(2, 5)
    return lookup(d, d.rng.randint(30, 110) + PER_QUESTION * questions, chat.measure, questions)


def short_chat(d: Draw, chat: Chat, names, weights):
    """One chat for a packed row: (ids, marks, tasks of its answers)."""
    turns, owners = [], []
    for _ in range(d.rng.choice([1, 1, 1, 1, 2, 3])):
        name = d.rng.choices(names, weights)[0]
        if name == "lookup":
            new = short_lookup(d, chat)
        else:
            new = TASKS[name](d)
        turns += new
        owners += [name] * len(new)
        if name == "lookup":
            break
    if len(turns) == 1 and owners[0] != "lookup" and d.rng.random() < 0.05:
        return *chat.raw_ids(turns[0]), owners
    if d.rng.random() < 0.1:
        # some clients strip the answers they send back
        turns = [(q, a.strip() if i + 1 < len(turns) else a) for i, (q, a) in enumerate(turns)]
        ids, marks = chat.chat_ids(turns)
        return ids, [m if m == len(turns) - 1 else -1 for m in marks], owners
    return *chat.chat_ids(turns, d.pick(SYSTEMS) if d.rng.random() < 0.1 else None), owners


class Rows:
    """Rows of one length, being filled: ids, answer numbers, document numbers and positions."""

    def __init__(self, rows: int, length: int):
        self.ids = np.zeros((rows, length), np.int64)
        self.answer = np.full((rows, length), -1, np.int64)
        self.document = np.full((rows, length), -1, np.int64)
        self.position = np.zeros((rows, length), np.int64)
        self.owners = []

    def place(self, row: int, at: int, ids, marks, owners, document: int):
        n = len(ids)
        marks = np.array(marks)
        self.ids[row, at : at + n] = ids
        self.answer[row, at : at + n] = np.where(marks >= 0, marks + len(self.owners), -1)
        self.document[row, at : at + n] = document
        self.position[row, at : at + n] = np.arange(n)
        self.owners += owners


def packed_rows(seed, chat: Chat, rows: int, progress: float, accuracy: dict) -> Rows:
    d, out = Draw(seed, held=False), Rows(rows, ROW)
    names, weights = mix(progress, accuracy)
    waiting, document = [], 0
    for row in range(rows):
        at, misses = 0, 0
        while at < ROW - 20 and misses < 6:
            fits = next((i for i, c in enumerate(waiting) if len(c[0]) <= ROW - at), None)
            item = waiting.pop(fits) if fits is not None else short_chat(d, chat, names, weights)
            if len(item[0]) > ROW - at:
                if len(item[0]) <= ROW:
                    waiting.append(item)
                misses += 1
                continue
            out.place(row, at, *item, document)
            at, document = at + len(item[0]), document + 1
    return out


def long_rows(seed, chat: Chat, length: int, rows: int) -> Rows:
    """One long chat with many questions per row."""
    d, out = Draw(seed, held=False), Rows(rows, length)
    for row in range(rows):
        questions = max(4, length // 60)
        while True:
            turns = lookup(d, int(length * d.rng.choice([0.5, 0.8, 1, 1, 1])) - 24, chat.measure, min(questions, 40))
            ids, marks = chat.chat_ids(turns)
            if len(ids) <= length:
                break
        out.place(row, 0, ids, marks, [f"lookup_{length}"] * len(turns), row)
    return out


def held_out(name: str, count: int, chat: Chat, seed: int = 7):
    """`count` held-out prompts of a task as (turns, task); the last answer is the one to score."""
    prompts = []
    for i in range(count):
        d = Draw(f"held {name} {seed} {i}", held=True)
        if name.startswith("lookup_"):
            prompts.append(lookup(d, int(name[7:]) - 24, chat.measure, 1))
        else:
            prompts.append(TASKS[name](d))
    return prompts


SCORED = [n for n in TASKS if n not in ("story", "about")] + [f"lookup_{n}" for n in LENGTHS]
