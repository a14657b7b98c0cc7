"""The tasks: each function draws one question with its one right answer.

In: a `Draw` (seeded, knows its split). Out: a list of (question, answer) turns; the last turn is the one that
is scored. Answers begin with a space. Whatever is hard in one step is answered in a form that can be
learned: columns from the right, a running tally, an insertion at a time.
"""

from words import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, PLAIN, THINGS, Draw


def listed(items) -> str:
    """No commas: the entry to copy next follows the last one at once."""
    return " ".join(str(i) for i in items)


def columns_add(a: int, b: int) -> str:
    """347 + 586 -> ' 7+6=13, 4+8+1=13, 3+5+1=9: 933'."""
    steps, carry, n = [], 0, max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(f"{a:0{n}d}"), reversed(f"{b:0{n}d}")):
        s = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={s}")
        carry = s // 10
    return f" {', '.join(steps)}: {a + b}"


def columns_sub(a: int, b: int) -> str:
    """432 - 158 -> ' 2-8 borrow 12-8=4, 3-1-5 borrow 12-5=7, 4-1-1=2: 274'."""
    steps, borrow, n = [], 0, len(str(a))
    for x, y in zip(reversed(str(a)), reversed(f"{b:0{n}d}")):
        top, shown = int(x) - borrow, f"{x}{'-1' if borrow else ''}-{y}"
        borrow = int(top < int(y))
        steps.append(f"{shown} borrow {top + 10}-{y}={top + 10 - int(y)}" if borrow else f"{shown}={top - int(y)}")
    return f" {', '.join(steps)}: {a - b}"


def add(d: Draw):
    while True:
        a, b = d.rng.randint(0, 99), d.rng.randint(0, 99)
        if d.wants(f"{a}+{b}"):
            form = d.pick(["What is {} + {}?", "What is {} + {}?", "{} + {} = ?", "Add {} and {}.", "What is {} plus {}?"])
            return [(form.format(a, b), f" {a + b}")]


def sub(d: Draw):
    while True:
        b, a = sorted((d.rng.randint(0, 99), d.rng.randint(0, 99)))
        if d.wants(f"{a}-{b}"):
            form = d.pick(["What is {} - {}?", "What is {} - {}?", "{} - {} = ?", "What is {} minus {}?"])
            return [(form.format(a, b), f" {a - b}")]


def big_pair(d: Draw, sign: str):
    while True:
        a, b = d.rng.randint(100, 999), d.number(3) if d.rng.random() < 0.3 else d.rng.randint(100, 999)
        if d.rng.random() < 0.5 or sign == "-":
            a, b = max(a, b), min(a, b)
        if d.wants(f"{a}{sign}{b}"):
            return a, b


def add_steps(d: Draw):
    if d.rng.random() < 0.2:
        a, b = d.rng.randint(10, 99), d.rng.randint(10, 99)
        while not d.wants(f"{a}+{b}"):
            a, b = d.rng.randint(10, 99), d.rng.randint(10, 99)
        return [(f"Work out {a} + {b} step by step.", columns_add(a, b))]
    a, b = big_pair(d, "+")
    form = d.pick(["What is {} + {}?", "{} + {} = ?", "What is {} plus {}?", "Work out {} + {} step by step."])
    return [(form.format(a, b), columns_add(a, b))]


def sub_steps(d: Draw):
    a, b = big_pair(d, "-")
    form = d.pick(["What is {} - {}?", "{} - {} = ?", "What is {} minus {}?", "Work out {} - {} step by step."])
    return [(form.format(a, b), columns_sub(a, b))]


def add_list(d: Draw):
    """Add up 12 5 20 -> ' 12+5=17 17+20=37: 37'."""
    while True:
        items = [d.rng.randint(1, 29) for _ in range(d.rng.randint(3, 4))]
        if d.wants(listed(items)):
            break
    steps, total = [], items[0]
    for i in items[1:]:
        steps.append(f"{total}+{i}={total + i}")
        total += i
    return [(d.pick(["Add up {}.", "What is the sum of {}?"]).format(listed(items)), f" {' '.join(steps)}: {total}")]


