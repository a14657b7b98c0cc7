"""Vectors of 2. to 5.: dot products, functions, attention, gate."""

import math

import arithmetic as text
from draws import INF, NAN, Draws, down, f32, flat, from32, halves, up, words

LENGTHS = [1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 79, 100, 127, 128, 130, 255, 256, 257,
           300]


# ------------------------------------------------------------------ 2. dot product
def dots():
    draws = Draws(2)
    kinds = {
        "plain": lambda n: (draws.values(n), draws.values(n)),
        "far apart": lambda n: (draws.values(n, -40, 40), draws.values(n, -40, 40)),
        "cancelling": lambda n: (draws.values(n, 0, 0), [draws.of([1.0, -1.0]) for _ in range(n)]),
        "into subnormals": lambda n: (draws.values(n, -76, -70), draws.values(n, -76, -70)),
        "subnormal": lambda n: ([from32(draws.getrandbits(20)) for _ in range(n)], draws.values(n, -2, 2)),
        "near 2^-100": lambda n: (draws.values(n, -101, -99), draws.values(n, -25, 5)),
        "ends of the range": lambda n: (draws.values(n, 60, 64), draws.values(n, 55, 62)),
    }
    yield {"name": "nothing", "a": "", "b": "", "dot": words([text.dot([], [])]), "sum": words([text.total([])])}
    for name, kind in kinds.items():
        for n in LENGTHS if name == "plain" else [5, 16, 19, 33, 70, 131]:
            yield a_dot(f"{name}, {n}", *kind(n))
    for odd in ([0.0, -0.0], [INF], [INF, -INF], [NAN], [-INF, 0.0]):
        for n in (3, 16, 37):
            a, b = draws.values(n), draws.values(n)
            yield a_dot(f"{odd} among {n}", draws.sprinkle(a, odd, 2), draws.sprinkle(b, odd, 1))
    for n in (1, 16, 17, 33):
        yield a_dot(f"minus zero, {n}", [f32(1e-30)] * n, [f32(-1e-30)] * n)
        yield a_dot(f"zeros, {n}", [-0.0] * n, [1.0] * n)
    for tokens, rows, k in ((1, 3, 5), (5, 37, 45), (3, 18, 64), (2, 33, 131), (9, 2, 17)):
        x = [draws.values(k, -20, 3) for _ in range(tokens)]
        w = [draws.values(k, -20, 3) for _ in range(rows)]
        bias = draws.values(rows)
        out = [[text.add(text.dot(a, b), c) for b, c in zip(w, bias)] for a in x]
        yield {"name": f"projection {tokens} x {k} x {rows}", "k": k, "x": words(flat(x)), "w": words(flat(w)),
               "bias": words(bias), "out": words(flat(out))}


def a_dot(name, a, b):
    return {"name": name, "a": words(a), "b": words(b), "dot": words([text.dot(a, b)]), "sum": words([text.total(a)])}


