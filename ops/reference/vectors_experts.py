"""Vectors of 6. and 8.: rows through experts, in plain and in packed form, and their sums in fixed point."""

import arithmetic as text
from draws import INF, NAN, Draws, down, f32, flat, up, words
from vectors_packed import PackedMatrix

SWIGLU, CLAMPED = None, (f32(1.702), 0.5)
INT4 = [("plain", "f16", False, 64)] * 2


# ------------------------------------------------------------------ fixed point
def fixed_point():
    """Experts of width 1 whose products are all 0: a column's terms are those zeros and the biases, times the weights."""
    draws = Draws(6)
    for bits in (24, 20, 30):
        edge = 2.0 ** (51 - bits)
        half = [f32(v * 2.0**-bits) for v in (0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.50001, -0.50001, 0.49999, 7.5)]
        fits = [down(edge), -down(edge), -0.0, f32(1e-30), f32(-1e-45), 1.0, 2.0**-bits]
        columns = [half + fits + draws.values(40, -30, 20) for _ in range(3)]
        yield a_sum(f"one expert, {bits} bits", bits, [1.0], columns[:1])
        yield a_sum(f"weights, {bits} bits", bits, [0.75, -1.0, f32(1 / 3)], columns)
        # sums beyond 2^53 are rounded twice on their way to f32: to f64, then to f32
        large = [[v] * 9 for v in (down(edge), down(down(edge)))]
        large += [draws.values(9, 50 - bits, 50 - bits) for _ in range(4)]
        large += [[f32(2.0**-bits)] * 9, [f32(-3 * 2.0**-bits)] * 9]
        yield a_sum(f"large sums, {bits} bits", bits, [1.0] * 8, large)
        for value in (edge, -edge, up(edge), f32(3e38), INF, -INF, NAN):
            yield a_sum(f"poison {value}, {bits} bits", bits, [1.0], [[1.0, value, 2.0]])
        yield a_sum(f"poison by weight, {bits} bits", bits, [0.5, 2.0], [[edge, 1.0], [1.0, edge / 2]])
        yield a_sum(f"no poison by weight, {bits} bits", bits, [0.5, 2.0], [[edge, 1.0], [1.0, down(edge / 2)]])
    for ids in ([0, 1, 0], [7, 0, 7]):  # expert 7 is not here
        terms = a_sum(f"twice: {ids}", 24, [1.0, 0.5, 0.25], [[1.0, 2.0]] * 2)
        yield {**terms, "ids": ids, "poisoned": True, "sums": None, "out": words([NAN] * 2)}
    # 2^56 + 2^32 + 1 parts: binary64 makes it a tie of binary32, which is none
    for sign in (1.0, -1.0):
        large = [[sign * 2.0**26] * 3] * 64
        yield a_sum(f"rounded twice, {sign}", 24, [1.0] * 66, large + [[sign * 2.0**8] * 2 + [sign * 3 * 2.0**8]]
                    + [[sign * 2.0**-24, -sign * 2.0**-24, -sign * 2.0**-24]])
    # 60 terms around 2^26.9: i64 sums of 57 bits, where binary64 rounds
    ties = [[v] + draws.values(11, 26, 26) for v in draws.values(60, 26, 26)]
    yield a_sum("sixty terms", 24, [1.0] * 60, ties)


def a_sum(name, bits, weights, biases):
    zeros = [0.0] * len(biases[0])
    columns = [[text.mul(w, y) for w, column in zip(weights, terms) for y in (0.0, column)]
               for terms in zip(*biases)]
    return {"name": name, "fraction_bits": bits, "weights": words(weights), "biases": [words(b) for b in biases],
            "h": len(zeros), **sums(columns, bits)}


def sums(columns, bits):
    fixed = [[text.to_fixed(t, bits) for t in terms] for terms in columns]
    poisoned = any(t == text.POISON for t in flat(fixed))
    return {"poisoned": poisoned, "sums": None if poisoned else [sum(terms) for terms in fixed],
            "out": words(text.combine(columns, bits))}


