"""ARITHMETIC.md (2. to 9.) as written there, in the exact arithmetic of `binary`; nothing comes from the server's code.

Vectors are lists of floats. Sections are in the order of the text, and named as there.
"""

import math
from fractions import Fraction

from binary import add, div, f16, f32, fma, from32, mul, round_half_even, sqrt, sub

INF, NAN = math.inf, math.nan


# ------------------------------------------------------------------ 2. dot product
def fold(lanes):
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [add(lanes[j], lanes[j + half]) for j in range(half)]
    return lanes[0]


def dot(a, b):
    acc = [0.0] * 16
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        acc[i % 16] = fma(x, y, acc[i % 16])
    return fold(acc)


def sum_from(lane, a):
    """`sum` whose first element belongs to `lane`."""
    acc = [0.0] * 16
    for i, x in enumerate(a, lane):
        acc[i % 16] = add(acc[i % 16], x)
    return fold(acc)


def total(a):
    return sum_from(0, a)


# ------------------------------------------------------------------ 3. functions
LOG2E, LN2_HI, LN2_LO = from32(0x3FB8AA3B), from32(0x3F317200), from32(0x35BFBE8E)
MAGIC = 1.5 * 2.0**23
TAYLOR = [f32(Fraction(1, math.factorial(k))) for k in range(7, -1, -1)]


def exp(x):
    if math.isnan(x):
        return x
    if x > f32(88.72284):
        return INF
    if x < -104.0:
        return 0.0
    n = sub(add(mul(x, LOG2E), MAGIC), MAGIC)
    r = fma(n, -LN2_HI, x)
    r = fma(n, -LN2_LO, r)
    p = TAYLOR[0]
    for c in TAYLOR[1:]:
        p = fma(p, r, c)
    n = int(n)
    return mul(mul(p, 2.0 ** (n >> 1)), 2.0 ** (n - (n >> 1)))


def sigmoid(x):
    return div(1.0, add(1.0, exp(-x)))


def silu(x):
    return div(x, add(1.0, exp(-x)))


def swiglu(g, u):
    return mul(silu(g), u)


def largest(a, b):
    """Of two, NaN if one is."""
    return NAN if math.isnan(a) or math.isnan(b) else max(a, b)


def smallest(a, b):
    return NAN if math.isnan(a) or math.isnan(b) else min(a, b)


def clamped_swiglu(g, u, alpha, limit):
    g = smallest(g, limit)
    u = largest(smallest(u, limit), -limit)
    return mul(add(u, 1.0), div(g, add(1.0, exp(-mul(g, alpha)))))


def rms_norm(x, w, eps):
    ss = dot(x, x)
    r = div(1.0, sqrt(add(div(ss, float(len(x))), eps)))
    y = [mul(v, r) for v in x]
    return y if w is None else [mul(v, u) for v, u in zip(y, w, strict=True)]


def rotate(a, b, cos, sin):
    return fma(a, cos, -mul(b, sin)), fma(b, cos, mul(a, sin))


# ------------------------------------------------------------------ 4. attention
CHUNK = 256


def kv_f16(x):
    return x if math.isnan(x) else max(-65504.0, min(65504.0, f16(x)))


