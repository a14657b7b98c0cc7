"""Vectors of 7. to 9. and of 1.: rows in int8, packed products, stored forms, our own codes."""

import math
from fractions import Fraction

import arithmetic as text
from binary import fma
from draws import INF, NAN, Draws, bits16, down, f16, f32, flat, from16, from32, signed, up, words


# ------------------------------------------------------------------ 7. activations in int8
def quantised():
    draws = Draws(7)
    step = Fraction(255, 256)
    for exponent in (-149, -130, -126, -103, -102, -101, -100, -99, -64, -1, 0, 6, 63, 125, 126, 127):
        x = []
        power = Fraction(2) ** exponent
        for m in sorted({f32(2 * power * step), f32(power), down(f32(power))} - {0.0}):
            for largest in (m, down(m), up(m)):
                others = [f32(largest * part / 254) for part in (253, 2, 1, 3, -127, -0.9, 17)]
                x += [largest, *others] + [0.0] * 24
                x += [draws.of([0.0, -0.0]), *others[1:], -largest] + [f32(largest / 256)] * 24
        yield a_row(f"steps at 2^{exponent}", x, 32)
    half = [i + 0.5 for i in range(-127, 126)] + [63.5, -63.5, 126.0, -126.0]
    for scale in (-102, -100, -50, 0, 40):  # ties
        x = flat([[2.0 ** (scale + 6), *[v * 2.0**scale for v in half[i:i + 31]]] for i in range(0, len(half), 31)])
        yield a_row(f"ties at 2^{scale}", [v if abs(v) < 2.0 ** (scale + 7) else -v for v in x], 32)
    for group in (32, 64, 128):
        for width in (1, 31, 32, 33, 64, 65, 96, 128, 129, 200, 256):
            x = draws.values(width, -14, 2)
            for start in range(0, width, 16):  # groups of several magnitudes
                power = 2.0 ** draws.of([0, 0, 0, -90, -98, -104, -125, 30])
                x[start:start + 16] = [f32(v * power) for v in x[start:start + 16]]
            yield a_row(f"{width} by {group}", x, group)
        for odd in (INF, -INF, NAN):
            x = draws.values(200)
            x[draws.below(128)] = odd
            yield a_row(f"{odd} by {group}", x, group)
        yield a_row(f"NaN and infinity by {group}", draws.sprinkle(draws.values(140), [INF, NAN, -INF], 9), group)
        yield a_row(f"zeros by {group}", [0.0, -0.0] * 70, group)
        yield a_row(f"subnormals by {group}", [from32(draws.getrandbits(18)) for _ in range(150)], group)
        yield a_row(f"largest by {group}", [from32(0x7F7FFFFF), from32(0xFF7FFFFE), 1.0] * 44, group)


def a_row(name, x, group):
    q, d, s = text.quantise(x, group)
    return {"name": name, "group": group, "x": words(x), "codes": signed(q), "scales": words(d), "sums": s}


