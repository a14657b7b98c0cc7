"""Word lists of the data generator, and the split between training and held-out prompts.

In: nothing but seeds. Out: `Draw`, which hands the tasks random words, numbers and the split decision.
Real words that are single tokens elsewhere (animals, fruits, names) are never held out for spelling:
a piece that was never spelled cannot be spelled. Held-out words are made of pieces that were.
"""

import random
import zlib

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor
Wanda Adam Bella Carl Dora Eric Fiona George Helen Ivan Julia Karl Laura Max Nina Oscar Peter Rita Simon Tom
Una Vera Will Zoe""".split()
CITIES = """Rome Paris Berlin Madrid Vienna Oslo London Dublin Athens Lisbon Prague Warsaw Cairo Tokyo Delhi Lima
Quito Bern Riga Sofia""".split()
COLOURS = "red blue green yellow black white brown pink grey orange".split()
ANIMALS = "fox cat dog hen cow pig bear wolf lion owl duck goat mouse horse sheep frog crow bee ant deer".split()
FRUITS = "apple pear plum grape lemon cherry melon peach fig kiwi mango lime".split()
THINGS = "stone river table lamp book chair door key cup hat ring boat tree house road bell coat drum kite rope".split()
PLAIN = ANIMALS + FRUITS + THINGS + COLOURS

SPELLING = """garden window strawberry banana letter summer winter yellowstone mountain bottle butter pepper
chicken kitchen blanket basket market rocket pocket ticket cricket jacket planet magnet cabinet minute second
hour morning evening night sunday monday friday august october number member chamber timber ladder spider
cider wonder thunder under over river silver clever fever never corner dinner winner runner manner banner
hammer simmer glimmer swimmer grammar matter litter kettle settle little middle puddle saddle paddle candle
handle bundle castle whistle thistle bristle wrestle nestle people purple simple sample temple apples cherries
berries stories cities parties babies ladies countries families water paper tiger baker maker dancer singer
writer reader leader farmer teacher painter printer hunter counter center enter entrance balance distance
instance science silence sentence absence presence present parent student moment cement garment document
computer keyboard monitor screen memory network server model expert router token vector matrix tensor kernel
language grammar picture nature future culture adventure treasure measure pleasure pressure mixture fixture
island highland lowland woodland wonderland football baseball snowball basketball notebook cookbook handbook
sunshine moonlight starlight daylight highlight rainbow window pillow yellow follow hollow shadow meadow
elephant giraffe monkey donkey turkey penguin dolphin octopus hamster rabbit squirrel beaver badger otter
potato tomato carrot onion garlic spinach cabbage lettuce celery radish pumpkin cucumber avocado
bread cheese honey sugar coffee biscuit cookie pancake sandwich chocolate vanilla cinnamon
school college teacher lesson pencil marker crayon eraser ruler scissors backpack library museum theater
bicycle airplane railway station harbor bridge tunnel castle tower palace village forest desert ocean
happiness kindness goodness darkness illness business princess success process access address assess
mississippi committee coffee bookkeeper balloon raccoon cocoon lagoon noodle poodle doodle
""".split()
SPELLING = sorted(set(SPELLING) - set(PLAIN))

VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ee", "oo", "ea", "ou", "ai"]
ONSETS = list("bcdfghjklmnprstvwyz") + ["br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "pr", "qu", "sh", "sl", "sp", "st", "str", "th", "tr"]
CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "p", "ck", "ll", "ss", "nd", "nt", "rt", "st", "x", "ng"]


PIECES = []  # the tokenizer's pieces of lower-case letters, for training: every one has to be spelled some time


def held_out(key: str, share: float = 0.1) -> bool:
    """Whether the prompt with these operands belongs to the held-out split: by hash, so disjoint by construction."""
    return zlib.crc32(key.encode()) % 1000 < share * 1000


class Draw:
    """One source of random prompts from one split.

    `real` is the share of real (not made-up) words in spelling tasks; the tokenizer's corpus uses 0,
    so that these words stay several pieces long.
    """

    def __init__(self, seed, held: bool, real: float = 0.5):
        self.rng = random.Random(seed)
        self.held = held
        self.real = real

    def wants(self, key: str, share: float = 0.1) -> bool:
        return held_out(key, share) == self.held

    def made_up(self) -> str:
        r = self.rng
        word = "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(r.choice([1, 2, 2])))
        return word[:8]

    def letters_word(self, longest=11) -> str:
        """A word to spell, from this draw's split; lower case."""
        while True:
            if PIECES and not self.held and self.rng.random() < 0.5:
                word = "".join(self.rng.choice(PIECES) for _ in range(self.rng.randint(1, 4)))[:10]
            elif self.rng.random() >= self.real:
                word = self.made_up()
            elif self.rng.random() < 0.3 and not self.held:
                return self.rng.choice(PLAIN)
            else:
                word = self.rng.choice(SPELLING)
            if len(word) <= longest and self.wants("spell " + word):
                return word

    def number(self, digits_max: int) -> int:
        """A number of 1..digits_max digits, each length equally likely."""
        n = self.rng.randint(1, digits_max)
        return self.rng.randint(10 ** (n - 1) if n > 1 else 0, 10**n - 1)

    def pick(self, items):
        return self.rng.choice(items)

    def distinct(self, items, n: int):
        return self.rng.sample(items, n)