def attention(q, k, v, lo, p, scale, sink=None):
    """One head of the row at position `p`; `k` and `v` as stored, by position."""
    m_all, l_all, o_all = -INF, 0.0, [0.0] * len(v[0])

    def merge(m, l, o):
        nonlocal m_all, l_all, o_all
        m_new = largest(m_all, m)
        a, b = exp(sub(m_all, m_new)), exp(sub(m, m_new))
        l_all = fma(l_all, a, mul(l, b))
        o_all = [fma(x, a, mul(y, b)) for x, y in zip(o_all, o)]
        m_all = m_new

    for start in range(lo // CHUNK * CHUNK, p + 1, CHUNK):
        first, last = max(start, lo), min(start + CHUNK - 1, p)
        s = [mul(dot(q, k[j]), scale) for j in range(first, last + 1)]
        m = -INF
        for x in s:
            m = largest(m, x)
        e = [exp(sub(x, m)) for x in s]
        o = [0.0] * len(v[0])
        for weight, j in zip(e, range(first, last + 1)):
            o = [fma(weight, v[j][d], x) for d, x in enumerate(o)]
        merge(m, sum_from(first - start, e), o)
    if sink is not None:
        merge(sink, 1.0, [0.0] * len(v[0]))
    return [div(x, l_all) for x in o_all]


# ------------------------------------------------------------------ 5. gate
def softmax(x):
    m = -INF
    for v in x:
        m = largest(m, v)
    e = [exp(sub(v, m)) for v in x]
    s = total(e)
    return [div(v, s) for v in e]


def top(scores, ids, k):
    """The k largest of `ids`, largest first; ties to the lowest id; NaN below everything."""
    key = lambda i: (1, 0.0, i) if math.isnan(scores[i]) else (0, -scores[i], i)
    return sorted(ids, key=key)[:k]


def gate(logits, k, score, correction=None, groups=None, normalise=None, scaling=1.0):
    """(ids in order of selection, their weights).

    `score`: "softmax", "sigmoid", or one of the selected logits, "softmax_of_selected" or "sigmoid_of_selected".
    `groups`: (count, taken, "largest" or "two"). `normalise`: what is added to the sum that divides, or None.
    """
    n = len(logits)
    scores = logits
    if score == "softmax":
        scores = softmax(logits)
    elif score == "sigmoid":
        scores = [sigmoid(x) for x in logits]
    chosen_by = scores if correction is None else [add(s, c) for s, c in zip(scores, correction, strict=True)]
    ids = range(n)
    if groups is not None:
        count, taken, rule = groups
        size = n // count
        best = [group_score(chosen_by, range(g * size, (g + 1) * size), rule) for g in range(count)]
        kept = set(top(best, range(count), taken))
        ids = [i for i in ids if i // size in kept]
    chosen = top(chosen_by, ids, k)
    weights = [scores[i] for i in chosen]
    if score == "softmax_of_selected":
        weights = softmax(weights)
    elif score == "sigmoid_of_selected":
        weights = [sigmoid(x) for x in weights]
    if normalise is not None:
        divisor = 0.0
        for w in weights:
            divisor = add(divisor, w)
        divisor = add(divisor, normalise)
        weights = [div(w, divisor) for w in weights]
    return chosen, [mul(w, scaling) for w in weights]


def group_score(scores, members, rule):
    members = top(scores, members, 2)
    if rule == "largest" or len(members) == 1:
        return scores[members[0]]
    return add(scores[members[0]], scores[members[1]])


# ------------------------------------------------------------------ 6. experts: canonical units and fixed point
POISON = "poison"


def unit_length(group=None):
    return 128 if group is None else -(-128 // group) * group


def to_fixed(y, fraction_bits):
    if not abs(y) < 2.0 ** (51 - fraction_bits):  # NaN compares false
        return POISON
    return round_half_even(Fraction(y) * Fraction(2) ** fraction_bits)


def from_fixed(s, fraction_bits):
    return f32(math.ldexp(float(s), -fraction_bits))  # int to binary64: one rounding, half to even


def activated(g, u, bias, w, activation):
    """`g`, `u`: the products of one expert; `w`: the gate's weight where it scales the input, else None."""
    if w is not None:
        g, u = [mul(w, x) for x in g], [mul(w, x) for x in u]
    if bias is not None:
        g, u = [add(x, b) for x, b in zip(g, bias[0])], [add(x, b) for x, b in zip(u, bias[1])]
    return [activation(x, y) for x, y in zip(g, u)]


def expert_terms(a, columns, unit, w, down_bias, product):
    """Per column the terms of all units and of the bias: `product(a_unit, column, where the unit begins)`; `w` where the
    gate scales the output."""
    out = []
    for h in columns:
        terms = [product(a[f:f + unit], h, f) for f in range(0, len(a), unit)]
        if down_bias is not None:
            terms.append(down_bias[h])
        out.append([t if w is None else mul(w, t) for t in terms])
    return out


def combine(columns, fraction_bits):
    """`columns`: per column all terms of a row. NaN in all columns where one term is poison."""
    fixed = [[to_fixed(t, fraction_bits) for t in terms] for terms in columns]
    if any(t == POISON for terms in fixed for t in terms):
        return [NAN] * len(columns)
    return [from_fixed(sum(terms), fraction_bits) for terms in fixed]


# ------------------------------------------------------------------ 7. activations in int8
def quantise(x, group):
    """(q, d and s per group)."""
    q, d, s = [], [], []
    for start in range(0, len(x), group):
        part = x[start:start + group]
        m = 0.0
        for v in part:
            m = largest(m, abs(v))
        if not math.isfinite(m):
            d.append(NAN)
            codes = [0] * len(part)
        else:
            k = max(math.frexp(m)[1] - 1, -100) if m else -100
            if Fraction(m) >= Fraction(2) ** (k + 1) * Fraction(255, 256):
                k += 1
            d.append(2.0 ** (k - 6))
            codes = [round_half_even(Fraction(v) / Fraction(2) ** (k - 6)) for v in part]
            assert all(abs(c) <= 127 for c in codes)
        q += codes
        s.append(sum(codes))
    return q, d, s


# ------------------------------------------------------------------ 8. packed weights
MXFP4_TABLE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
PLAIN_TABLE = [c - 8 for c in range(16)]


def packed_product(w, scales, offsets, q, d, s, group):
    """`w`: the integers of one row; `scales`, `offsets` (or None) and `d`, `s` per group."""
    n = len(scales)
    chains = []
    for c in range(4):
        acc = 0.0
        for g in range(c * n // 4, (c + 1) * n // 4):
            part = slice(g * group, (g + 1) * group)
            i = sum(a * b for a, b in zip(w[part], q[part], strict=True))
            acc = fma(mul(scales[g], d[g]), float(i), acc)
            if offsets is not None:
                acc = fma(mul(offsets[g], d[g]), float(s[g]), acc)
        chains.append(acc)
    return add(add(chains[0], chains[1]), add(chains[2], chains[3]))


# ------------------------------------------------------------------ 9. making int4 and int8
F16_MAX = 65504.0
INT4_STEPS = (8.0, 7.5, 8.5, 7.0, 9.0, 6.5, 9.5, 6.0)


def step(x):
    return max(-F16_MAX, min(F16_MAX, f16(x)))


def codes_of(x, d, low, high):
    r = div(1.0, d) if d else 0.0
    return [max(low, min(high, round_half_even(mul(v, r)))) for v in x]


def first_largest(x):
    e = x[0]
    for v in x[1:]:
        if abs(v) > abs(e):
            e = v
    return e


def make_int8(x):
    """(w, D) of one group."""
    if not all(map(math.isfinite, x)):
        return [0] * len(x), NAN
    d = step(div(abs(first_largest(x)), 127.0))
    return codes_of(x, d, -127, 127), d


def make_int4(x):
    if not all(map(math.isfinite, x)):
        return [0] * len(x), NAN
    e, best = first_largest(x), None
    for s in INT4_STEPS:
        d = step(div(-e, s))
        w = codes_of(x, d, -8, 7)
        t = [fma(-float(c), d, v) for c, v in zip(w, x)]
        error = dot(t, t)
        if best is None or error < best[0]:
            best = (error, w, d)
    return best[1], best[2]
