"""IEEE 754 binary32 and binary16, exactly: every result is computed as a ratio of integers and rounded once.

A number is a Python float that the format can hold (binary64 holds every binary32, -0, infinities and NaN
included). What is not finite, and the sign of a sum that is exactly zero, follow the binary64 operation: the
product of two binary32 is exact there, so that its rules are the same.

    python binary.py    # holds the rounding against numpy's casts and operations
"""

import math
import random
import struct
from fractions import Fraction

PRECISION = {"f32": (24, -126, 127), "f16": (11, -14, 15)}


def round_ratio(num, den, form="f32"):
    """num/den (integers, den > 0, num != 0) to nearest, ties to even; subnormals kept, overflow to infinity."""
    bits, e_min, e_max = PRECISION[form]
    sign, num = (-1.0, -num) if num < 0 else (1.0, num)
    e = num.bit_length() - den.bit_length()
    if (num << max(-e, 0)) < (den << max(e, 0)):
        e -= 1  # now 2^e <= num/den < 2^(e+1)
    quantum = max(e, e_min) - (bits - 1)
    whole, rest = divmod(num << max(-quantum, 0), den << max(quantum, 0))
    half = den << max(quantum, 0)
    if 2 * rest > half or (2 * rest == half and whole & 1):
        whole += 1
    if whole.bit_length() + quantum > e_max + 1:
        return sign * math.inf
    return sign * math.ldexp(whole, quantum)


def to(form, x):
    """A float or Fraction, rounded once."""
    if isinstance(x, float) and (not math.isfinite(x) or x == 0):
        return x
    num, den = x.as_integer_ratio()
    return round_ratio(num, den, form) if num else 0.0


def f32(x):
    return to("f32", x)


def f16(x):
    return to("f16", x)


def fma(a, b, c):
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    (an, ad), (bn, bd), (cn, cd) = a.as_integer_ratio(), b.as_integer_ratio(), c.as_integer_ratio()
    num, den = an * bn * cd + cn * ad * bd, ad * bd * cd
    return round_ratio(num, den) if num else a * b + c


def mul(a, b):
    return f32(a * b)  # a * b is exact in binary64


def add(a, b):
    return fma(a, 1.0, b)


def sub(a, b):
    return add(a, -b)


def div(a, b):
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0:
        return a / b
    (an, ad), (bn, bd) = a.as_integer_ratio(), b.as_integer_ratio()
    num, den = an * bd, ad * bn
    return round_ratio(num, den) if den > 0 else round_ratio(-num, -den)


def sqrt(a):
    if math.isnan(a) or a == 0 or a == math.inf:
        return a
    if a < 0:
        return math.nan
    num, den = a.as_integer_ratio()  # den is a power of two
    shift = 400
    square = (num << 2 * shift) // den
    root = math.isqrt(square)
    sticky = 1 if root * root != square or (square * den != num << 2 * shift) else 0
    return round_ratio(2 * root + sticky, 2 << shift)


def round_half_even(x):
    """To an integer; x finite."""
    return round(Fraction(x))


def bits32(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def from32(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits16(x):
    return struct.unpack("<H", struct.pack("<e", x))[0]


def from16(bits):
    return struct.unpack("<e", struct.pack("<H", bits))[0]


# ------------------------------------------------------------------ the check against numpy
def check(count=100_000):
    import numpy as np

    rng = random.Random(1)
    same = lambda a, b: struct.pack("<d", a) == struct.pack("<d", float(b)) or (math.isnan(a) and np.isnan(b))

    def any64():
        """Anything, often near what binary16 and binary32 can hold, often a tie."""
        e = rng.choice((rng.randint(-30, 20), rng.randint(-155, 130)))
        m = rng.getrandbits(52)
        keep = rng.choice((52, 25, 24, 23, 12, 11, 10, 3, 0))
        return rng.choice((1, -1)) * math.ldexp(1 + (m >> (52 - keep) << (52 - keep)) / 2**52, e)

    def any32():
        return rng.choice((from32(rng.getrandbits(32)), f32(any64())))

    with np.errstate(all="ignore"):
        for _ in range(count):
            x = any64()
            assert same(f32(x), np.float32(x)), x
            assert same(f16(x), np.float16(x)), x
            a, b, c = any32(), any32(), any32()
            na, nb, nc = np.float32(a), np.float32(b), np.float32(c)
            assert same(add(a, b), na + nb), (a, b)
            assert same(sub(a, b), na - nb), (a, b)
            assert same(mul(a, b), na * nb), (a, b)
            assert same(div(a, b), na / nb), (a, b)
            assert same(sqrt(abs(a)), np.sqrt(abs(na))), a
            # where binary64 computes a * b + c without an error, one cast is the one rounding
            wide = np.longdouble(na) * np.longdouble(nb) + np.longdouble(nc)
            if math.isfinite(float(wide)) and Fraction(a) * Fraction(b) + Fraction(c) == Fraction(float(wide)):
                assert same(fma(a, b, c), np.float32(float(wide))), (a, b, c)
    print(f"{count} numbers: equal to numpy's casts and operations")


if __name__ == "__main__":
    check()