# ------------------------------------------------------------------ 3. functions
def functions():
    draws = Draws(3)
    limit = f32(88.72284)
    edges = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, limit, up(limit), down(limit), -104.0, up(-104.0), down(-104.0),
             f32(-103.97207), f32(-103.97208), f32(-103.97209), f32(-87.33654), f32(-87.33655), f32(1e-45), f32(-1e-45),
             from32(1), from32(0x80000001), f32(1e-38), f32(3e38), f32(-3e38), 88.0, 88.5]
    # where n goes from one integer to the next
    ties = [f32((k + 0.5) * math.log(2)) for k in range(-150, 128, 7)]
    ties = flat([v, up(v), down(v)] for v in ties)
    # where another pair of LN2_HI, LN2_LO (3f317218, b102e308: all of ln 2 that fits, and the rest) gives other bits
    tells = [0x42479AA0, 0xC295B94C, 0xC2479917, 0xC2B909BA, 0xC2B8E1D6, 0xC2B7C113, 0xC2B906D5, 0xC2B7C911, 0xC247A486,
             0xC2B7CA29, 0x42479897, 0xC2B7D824]
    ties += map(from32, tells)
    x = edges + ties + draws.values(500, -4, 6) + draws.values(100, -30, 6) + draws.values(100, 5, 6)
    x += [f32(-87.0 - i * 0.0425) for i in range(400)]  # into the subnormals
    yield {"name": "exp", "x": words(x), "y": words(map(text.exp, x))}
    x = edges + draws.values(300, -4, 6)
    x += [-v for v in x]
    yield {"name": "sigmoid", "x": words(x), "y": words(map(text.sigmoid, x))}
    to, y = draws.values(len(x)), draws.values(len(x), -6, 6)
    yield {"name": "gated", "to": words(to), "from": words(y), "logits": words(x),
           "y": words(text.add(a, text.mul(text.sigmoid(b), c)) for a, b, c in zip(to, x, y))}
    g = x + [v for v in edges for _ in range(3)]
    u = draws.values(len(x), -3, 8) + [v for _ in edges for v in (INF, -0.0, NAN)]
    yield {"name": "swiglu", "gate": words(g), "up": words(u), "y": words(map(text.swiglu, g, u))}
    for alpha, limit in ((f32(1.702), 7.0), (f32(1.702), 0.25), (1.0, 5.0)):
        near = [limit, -limit, up(limit), down(limit), -up(limit), -down(limit), INF, -INF, NAN, 0.0, -0.0]
        pairs = [(a, b) for a in near for b in near] + list(zip(draws.values(300, -4, 5), draws.values(300, -4, 5)))
        g, u = map(list, zip(*pairs))
        y = [text.clamped_swiglu(a, b, alpha, limit) for a, b in pairs]
        yield {"name": f"clamped {limit}", "alpha": words([alpha]), "limit": words([limit]), "gate": words(g),
               "up": words(u), "y": words(y)}
    yield from norms(draws)
    for width in (2, 6, 34):
        x, half = draws.values(width, -5, 5), width // 2
        cos, sin = draws.values(half, -9, -1), draws.values(half, -9, -1)
        halves_, pairs = list(x), list(x)
        for i in range(half):
            halves_[i], halves_[i + half] = text.rotate(x[i], x[i + half], cos[i], sin[i])
            pairs[2 * i], pairs[2 * i + 1] = text.rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i])
        yield {"name": f"rotary {width}", "x": words(x), "cos": words(cos), "sin": words(sin),
               "halves": words(halves_), "pairs": words(pairs)}


def norms(draws):
    kinds = {"plain": (-12, 0), "tiny": (-75, -68), "large": (50, 66), "subnormal squares": (-90, -72)}
    for name, (low, high) in kinds.items():
        for n in (1, 3, 16, 31, 64, 90):
            for eps in (f32(1e-5), f32(1e-6), 0.0):
                x, w = draws.values(n, low, high), None if draws.below(3) == 0 else draws.values(n)
                yield a_norm(f"norm, {name}, {n}", x, w, eps)
    for n in (3, 5, 6, 7, 11, 13) * 6:
        yield a_norm(f"norm of few, {n}", draws.values(n, -2, 0), None, draws.of([f32(1e-6), 0.0]))
    for odd in ([0.0, -0.0], [INF], [NAN]):
        yield a_norm(f"norm with {odd}", draws.sprinkle(draws.values(20), odd, 3), draws.values(20), f32(1e-6))
    yield a_norm("norm of zeros", [-0.0] * 17, None, f32(1e-6))
    yield a_norm("norm of zeros without eps", [0.0] * 4, None, 0.0)


def a_norm(name, x, w, eps):
    return {"name": name, "x": words(x), "weight": words(w), "eps": words([eps]), "y": words(text.rms_norm(x, w, eps))}


