"""Looking up a fact among distractors, at a wanted prompt length.

In: a `Draw`, a wanted length in tokens and a function that measures a text in tokens. Out: turns; the first
user turn carries the notes, the others only ask. Every note has the same few shapes, so each fact is a
distractor of the others; sentences without any fact fill the rest.
"""

from talk import MOODS, PLACES, SIZES
from words import ANIMALS, CITIES, COLOURS, NAMES, THINGS, Draw

LENGTHS = [256, 512, 1024, 2048, 4096]

# note, question, the answer's values
FACTS = {
    "code": ("The code of {} is {}.", ["What is the code of {}?"], lambda d: f"{d.rng.randint(0, 9999):04d}"),
    "city": ("{} lives in {}.", ["Where does {} live?"], lambda d: d.pick(CITIES)),
    "colour": ("{} likes the colour {}.", ["Which colour does {} like?"], lambda d: d.pick(COLOURS)),
    "animal": ("{} feeds the {}.", ["Which animal does {} feed?"], lambda d: d.pick(ANIMALS)),
    "age": ("{} is {} years old.", ["How old is {}?"], lambda d: str(d.rng.randint(10, 99))),
}


def filler(d: Draw) -> str:
    return d.pick([
        lambda: f"The {d.pick(THINGS)} was {d.pick(COLOURS)}.",
        lambda: f"It was quiet near {d.pick(PLACES)}.",
        lambda: f"A {d.pick(SIZES)} {d.pick(ANIMALS)} sat near the {d.pick(THINGS)}.",
        lambda: f"The road to {d.pick(CITIES)} was long.",
        lambda: f"The {d.pick(ANIMALS)} was {d.pick(MOODS)}.",
    ])()


def lookup(d: Draw, tokens: int, measure, questions: int):
    """Notes of about `tokens` tokens, then `questions` questions (the last one is in this draw's split)."""
    pairs = [(n, f) for n in NAMES for f in FACTS]
    d.rng.shuffle(pairs)
    dense = d.rng.choice([0.2, 0.4, 0.7, 1.0])
    notes, facts, used = [], [], 0
    room = max(16, tokens - 24 - 22 * (questions - 1))
    while used < room:
        if pairs and d.rng.random() < dense:
            name, kind = pairs.pop()
            value = FACTS[kind][2](d)
            facts.append((name, kind, value))
            notes.append(FACTS[kind][0].format(name, value))
        else:
            notes.append(filler(d))
        used += measure(notes[-1])
    askable = [f for f in facts if d.wants(f"{f[0]} {f[1]} {f[2]}")]
    if not askable:
        return lookup(d, tokens + 8, measure, questions)
    # codes are the hardest to guess, so ask for them twice as often
    d.rng.shuffle(askable)
    askable.sort(key=lambda f: f[1] != "code" and d.rng.random() < 0.5)
    turns = []
    for i, (name, kind, value) in enumerate(askable[:questions]):
        question = d.pick(FACTS[kind][1]).format(name)
        turns.append((f"Read this.\n{' '.join(notes)}\n{question}" if i == 0 else question, f" {value}"))
    return turns