# ------------------------------------------------------------------ 8. packed products
WIDE = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
ENDS = [-128, 0, 127, 3, -3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
TABLES = {"plain": text.PLAIN_TABLE, "mxfp4": text.MXFP4_TABLE, "wide": WIDE, "ends": ENDS, "int8": None}


class PackedMatrix:
    """Random codes, scales and offsets; `case` is how it is written."""

    def __init__(self, draws, table, scale_form, has_offsets, group, rows, cols, odd=(), span=(-18, -6)):
        groups, self.group = -(-cols // group), group
        codes = [[draws.below(256 if TABLES[table] is None else 16) for _ in range(cols)] for _ in range(rows)]
        # groups of the largest integers only
        for row in codes:
            if draws.below(4) == 0:
                row[:group] = [draws.of([0, 0, 0, 255] if TABLES[table] is None else [0, 0, 0, 15])] * len(row[:group])
        self.w = [[c - 128 if TABLES[table] is None else TABLES[table][c] for c in row] for row in codes]
        draw = (lambda: draws.half(*span)) if scale_form == "f16" else (lambda: draws.value(*span))
        fits = [v for v in odd if scale_form == "f32" or not math.isfinite(v) or f16(v) == v]
        self.scales = [draws.sprinkle([draw() for _ in range(groups)], fits, len(fits) and draws.below(2))
                       for _ in range(rows)]
        self.offsets = [draws.values(groups, -14, -4) for _ in range(rows)] if has_offsets else None
        digits = 2 if TABLES[table] is None else 1
        self.case = {"table": TABLES[table], "scale_form": scale_form, "group": group, "rows": rows, "cols": cols,
                     "codes": "".join(f"{c:0{digits}x}" for c in flat(codes)), "scales": words(flat(self.scales)),
                     "offsets": words(flat(self.offsets)) if has_offsets else None}

    def product(self, row, quantised, first_group=0):
        """With a row in int8 that meets the groups from `first_group` on."""
        q, d, s = quantised
        groups = slice(first_group, first_group + len(d))
        columns = slice(first_group * self.group, first_group * self.group + len(q))
        offsets = self.offsets and self.offsets[row][groups]
        return text.packed_product(self.w[row][columns], self.scales[row][groups], offsets, q, d, s, self.group)


def products():
    draws = Draws(8)
    odd = [0.0, -0.0, INF, NAN, 65504.0, -65504.0, f32(2.0**-24), f32(3e38), f32(1e-41), f32(-1.2e-38)]
    shapes = [(0, 1), (0, 31), (1, 0), (1, 5), (2, 0), (3, 1), (4, 0), (4, 17), (5, 0), (6, 3), (7, 0), (8, 9), (11, 0)]
    turn = 0
    for table in TABLES:
        for group in (32, 64, 128):
            for scale_form in ("f16", "f32"):
                for has_offsets in (False, True):
                    (whole, tail), turn = shapes[turn % len(shapes)], turn + 1
                    cols = min(whole, {32: 11, 64: 7, 128: 4}[group]) * group + tail
                    rows = 17 if turn % 9 == 0 and cols < 200 else 2
                    odd_here = odd if turn % 3 == 0 else ()
                    m = PackedMatrix(draws, table, scale_form, has_offsets, group, rows, cols, odd_here)
                    name = f"{table}, {scale_form}, {'offsets' if has_offsets else 'no offsets'}, {cols} by {group}"
                    yield a_product(draws, name, m, edgy=turn % 3 != 1)


    # groups of about the same weight, so that every rounding of a chain counts
    for table, scale_form, has_offsets in (("plain", "f16", False), ("int8", "f16", False), ("mxfp4", "f32", True)):
        m = PackedMatrix(draws, table, scale_form, has_offsets, 32, 16, 13 * 32, span=(-7, -6))
        yield a_product(draws, f"even, {table}", m, edgy=False)


def a_product(draws, name, m, edgy):
    x = [draws.values(m.case["cols"], -9, 2) for _ in range(2 if edgy else 1)]
    if edgy:
        for row in x:
            for start in range(0, len(row), m.group):
                power = 2.0 ** draws.of([0, 0, 20, -60, -98, -100, -103, -120, 90, 120])
                row[start:start + m.group] = [f32(v * power) for v in row[start:start + m.group]]
    if draws.below(4) == 0:
        x[-1][draws.below(len(x[-1]))] = draws.of([NAN, INF])
    bias = draws.values(m.case["rows"]) if draws.below(2) else None
    out = []
    for row in x:
        y = [m.product(n, text.quantise(row, m.group)) for n in range(m.case["rows"])]
        out += y if bias is None else [text.add(a, b) for a, b in zip(y, bias)]
    return {"name": name, "w": m.case, "x": words(flat(x)), "bias": words(bias), "out": words(out)}


# ------------------------------------------------------------------ 1. stored forms, and 8. how they are packed
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e2m1(code):
    return -E2M1[code - 8] if code & 8 else E2M1[code]


def e4m3(code):
    e, m = code >> 3 & 15, code & 7
    value = NAN if code & 127 == 127 else math.ldexp(8 + m, e - 10) if e else math.ldexp(m, -9)
    return -value if code & 128 else value


def stored():
    """`bytes` as stored, `values` by 1., `packed` the D, M and integers of 8. where the form can be packed as it is."""
    draws = Draws(1)
    for name, exponents in (("f16 scales", range(104, 144)), ("f32 scales", [0, 1, 2, 90, 130, 200, 252]),
                            ("NaN", [255, 127])):
        codes = [draws.below(16) for _ in range(3 * 64)]
        e = [draws.of(exponents) for _ in range(6)]
        values = [scaled(e2m1(c), e[i // 32]) for i, c in enumerate(codes)]
        d = [scaled(0.5, v) for v in e]
        yield a_stored(f"mxfp4, {name}", "mxfp4", 3, 64, values, blocks=nibbles(codes), exponents=bytes(e).hex(),
                       packed=(d, None, [text.MXFP4_TABLE[c] for c in codes]),
                       scale_form=name[:3] if name != "NaN" else None)
    for form in ("q4_0", "q8_0"):
        blocks, values, scales, w = b"", [], [], []
        for _ in range(2 * 3):
            d = draws.of([draws.half(-12, 2), draws.half(-24, -15), -0.0, 65504.0])
            codes = [draws.below(16 if form == "q4_0" else 256) for _ in range(32)]
            if form == "q4_0":
                body, integers = bytes(codes[i] | codes[i + 16] << 4 for i in range(16)), [c - 8 for c in codes]
            else:
                body, integers = bytes(codes), [c - 256 if c > 127 else c for c in codes]
            blocks += bits16(d).to_bytes(2, "little") + body
            values += [text.mul(d, float(i)) for i in integers]
            scales, w = scales + [d], w + integers
        yield a_stored(form, form, 2, 96, values, blocks=blocks.hex(), packed=(scales, None, w))
    for group, cols, zeros in ((32, 80, True), (64, 64, True), (128, 200, True), (32, 40, False)):
        codes = [draws.below(16) for _ in range(2 * cols)]
        groups = -(-cols // group)
        scales = [draws.half(-10, 0) for _ in range(2 * groups)]
        offsets = [text.mul(d, 8.0 - draws.below(17)) for d in scales] if zeros else None
        values = []
        for i, c in enumerate(codes):
            g = i // cols * groups + i % cols // group
            values.append(text.mul(scales[g], c - 8.0) if not zeros else fma(scales[g], c - 8.0, offsets[g]))
        yield a_stored(f"int4 by {group}", "int4", 2, cols, values, group=group, blocks=nibbles(codes),
                       scales=words(scales), offsets=words(offsets), packed=(scales, offsets, [c - 8 for c in codes]))
    cols, rows = 130, 129
    scales = draws.values(4, -8, 0)
    codes = [draws.below(256) for _ in range(rows * cols)]
    values = [text.mul(e4m3(c), scales[i // cols // 128 * 2 + i % cols // 128]) for i, c in enumerate(codes)]
    keep = flat(values[r * cols:(r + 1) * cols] for r in (0, 127, 128))
    yield {**a_stored("fp8", "fp8", rows, cols, keep, blocks=bytes(codes).hex(), scales=words(scales)),
           "rows_given": [0, 127, 128]}
    patterns = [draws.getrandbits(16) for _ in range(190)]
    patterns += [0, 0x8000, 1, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7C00, 0xFC00, 0x3FF]
    raw = b"".join(p.to_bytes(2, "little") for p in patterns).hex()
    yield a_stored("bf16", "bf16", 2, 100, [from32(p << 16) for p in patterns], blocks=raw)
    yield a_stored("f16", "f16", 2, 100, [from16(p) for p in patterns], blocks=raw)


def scaled(x, e):
    """x * 2^(e-127); the exponent 255 is NaN."""
    return NAN if e == 255 else f32(Fraction(x) * Fraction(2) ** (e - 127)) if x else x


def nibbles(codes):
    return bytes(codes[i] | codes[i + 1] << 4 for i in range(0, len(codes), 2)).hex()


def a_stored(name, form, rows, cols, values, packed=None, scale_form=None, **parts):
    case = {"name": name, "form": form, "rows": rows, "cols": cols, **parts, "values": words(values)}
    if packed:
        scales, offsets, w = packed
        case["packed"] = {"scales": words(scales), "offsets": words(offsets), "integers": signed(w),
                          "scale_form": scale_form}
    return case


# ------------------------------------------------------------------ 9. our own int4 and int8
# Found by a search: the errors of the two best steps are equal or next to each other, and how they are summed decides.
NEAR = """\
3ebaa1ed 3f3769f2 3ea1a2d6

bf8db762 bf10b082 bd751926

3cbc9586 3fbb7c8c bf30a27d

3dac6618 bfad59e6 3d3a432b

bf6a00c2 3e605852 3f89d4bc 3f1fbd00 bf6d7095 bf8ce195 3df3a868 bf34e270 bf215289 bfd7003b 3ffc3ddb 3f6aa78e bf7951fe
3f688078 3fabd69e c018ee71 bf0c87a5 bec6a46d 3f25f401 bdf8c2dd be6bf631 bd6f16d6 3fed39c7 400a3d1f bf065b06 bf6d1e54
402c52ca bf7ad08b bf12ca7a 3d15d67e 3edec855 3f83b770 3ec82e2b

bf5ed7d4 3bb64d0e bda7f855 4031832e be4578ae 3fa2aa2a 3fa9060e be3ef446 3f95aecf c00b50ea 3dc2692f 3f5ca203 c01976a0
bf945fb9 3f872d6c be8396ea bf8c91c6 bebf47ee bf0ae711 3f397561 3ee863bb be8f7a17 bf2a53e6 bd5cacba

3fddd2b3 3f3d1631 be011997 beb437c7 3de9423e be2abb9f be8eb079 bf8f4f0d 3fa1a3bd bd221c36 3d98da92 3dbe4abd c016ed08
3f06f2be bea886ff be9415c1 3d8eecf2 bf78f429 3f57e7ce bf3b620f bf675622 bf5cb875 3e229011 3f3eeb67

bfbfac46 3f87ffb2 bf8854a9 3f908f82 bd5e655a bf32c70f bf23d9a8 3eec79b9 3f63addf be4aed23 3f726a4b 4005910d be554ec8
bf9109a6 bf86f697 bfb1f682 bf23c11d bf394999 bfa99cfc 3f07ba28 c027202e bfa90ff1 4000f9e3 3f84d6b6

c01f7cda c02cce81 3eac9eb0 3ea8bbea 3fb25bfa 3f389e25 3e630f7f 3c860a8f bfb69f6e 3f6217d1 bf1a849d 3efb8c23 3e4cd7b8
3e8b504d 3f64865d befacfbb bec643b1 bf5b19bd bec11a12 3fd53d8c""".split("\n\n")


def packs():
    draws = Draws(9)
    for n in [64] * 40 + [1, 2, 15, 16, 17, 33, 63]:
        yield a_pack(f"plain, {n}", draws.values(n, -9, -1))
    # far from a power of two of the step, near it, and with steps that fall between two halves
    for power in (-20, -24, -26, -28, -40, -140, 15, 18, 20, 60, 120):
        yield a_pack(f"about 2^{power}", [f32(v * 2.0**power) for v in draws.values(64, -3, 0)])
    yield a_pack("zeros", [0.0] * 64)
    yield a_pack("minus zeros", [-0.0] * 20)
    yield a_pack("zeros, the first is minus", [-0.0, 0.0] * 10)
    for e in (1.0, -1.0):
        yield a_pack(f"one value {e}", [0.0] * 30 + [e] + [0.0] * 33)
        yield a_pack(f"one and its negative, {e}", [0.25, e, 0.5, -e] + draws.values(28, -3, -2))
        yield a_pack(f"half ways, {e}", [e * 127.0] + [i + 0.5 for i in range(-31, 31)])
        yield a_pack(f"half ways of int4, {e}", [e * 8.0] + [i / 2 for i in range(-15, 16)])
        yield a_pack(f"integers, {e}", [e * 8.0] + [float(i) for i in range(-7, 8)])
        for s in (7.5, 8.5, 7.0, 9.0, 6.5, 9.5, 6.0):
            yield a_pack(f"best at {s}, {e}", [e * s] + [e * draws.of([-7, -6, -5, -4, 4, 5, 6]) for _ in range(40)])
        yield a_pack(f"the largest step, {e}", [e * 65504.0 * 8.0, 1e5, f32(-3e5)])
        yield a_pack(f"beyond, {e}", [e * from32(0x7F7FFFFF), 1.0, f32(3e38)])
        yield a_pack(f"the least step, {e}", [e * 2.0**-21, f32(e * 2.0**-22), -0.0])
        yield a_pack(f"under it, {e}", [e * 2.0**-22, f32(e * 2.0**-23), 0.0])
        yield a_pack(f"a tie of the least step, {e}", [up(e * 2.0**-22), f32(e * 2.0**-24), 0.0])
    # half ways of a step that is no power of two: x * (1 / D) and x / D differ
    for _ in range(6):
        d = abs(draws.half(-8, 0))
        yield a_pack(f"half ways of int8, step {d}", [127.0 * d] + [(i + 0.5) * d for i in range(90, 126)])
        yield a_pack(f"half ways of int4, step {d}", [-8.0 * d] + [(i + 0.5) * d for i in range(-7, 7)])
    for group in NEAR:
        yield a_pack("two steps nearly as good", [from32(int(word, 16)) for word in group.split()])
    for odd in ([NAN], [INF], [-INF], [INF, NAN]):
        yield a_pack(f"{odd}", draws.sprinkle(draws.values(64), odd, 2))


def a_pack(name, x):
    (w4, d4), (w8, d8) = text.make_int4(x), text.make_int8(x)
    return {"name": name, "x": words(x), "int4": {"codes": signed(w4), "scale": words([d4])},
            "int8": {"codes": signed(w8), "scale": words([d8])}}


FILES = {"quantise": quantised, "packed": products, "stored": stored, "pack": packs}