# ------------------------------------------------------------------ 4. attention
def attention():
    draws = Draws(4)
    rows = [(0, 0, None), (15, 0, None), (16, 0, 0.5), (63, 3, None), (255, 0, None), (256, 0, None),
            (257, 257, None), (288, 251, -1.0), (288, 0, 3.0), (288, 17, -INF), (288, 256, -300.0),
            (270, 0, 1.0), (280, 3, None), (284, 40, -0.5)]
    longer = [(529, 1, None), (511, 256, None), (512, 255, None), (529, 0, None), (529, 0, 200.0), (529, 511, None),
              (529, 513, 1.0), (525, 200, 0.75), (520, 0, None)]
    for form in ("f32", "f16"):
        length = 530 if form == "f32" else 289
        k = [draws.values(17, -6, 1) for _ in range(length)]
        v = [draws.values(3, -6, 1) for _ in range(length)]
        if form == "f16":
            odd = [65504.0, 65519.0, 65520.0, -70000.0, INF, -INF, f32(2.0**-25), f32(3 * 2.0**-25), up(2.0**-25), -0.0,
                   1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, f32(1e-7), f32(-1e-9)]
            v = [draws.sprinkle(row, odd, 1) if draws.below(3) == 0 else row for row in v]
            k = [draws.sprinkle(row, odd[6:], 1) for row in k]
        yield attended(draws, f"long, {form}", form, k, v, rows + (longer if form == "f32" else []), f32(0.7))
        # where every position counts, and where one alone does
        for scale in (f32(0.01), 30.0):
            k = [draws.values(33, -3, 1) for _ in range(20)]
            v = [draws.values(17, -6, 1) for _ in range(20)]
            few = [(19, 0, None), (19, 7, 0.0), (18, 17, None)]
            yield attended(draws, f"scaled by {scale}, {form}", form, k, v, few, scale)
        for odd in (INF, -INF, NAN, f32(3e38)):
            k, v = [draws.values(3) for _ in range(300)], [draws.values(2) for _ in range(300)]
            k[45:250], v[45:250] = [[0.5] * 3] * 205, [[-0.25] * 2] * 205
            k[20][1], v[270][1] = odd, odd
            # before the odd key, with it, behind it, with the odd value
            few = [(19, 0, 0.125), (20, 0, None), (25, 0, 0.125), (40, 21, None), (280, 21, None), (299, 10, 0.5),
                   (20, 20, None), (20, 20, -1.0)]
            yield attended(draws, f"{odd} somewhere, {form}", form, k, v, few, 1.0)
        # latent attention: a value is the first columns of its key
        k = [draws.values(37, -6, 1) for _ in range(30)]
        yield attended(draws, f"latent, {form}", form, k, [row[:24] for row in k], [(29, 0, None), (29, 10, 0.5)], 0.125)


def attended(draws, name, form, k, v, rows, scale):
    stored = (lambda x: [text.kv_f16(y) for y in x]) if form == "f16" else list
    keys, values = list(map(stored, k)), list(map(stored, v))
    case = {"name": name, "form": form, "key_width": len(k[0]), "value_width": len(v[0]), "scale": words([scale]),
            "rows": []}
    latent = all(key[:len(value)] == value for key, value in zip(k, v))
    for kind, rows_, stored_ in (("keys", k, keys), ("values", v, values))[:1 if latent else 2]:
        case[kind] = words(flat(rows_))
        if form == "f16":
            case[f"stored_{kind}"] = halves(flat(stored_))
    for turn, (p, lo, sink) in enumerate(rows):
        # every second row gives all positions about the same weight
        q = draws.values(len(k[0]), -4, 2) if turn % 2 else draws.values(len(k[0]), -8, -3)
        out = text.attention(q, keys, values, lo, p, scale, sink)
        case["rows"].append({"position": p, "first": lo, "sink": None if sink is None else words([sink]),
                             "q": words(q), "out": words(out)})
    return case


