"""Looking up a fact among distractors, at a wanted prompt length.

In: a `Draw`, a wanted length in tokens and a function that measures a text in tokens. Out: turns; the first
user turn carries the notes, the others only ask. Every note has the same few shapes, so each fact is a
distractor of the others; sentences without any fact fill the rest.
"""

from talk import MOODS, PLACES, SIZES
from words import ANIMALS, CITIES, COLOURS, NAMES, THINGS, Draw

PER_QUESTION = 22  # tokens of a question with its answer
LENGTHS = [256, 512, 1024, 2048, 4096]

# kind of a fact: its value. All notes have one grammar, so that the way from a name to its value is the same in all.
FACTS = {
    "code": lambda d: f"{d.rng.randint(0, 999):03d}",
    "home": lambda d: d.pick(CITIES),
    "colour": lambda d: d.pick(COLOURS),
    "animal": lambda d: d.pick(ANIMALS),
    "number": lambda d: str(d.rng.randint(10, 99)),
}
NOTE, QUESTION = "The {} of {} is {}.", "What is the {} of {}?"


def filler(d: Draw) -> str:
    return d.pick([
        lambda: f"The {d.pick(THINGS)} was {d.pick(COLOURS)}.",
        lambda: f"It was quiet near {d.pick(PLACES)}.",
        lambda: f"A {d.pick(SIZES)} {d.pick(ANIMALS)} sat near the {d.pick(THINGS)}.",
        lambda: f"The road to {d.pick(CITIES)} was long.",
        lambda: f"The {d.pick(ANIMALS)} was {d.pick(MOODS)}.",
    ])()


def some_pairs(d: Draw, one_kind: bool):
    """The (name, kind) pairs of one prompt: each name once, or, in half of them, with more than one kind of fact.

    `one_kind`: names once and one kind for all, so that nothing but the name leads to the value.
    """
    names = d.distinct(NAMES, len(NAMES))
    if one_kind:
        kind = d.pick(list(FACTS))
        return [(n, kind) for n in names]
    first = [(n, d.pick(list(FACTS))) for n in names]
    if d.rng.random() < 0.5:
        return first
    pairs = [(n, f) for n in NAMES for f in FACTS]
    d.rng.shuffle(pairs)
    return pairs


def lookup(d: Draw, tokens: int, measure, questions: int, one_kind=False):
    """Notes of about `tokens` tokens, then `questions` questions (the last one is in this draw's split)."""
    pairs = some_pairs(d, one_kind)
    dense = 1.0 if one_kind else d.rng.choice([0.2, 0.4, 0.7, 1.0])
    notes, facts, used = [], [], 0
    room = max(16, tokens - 24 - PER_QUESTION * (questions - 1))
    while used < room:
        if pairs and d.rng.random() < dense:
            name, kind = pairs.pop()
            value = FACTS[kind](d)
            facts.append((name, kind, value))
            notes.append(NOTE.format(kind, name, value))
        else:
            notes.append(filler(d))
        used += measure(notes[-1])
    askable = [f for f in facts if d.wants(f"{f[0]} {f[1]} {f[2]}")]
    if not askable:
        return lookup(d, tokens + 8, measure, questions, one_kind)
    d.rng.shuffle(askable)
    turns = []
    for i, (name, kind, value) in enumerate(askable[:questions]):
        question = QUESTION.format(kind, name)
        turns.append((f"Read this. {' '.join(notes)}\n{question}" if i == 0 else question, f" {value}"))
    return turns
