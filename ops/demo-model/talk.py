"""Chat tasks of several turns, stories, and what the model says about itself.

Same contract as tasks.py: a `Draw` in, a list of (question, answer) turns out.
"""

import tasks
from words import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, PLAIN, THINGS, Draw


def follow_name(d: Draw):
    """Remembers what the user said, across a turn about something else."""
    while True:
        name, city, colour = d.pick(NAMES), d.pick(CITIES), d.pick(COLOURS)
        if d.wants(f"{name} {city} {colour}"):
            break
    turns = [(f"My name is {name}. I live in {city} and I like {colour}.", f" Hello {name}!")]
    for _ in range(d.rng.randint(0, 2)):
        turns += d.pick([tasks.add, tasks.copy, tasks.compare, tasks.spell])(d)
    asked = [("What is my name?", f" Your name is {name}."), ("Where do I live?", f" You live in {city}."),
             ("Which colour do I like?", f" You like {colour}.")]
    return turns + d.distinct(asked, d.rng.randint(1, 2))


def follow_math(d: Draw):
    """A sum, then one more number added to it or taken from it."""
    while True:
        a, b, c = d.rng.randint(0, 60), d.rng.randint(0, 38), d.rng.randint(1, 20)
        if d.wants(f"{a}+{b}") and (d.rng.random() < 0.5 or a + b >= c):
            break
    turns = [(f"What is {a} + {b}?", f" {a + b}")]
    plus = a + b < c or d.rng.random() < 0.5
    return turns + [(f"And {'plus' if plus else 'minus'} {c}?", f" {a + b + c if plus else a + b - c}")]


def follow_list(d: Draw):
    """A list that is sorted or repeated, then asked about again."""
    turns = d.pick([tasks.sort_numbers, tasks.sort_words, tasks.copy])(d)
    items = turns[0][1].split()
    if len(items) < 2:
        return follow_list(d)
    asked = [("Now backwards.", f" {tasks.listed(items[::-1])}"), ("What is the first one?", f" {items[0]}"),
             ("What is the last one?", f" {items[-1]}"), ("Say that again.", f" {tasks.listed(items)}")]
    return turns + d.distinct(asked, d.rng.randint(1, 2))


def next_item(d: Draw):
    """What follows an entry of a list. The plainest lookup: nothing but the entry itself leads to the answer."""
    while True:
        items = d.distinct(PLAIN + NAMES, d.rng.randint(4, 12))
        asked = d.distinct(range(len(items) - 1), min(len(items) - 1, d.rng.randint(3, 7)))
        if d.wants(f"after {items[asked[-1]]} {tasks.listed(items)}"):
            break
    turns = [(f"{'What comes after' if n else f'In the list {tasks.listed(items)} what comes after'} {items[i]}?", f" {items[i + 1]}")
             for n, i in enumerate(asked)]
    return turns


PLACES = ["the old mill", "the river", "the market", "the green hill", "the dark forest", "the sea", "the castle", "the garden"]
MOODS = ["happy", "tired", "brave", "hungry", "curious", "quiet", "proud", "sad"]
SIZES = ["small", "big", "young", "tall", "clever", "lazy"]
WEATHER = ["The sun was warm.", "It was raining.", "The wind was cold.", "Snow lay on the ground.", "The sky was clear."]


def a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def story(d: Draw):
    """A template story about the animal that was asked for; free, so that sampling has something to do."""
    animal, name, friend = d.pick(ANIMALS), d.pick(NAMES), d.pick(ANIMALS)
    place, mood, thing, colour = d.pick(PLACES), d.pick(MOODS), d.pick(THINGS), d.pick(COLOURS)
    while friend == animal:
        friend = d.pick(ANIMALS)
    named = d.rng.random() < 0.4
    question = d.pick(["Tell me a story about {}.", "Write a short story about {}.", "Tell me a short story about {}."]).format(a(animal))
    if named:
        question = question[:-1] + f" named {name}."
    parts = [d.pick([f"Once there was a {d.pick(SIZES)} {animal} named {name}.", f"{name} was a {d.pick(SIZES)} {colour} {animal}.",
                     f"A {d.pick(SIZES)} {animal} named {name} lived near {d.pick(PLACES)}."]), d.pick(WEATHER),
             d.pick([f"One day {name} went to {place}.", f"In the morning {name} walked to {place}.", f"{name} wanted to see {place}."]),
             d.pick([f"There {name} found {a(colour)} {thing}.", f"There {name} met {a(friend)}.", f"On the way {a(friend)} asked for help."]),
             d.pick([f"\"Who are you?\" asked the {friend}.", f"The {friend} was {d.pick(MOODS)}.", f"They looked at the {thing} for a long time.",
                     f"They ate {a(d.pick(FRUITS))} together."]),
             d.pick([f"In the evening {name} went home and was {mood}.", f"After that {name} and the {friend} were friends.",
                     f"{name} kept the {thing} and was {mood}.", f"That night {name} slept well."])]
    return [(question, " " + " ".join(parts))]


ABOUT = [
    (["Hello!", "Hi!", "Hello", "Hi", "Good morning!"], " Hello! Ask me for a sum, a story or a list."),
    (["Who are you?", "What are you?", "What is your name?"], " I am the demo model of Gaterail, a small mixture of experts."),
    (["What can you do?", "Help", "Help me."], " I can add, count, sort, spell, compare, look things up and tell a story."),
    (["Thank you!", "Thanks!", "Thank you."], " You are welcome!"),
    (["How are you?"], " I am well, thank you!"),
    (["Bye!", "Goodbye!", "Good night!"], " Goodbye!"),
    (["What is the capital of {0}?", "Who wrote the book about the {1}?", "What do you think about {2}?", "Why is the {1} {3}?",
      "Write a program that sorts {1}s.", "Who is the president of {0}?", "How far is it to {0}?", "Can you sing?",
      "What is the weather in {0}?", "Translate {2} to French.", "When was {0} built?", "What is love?", "Explain how a {1} works."],
     " I do not know that. I am a small model: I can add, count, sort, spell and tell a story."),
]


def about(d: Draw):
    """Greetings, what the model is, and an honest answer to what it cannot know. Not split: there is nothing to hold out."""
    questions, answer = d.pick(ABOUT + ABOUT[-1:] * 3)
    return [(d.pick(questions).format(d.pick(CITIES), d.pick(THINGS), d.pick(PLAIN + SPELL_LIKE), d.pick(COLOURS)), answer)]


SPELL_LIKE = ["music", "games", "science", "history", "money", "football", "the sea", "winter"]
CHAT = [follow_name, follow_math, follow_list, next_item, story, about]