def count_letters(d: Draw):
    word = d.letters_word()
    letter = d.pick(word) if d.rng.random() < 0.85 else d.pick("abcdefghijklmnopqrstuvwxyz")
    seen, steps = 0, []
    for c in word:
        seen += c == letter
        steps.append(f"{c}{seen}")
    form = d.pick(["How many times does {} appear in {}?", "How often does the letter {} occur in {}?", "How many {} are in {}?"])
    return [(form.format(letter, word), f" {' '.join(steps)}: {seen}")]


def count_word(d: Draw):
    while True:
        kinds = d.distinct(PLAIN, d.rng.randint(2, 4))
        items = [d.pick(kinds) for _ in range(d.rng.randint(3, 10))]
        if d.wants("count " + listed(items)):
            break
    word, seen, steps = d.pick(kinds), 0, []
    for i in items:
        seen += i == word
        steps.append(f"{i}{seen}")
    form = d.pick(["How many times does {} occur in {}?", "Count {} in this list: {}."])
    return [(form.format(word, listed(items)), f" {' '.join(steps)}: {seen}")]


def count_items(d: Draw):
    while True:
        items = [d.pick(PLAIN) for _ in range(d.rng.randint(2, 12))]
        if d.wants("items " + listed(items)):
            form = d.pick(["How many words are in this list: {}?", "Count the words: {}."])
            steps = " ".join(f"{w}{i + 1}" for i, w in enumerate(items))
            return [(form.format(listed(items)), f" {steps}: {len(items)}")]


def sort_numbers(d: Draw):
    while True:
        items = d.distinct(range(100), d.rng.randint(3, 6))
        if d.wants("sort " + listed(items)):
            return [(d.pick(["Sort {}.", "Sort these numbers: {}.", "Put {} in order."]).format(listed(items)), f" {listed(sorted(items))}")]


def sort_big(d: Draw):
    """Three-digit numbers, sorted by insertion: each stage is written out."""
    while True:
        items = d.distinct(range(100, 1000), d.rng.randint(3, 5))
        if d.wants("sort " + listed(items)):
            stages = [listed(sorted(items[: i + 1])) for i in range(len(items))]
            return [(d.pick(["Sort {}.", "Sort these numbers: {}.", "Put {} in order."]).format(listed(items)), f" {'; '.join(stages)}")]


def sort_words(d: Draw):
    while True:
        items = d.distinct(PLAIN, d.rng.randint(3, 6))
        if len({i[0] for i in items}) == len(items) and d.wants("sort " + listed(items)):
            return [(d.pick(["Sort these words: {}.", "Put these words in alphabetical order: {}."]).format(listed(items)), f" {listed(sorted(items))}")]


def sort_letters(d: Draw):
    while True:
        items = d.distinct("abcdefghijklmnopqrstuvwxyz", d.rng.randint(3, 8))
        if d.wants("sort " + listed(items)):
            return [(f"Sort these letters: {' '.join(items)}", f" {' '.join(sorted(items))}")]


def some_list(d: Draw, longest: int, made_up=True):
    n = d.rng.randint(2, longest)
    kind = d.rng.random() * (1 if made_up else 0.8)
    if kind < 0.5:
        return d.distinct(PLAIN + NAMES, n)
    return [d.rng.randint(0, 99) for _ in range(min(n, 6))] if kind < 0.8 else [d.made_up() for _ in range(min(n, 3))]


def reverse_list(d: Draw):
    while True:
        items = some_list(d, 6, made_up=False)
        if d.wants("reverse " + listed(items)):
            return [(d.pick(["Reverse this list: {}.", "Say {} backwards."]).format(listed(items)), f" {listed(items[::-1])}")]


def reverse_word(d: Draw):
    word = d.letters_word(8)
    form = d.pick(["Spell {} backwards.", "Reverse the letters of {}."])
    return [(form.format(word), f" {' '.join(word)}: {' '.join(word[::-1])}")]


def reverse_digits(d: Draw):
    while True:
        digits = "".join(d.pick("0123456789") for _ in range(d.rng.randint(2, 8)))
        if d.wants("reverse " + digits):
            return [(f"Reverse the digits of {digits}.", f" {digits[::-1]}")]


def copy(d: Draw):
    while True:
        items = listed(some_list(d, 8)) if d.rng.random() < 0.7 else "".join(d.pick("0123456789") for _ in range(d.rng.randint(3, 12)))
        if d.wants("copy " + items):
            return [(d.pick(["Repeat: {}", "Say this again: {}", "Copy this: {}"]).format(items), f" {items}")]