# ------------------------------------------------------------------ 5. gate
SCORES = ("softmax", "sigmoid", "softmax_of_selected", "sigmoid_of_selected")
TINY = f32(1e-20)


def gates():
    draws = Draws(5)
    for case in range(96):
        count, size = 1 + draws.below(4), 2 + draws.below(12)
        groups = (count, 1 + draws.below(count), draws.of(["largest", "two"])) if draws.below(2) else None
        n = count * size
        k = 1 + draws.below(groups[1] * size if groups else n)
        kind = draws.of(["ties", "plain", "odd"])
        logits = {"ties": lambda: [draws.of([-1.0, -0.0, 0.0, 0.5, 2.0]) for _ in range(n)],
                  "plain": lambda: draws.values(n, -8, 5),
                  "odd": lambda: draws.sprinkle(draws.values(n, -2, 2), [NAN, INF, -INF, -0.0, 0.0], 3)}[kind]()
        correction = None
        if draws.below(3) == 0:
            correction = draws.values(n, -6, 0) if kind == "plain" else [draws.of([0.0, -0.5, 0.5]) for _ in range(n)]
        yield a_gate(f"{kind} {case}", logits, k, SCORES[case % 4], correction, groups,
                     draws.of([None, 0.0, TINY]), draws.of([1.0, 2.5, 16.0]))
    # a sum of more than 16: lanes
    for score in SCORES:
        yield a_gate(f"forty {score}", draws.values(60, -3, 3), 40, score, None, None, 0.0, 1.0)
        yield a_gate(f"nine {score}", draws.values(60, -3, 3), 9, score, draws.values(60, -4, 0), None, TINY, 2.5)
    # a sum that 1e-20 is a part of, and one of nothing
    yield a_gate("far below", draws.values(8, 5, 5)[:7] + [-40.0], 3, "sigmoid", None, None, TINY, 1.0)
    yield a_gate("tiny sums", [-45.0, -46.5, -44.0, -47.25], 3, "sigmoid", None, None, TINY, 2.5)
    yield a_gate("sum of nothing", [-200.0] * 4, 2, "sigmoid", None, None, 0.0, 1.0)
    yield a_gate("sum of nothing, 1e-20", [-200.0] * 4, 2, "sigmoid", None, None, TINY, 1.0)
    # NaN in a group that is taken comes before what is in no group; a group of NaN comes last
    yield a_gate("NaN in a taken group", [5.0, NAN, 1.0, 0.5, NAN, NAN], 2, "softmax_of_selected", None,
                 (3, 1, "largest"), None, 1.0)
    yield a_gate("NaN beside a large one", [5.0, NAN, 1.0, 0.5, NAN, NAN], 2, "softmax_of_selected", None,
                 (3, 1, "two"), None, 1.0)
    yield a_gate("groups of minus infinity and NaN", [NAN, NAN, -INF, -INF, -INF, 1.0], 4, "sigmoid_of_selected", None,
                 (3, 2, "two"), None, 1.0)
    yield a_gate("all NaN", [NAN] * 6, 3, "softmax", None, None, 0.0, 1.0)
    yield a_gate("equal groups", [1.0, 0.0, 0.0, 1.0, 1.0, -0.0], 2, "sigmoid", None, (3, 2, "two"), TINY, 1.0)


def a_gate(name, logits, k, score, correction, groups, normalise, scale):
    ids, weights = text.gate(logits, k, score, correction, groups, normalise, scale)
    return {"name": f"{name}: {score}", "logits": words(logits), "top_k": k, "score": score,
            "correction": words(correction), "groups": groups and dict(zip(("count", "taken", "score"), groups)),
            "normalise": None if normalise is None else words([normalise]), "scale": words([scale]), "ids": ids,
            "weights": words(weights)}


FILES = {"dot": dots, "functions": functions, "attention": attention, "gate": gates}
