"""Random inputs from fixed seeds, the same in every Python, and how vectors are written."""

import itertools
import math
import random

from binary import bits16, bits32, f16, f32, from16, from32

INF, NAN = math.inf, math.nan


class Draws(random.Random):
    """`getrandbits` is all that is used of it: its stream is the same in every version."""

    def below(self, n):
        return self.getrandbits(32) % n

    def of(self, choices):
        return choices[self.below(len(choices))]

    def value(self, low=-12, high=0):
        """A binary32 of either sign between 2^low and 2^(high+1)."""
        mantissa = self.getrandbits(23)
        if self.below(4) == 0:
            mantissa &= 0x7F0000  # few bits: sums and products that are exact, or ties
        e = low + self.below(high - low + 1)
        sign = -1.0 if self.getrandbits(1) else 1.0
        return f32(sign * math.ldexp(1 + mantissa / 2**23, e))

    def values(self, n, low=-12, high=0):
        return [self.value(low, high) for _ in range(n)]

    def half(self, low=-12, high=0):
        return f16(self.value(low, high))

    def sprinkle(self, x, odd, times):
        """Puts `times` of `odd` somewhere into x."""
        for _ in range(times):
            x[self.below(len(x))] = self.of(odd)
        return x


def up(x):
    """The next binary32 away from zero."""
    return from32(bits32(x) + 1)


def down(x):
    """The next binary32 towards zero."""
    return from32(bits32(x) - 1)


def words(x):
    """binary32; every NaN is the same one. What no binary32 holds is a mistake."""
    return None if x is None else runs(f"{0x7FC00000 if math.isnan(v) else bits32(exactly(f32, v)):08x}" for v in x)


def halves(x):
    return runs(f"{0x7E00 if math.isnan(v) else bits16(exactly(f16, v)):04x}" for v in x)


def signed(x):
    """Integers of 8 bits."""
    return runs(f"{v & 255:02x}" for v in x)


def runs(x):
    counted = ((word, len(list(same))) for word, same in itertools.groupby(x))
    return " ".join(word if count == 1 else f"{word}*{count}" for word, count in counted)


def exactly(form, x):
    assert form(x) == x, x
    return x


def flat(rows):
    return [v for row in rows for v in row]


__all__ = ["INF", "NAN", "Draws", "bits16", "bits32", "down", "f16", "f32", "flat", "from16", "from32", "halves",
           "signed", "up", "words"]