# ------------------------------------------------------------------ whole experts
def experts():
    draws = Draws(66)
    plain = [("one unit", 19, 20, 1, False), ("a whole unit", 2, 128, 1, True), ("two units", 2, 131, 2, False),
             ("three units", 2, 300, 1, True), ("width 1", 2, 1, 3, True)]
    for turn, (name, h, f, count, biased) in enumerate(plain):
        for on_input in (False, True) if f < 200 else (False,):
            activation = CLAMPED if (turn + on_input) % 2 else SWIGLU
            yield an_expert(draws, f"plain, {name}, {'input' if on_input else 'output'}", h, f, count, biased,
                            on_input, activation, None)
    packed = [("int4", *INT4, 20, 200, 1, False),
              ("int8", ("int8", "f16", False, 64), ("int8", "f16", False, 64), 20, 129, 1, True),
              ("mxfp4", ("mxfp4", "f16", False, 32), ("mxfp4", "f16", False, 32), 33, 150, 1, True),
              ("gptq by 32", ("plain", "f16", True, 32), ("plain", "f16", True, 32), 24, 172, 1, False),
              ("gptq by 128", ("plain", "f16", True, 128), ("plain", "f16", True, 128), 12, 257, 1, True),
              ("mixed", ("int8", "f16", False, 32), ("wide", "f32", True, 64), 17, 130, 1, True),
              ("ends", ("ends", "f32", True, 64), ("ends", "f32", False, 32), 20, 160, 1, False)]
    for turn, (name, inner, outer, h, f, count, biased) in enumerate(packed):
        on_input, activation = turn % 3 == 1, CLAMPED if turn % 2 else SWIGLU
        yield an_expert(draws, f"packed, {name}", h, f, count, biased, on_input, activation, (inner, outer))
    yield an_expert(draws, "plain, NaN", 6, 9, 2, False, False, SWIGLU, None, odd=NAN)
    yield an_expert(draws, "packed, NaN", 40, 20, 2, False, False, SWIGLU, INT4, odd=NAN)
    yield an_expert(draws, "packed, infinity", 40, 20, 1, True, True, CLAMPED, INT4, odd=INF)


def an_expert(draws, name, h, f, count, biased, on_input, activation, formats, odd=None):
    x = draws.values(h, -6, 1)
    if odd is not None:
        x[draws.below(h)] = odd
    act = text.swiglu if activation is None else lambda g, u: text.clamped_swiglu(g, u, *activation)
    weights, terms, written = draws.values(count, -3, 0), [[] for _ in range(h)], []
    for w in weights:
        bias = [draws.values(n, -4, 0) for n in (f, f, h)] if biased else None
        if formats is None:
            gate, up_, lower = ([draws.values(n, -8, -1) for _ in range(m)] for m, n in ((f, h), (f, h), (h, f)))
            g, u = [text.dot(x, row) for row in gate], [text.dot(x, row) for row in up_]
            product = lambda a, row, first: text.dot(a, lower[row][first:first + len(a)])
            matrices, unit = [words(flat(m)) for m in (gate, up_, lower)], text.unit_length()
        else:
            gate, up_, lower = (PackedMatrix(draws, *form, m, n)
                                for form, m, n in ((formats[0], f, h), (formats[0], f, h), (formats[1], h, f)))
            row8 = text.quantise(x, gate.group)
            g, u = [gate.product(i, row8) for i in range(f)], [up_.product(i, row8) for i in range(f)]
            product = lambda a, row, first: lower.product(row, text.quantise(a, lower.group), first // lower.group)
            matrices, unit = [m.case for m in (gate, up_, lower)], text.unit_length(lower.group)
        a = text.activated(g, u, bias, w if on_input else None, act)
        columns = text.expert_terms(a, range(h), unit, None if on_input else w, bias and bias[2], product)
        for column, more in zip(terms, columns):
            column += more
        written.append({"gate": matrices[0], "up": matrices[1], "down": matrices[2],
                        "bias": bias and [words(b) for b in bias]})
    return {"name": name, "h": h, "f": f, "x": words(x), "weights": words(weights), "on_input": on_input,
            "clamped": activation and words(activation), "fraction_bits": 24, "experts": written, **sums(terms, 24)}


FILES = {"fixed": fixed_point, "experts": experts}