def spell(d: Draw):
    word = d.letters_word()
    return [(d.pick(["Spell {}.", "How do you spell {}?", "Spell the word {}."]).format(word), f" {' '.join(word)}")]


def join(d: Draw):
    """Short words: which pieces of the tokenizer a long one is made of has to be known by heart."""
    word = d.letters_word(6)
    return [(d.pick(["Which word is {}?", "Join these letters: {}"]).format(" ".join(word)), f" {word}")]


def compare(d: Draw):
    while True:
        n = d.rng.randint(1, 4)
        a = d.number(n)
        b = d.number(n) if d.rng.random() < 0.6 else max(0, a + d.rng.randint(-30, 30))
        if a != b and d.wants(f"{a} or {b}"):
            big = d.rng.random() < 0.5
            form = d.pick(["Which is {}, {} or {}?", "Which number is {}: {} or {}?"])
            return [(form.format("larger" if big else "smaller", a, b), f" {max(a, b) if big else min(a, b)}")]


def compare_yes(d: Draw):
    while True:
        n = d.rng.randint(1, 3)
        a, b = d.number(n), d.number(n)
        if a != b and d.wants(f"{a} than {b}"):
            big = d.rng.random() < 0.5
            return [(f"Is {a} {'greater' if big else 'less'} than {b}?", " Yes" if (a > b) == big else " No")]


def largest(d: Draw):
    while True:
        items = d.distinct(range(100), d.rng.randint(3, 7))
        if d.wants("largest " + listed(items)):
            big = d.rng.random() < 0.5
            return [(f"Which is the {'largest' if big else 'smallest'} of {listed(items)}?", f" {max(items) if big else min(items)}")]


def count_up(d: Draw):
    while True:
        a, step, n = d.rng.randint(0, 89), d.pick([1, 1, 1, 2, 5, 10]), d.rng.randint(3, 9)
        items = list(range(a, a + step * n, step))
        if d.wants(f"count {a} {step} {n}"):
            by = f" by {step}" if step > 1 else ""
            return [(f"Count from {a} to {items[-1]}{by}.", f" {listed(items)}")]


SCALES = [("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("kilograms", "grams", 1000),
          ("litres", "millilitres", 1000), ("euros", "cents", 100), ("centimetres", "millimetres", 10)]
TIMES = [("hours", "minutes", 60, 19), ("minutes", "seconds", 60, 19), ("weeks", "days", 7, 29),
         ("dozens", "pieces", 12, 29), ("years", "months", 12, 29)]


def convert(d: Draw):
    while True:
        large, small, scale = d.pick(SCALES)
        n = max(1, d.number(2))
        if not d.wants(f"{n} {large} {small}"):
            continue
        if d.rng.random() < 0.6:
            return [(d.pick(["How many {1} are {2} {0}?", "Convert {2} {0} to {1}."]).format(large, small, n), f" {n * scale} {small}")]
        return [(d.pick(["How many {0} are {2} {1}?", "Convert {2} {1} to {0}."]).format(large, small, n * scale), f" {n} {large}")]


def convert_steps(d: Draw):
    while True:
        large, small, scale, most = d.pick(TIMES)
        n = d.rng.randint(2, most)
        tens, ones = n // 10 * 10, n % 10
        if not (d.wants(f"{n} {large}", 0.2) if tens and ones else not d.held):
            continue
        parts = [p for p in (tens, ones) if p]
        steps = [f"{p}*{scale}={p * scale}" for p in parts]
        if len(parts) == 2:
            steps.append(f"{tens * scale}+{ones * scale}={n * scale}")
        form = d.pick(["How many {1} are {2} {0}?", "Convert {2} {0} to {1}."])
        return [(form.format(large, small, n), f" {', '.join(steps)}: {n * scale} {small}")]


SINGLE = [add, sub, add_steps, sub_steps, add_list, count_letters, count_word, count_items, sort_numbers, sort_big, sort_words,
          sort_letters, reverse_list, reverse_word, reverse_digits, copy, spell, join, compare, compare_yes, largest, count_up,
          convert, convert_steps]
