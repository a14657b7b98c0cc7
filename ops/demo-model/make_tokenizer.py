"""Trains the tokenizer on the generator's own text and writes its files into a folder.

    python make_tokenizer.py FOLDER
"""

import sys

import talk
import tasks
from lookup import lookup
from text import SYSTEMS, train_tokenizer, write_tokenizer
from words import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, PLAIN, THINGS, Draw


def corpus():
    d = Draw("tokenizer", held=False, real=0.0)
    for _ in range(1500):
        for task in tasks.SINGLE + talk.CHAT:
            if task in (tasks.spell, tasks.join, tasks.count_letters, tasks.reverse_word) and d.rng.random() < 0.7:
                continue
            for question, answer in task(d):
                yield question
                yield answer
    for _ in range(300):
        for question, answer in lookup(d, 256, lambda s: len(s) // 4, 3):
            yield question
            yield answer
    for _ in range(40):
        yield from SYSTEMS
        yield from ("user", "assistant", "system")
        yield from (" " + c for c in "abcdefghijklmnopqrstuvwxyz")
        yield from (" " + w for w in NAMES + CITIES + PLAIN)


if __name__ == "__main__":
    tok = train_tokenizer(corpus())
    write_tokenizer(tok, sys.argv[1])
    whole = sum(len(tok.encode(" " + w).ids) == 1 for w in NAMES + CITIES + PLAIN)
    print(f"{tok.get_vocab_size()} tokens; {whole} of {len(NAMES + CITIES + PLAIN)} listed words are one token")
