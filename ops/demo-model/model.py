"""Qwen3-MoE and Qwen3 (dense) in plain PyTorch, made to train fast on a CPU.

In: token ids [B, S], positions [B, S], documents [B, S] or None (one document per row), and which positions of
the B*S are wanted. Out: their hidden states [N, H]; `logits` of them. Equal to the reference of the same name in `transformers`
(evaluate.py compares the logits).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Shape:
    vocab: int = 1024
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 8  # 0: dense
    top_k: int = 2
    width: int = 256  # of one expert, or of the dense feed-forward part
    context: int = 4096
    theta: float = 100_000.0
    eps: float = 1e-6

    def as_dict(self):
        return asdict(self)


MODEL = Shape()
DRAFT = Shape(layers=3, hidden=96, heads=3, kv_heads=3, head_dim=32, experts=0, top_k=0, width=192)


class Scatter(torch.autograd.Function):
    """x[T, H] -> x[order // K] [T*K, H]; the gradient is a gather too, which is what a CPU does well."""

    @staticmethod
    def forward(ctx, x, order, inverse, k):
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order.div(k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse).view(-1, ctx.k, grad.shape[1]).sum(1), None, None, None


class Unsort(torch.autograd.Function):
    """y[T*K, H] in expert order -> token order."""

    @staticmethod
    def forward(ctx, y, order, inverse):
        ctx.save_for_backward(order)
        return y.index_select(0, inverse)

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


class RmsNorm(torch.autograd.Function):
    """The CPU has no fused one with a gradient."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        r = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + eps)
        y = x * r
        ctx.save_for_backward(y, r, weight)
        return y * weight

    @staticmethod
    def backward(ctx, grad):
        y, r, weight = ctx.saved_tensors
        product = grad * y
        dot = (product @ weight) / y.shape[-1]
        return torch.addcmul(grad * weight, y, dot[..., None], value=-1) * r, product.reshape(-1, y.shape[-1]).sum(0), None


class Norm(nn.Module):
    def __init__(self, n: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return RmsNorm.apply(x.float(), self.weight, self.eps)


BLOCK = 256


def causal_blocks(q, k, v):
    """Causal attention of scaled queries, a block of them at a time: on a CPU, half the time of the fused one with its gradient."""
    future = torch.full((BLOCK, BLOCK), -1e4, dtype=q.dtype).triu(1)
    out = []
    for i, block in enumerate(q.split(BLOCK, 2)):
        end = (i + 1) * BLOCK
        scores = block @ k[:, :, :end].transpose(-1, -2) + F.pad(future, (end - BLOCK, 0))
        out.append(scores.softmax(-1) @ v[:, :, :end])
    return torch.cat(out, 2)


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q = nn.Parameter(torch.randn(s.heads * s.head_dim, s.hidden) * s.hidden**-0.5)
        self.k = nn.Parameter(torch.randn(s.kv_heads * s.head_dim, s.hidden) * s.hidden**-0.5)
        self.v = nn.Parameter(torch.randn(s.kv_heads * s.head_dim, s.hidden) * s.hidden**-0.5)
        self.o = nn.Parameter(torch.zeros(s.hidden, s.heads * s.head_dim))
        self.q_norm, self.k_norm = Norm(s.head_dim, s.eps), Norm(s.head_dim, s.eps)

    def forward(self, x, rope, mask):
        s, (b, n, _) = self.s, x.shape
        nq, nk = s.heads * s.head_dim, s.kv_heads * s.head_dim
        qkv = F.linear(x, torch.cat([self.q, self.k, self.v]))
        q = turn(self.q_norm(qkv[..., :nq].reshape(b, n, s.heads, s.head_dim)), *rope).transpose(1, 2)
        k = turn(self.k_norm(qkv[..., nq : nq + nk].reshape(b, n, s.kv_heads, s.head_dim)), *rope)
        v = qkv[..., nq + nk :].reshape(b, n, s.kv_heads, s.head_dim)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 2).transpose(1, 2) for t in (k, v))
        q, k = q.to(v.dtype), k.to(v.dtype)
        if mask is None and q.device.type == "cpu" and n % BLOCK == 0 and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                y = causal_blocks(q * s.head_dim**-0.5, k, v)
        elif mask is None or q.device.type != "cpu":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        else:  # in short rows, written out takes half the time
            with torch.autocast("cpu", enabled=False):
                scores = (q * s.head_dim**-0.5) @ k.transpose(-1, -2) + torch.where(mask, 0.0, -1e4).to(v.dtype)
                y = scores.softmax(-1) @ v
        return F.linear(y.transpose(1, 2).reshape(b, n, nq), self.o)


def turn(x, cos, sin):
    """Rotary embedding of x [B, S, heads, D] with cos, sin [B, S, 1, D] (the halves rotate against each other)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Experts(nn.Module):
    """Top-k of E gated feed-forward experts; probabilities of the chosen ones are made to sum to one."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.gate = nn.Parameter(torch.randn(s.experts, s.hidden) * s.hidden**-0.5)
        self.gate_up = nn.Parameter(torch.randn(2, s.experts, s.width, s.hidden) * s.hidden**-0.5)
        self.down = nn.Parameter(torch.zeros(s.experts, s.hidden, s.width))
        self.balance, self.use = torch.tensor(0.0), None

    def forward(self, x, keep=None):
        """x [T, H] -> [T, H], or [len(keep), H]: the gate sees every token, the experts only those that are kept."""
        s = self.s
        p = F.linear(x, self.gate).float().softmax(-1)  # [T, E]
        weight, chosen = p.topk(s.top_k, -1)  # [T, K]
        weight = weight / weight.sum(-1, keepdim=True)
        self.use = torch.bincount(chosen.reshape(-1), minlength=s.experts).float() / chosen.numel()  # share per expert [E]
        self.balance = s.experts * (self.use * p.mean(0)).sum()
        if keep is not None:
            x, weight, chosen = x[keep], weight[keep], chosen[keep]
        flat = chosen.reshape(-1)
        counts = torch.bincount(flat, minlength=s.experts)
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        sorted_x = Scatter.apply(x, order, inverse, s.top_k)
        parts = []
        # unbind, because the gradient of an index is a whole tensor of zeros for each expert
        for part, gate_up, down in zip(sorted_x.split(counts.tolist()), self.gate_up.unbind(1), self.down.unbind(0)):
            g, u = F.linear(part, gate_up.reshape(-1, s.hidden)).chunk(2, -1)
            parts.append(F.linear(F.silu(g) * u, down))
        y = Unsort.apply(torch.cat(parts), order, inverse).view(-1, s.top_k, s.hidden)
        return (y * weight[..., None].to(y.dtype)).sum(1)


class Dense(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2, s.width, s.hidden) * s.hidden**-0.5)
        self.down = nn.Parameter(torch.zeros(s.hidden, s.width))

    def forward(self, x, keep=None):
        x = x if keep is None else x[keep]
        return F.linear(F.silu(F.linear(x, self.gate_up[0])) * F.linear(x, self.gate_up[1]), self.down)


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.norm1, self.attention = Norm(s.hidden, s.eps), Attention(s)
        self.norm2, self.mlp = Norm(s.hidden, s.eps), Experts(s) if s.experts else Dense(s)

    def forward(self, x, rope, mask, keep=None):
        shape = x.shape
        x = (x + self.attention(self.norm1(x), rope, mask)).view(-1, shape[-1])
        y = self.mlp(self.norm2(x), keep)
        return (x + y).view(shape) if keep is None else x[keep] + y


class Model(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.embed = nn.Parameter(torch.randn(s.vocab, s.hidden))
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = Norm(s.hidden, s.eps)
        self.head = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.01)

    def forward(self, ids, position, document, keep):
        x = F.embedding(ids, self.embed)
        freq = self.s.theta ** (-torch.arange(0, self.s.head_dim, 2, device=ids.device).float() / self.s.head_dim)
        angle = position[..., None].float() * freq  # [B, S, D/2]
        rope = [torch.cat([f(angle)] * 2, -1)[:, :, None] for f in (torch.cos, torch.sin)]
        mask = None
        if document is not None:
            n = ids.shape[1]
            causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
            mask = ((document[:, :, None] == document[:, None, :]) & causal)[:, None]
        for layer in self.layers[:-1]:
            x = layer(x, rope, mask)
        return self.norm(self.layers[-1](x, rope, mask, keep))

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def balance(self):
        """Sum of the load-balance losses of the last forward; 1.0 per layer when the load is even."""
        return sum(layer.mlp.balance for layer in self.layers) if self.s.experts else torch.tensor(0.0)

    def use(self):
        return torch.stack([layer.mlp.use for layer in self.layers]) if self.s.experts else None


@torch.no_grad()
def lay_copying(model):
    """Lays a circuit that copies into the first two layers, which a small model finds late or never; training goes on from there.

    In the first layer a head looks at the token before and writes some of it into dimensions of its own; in the second
    the heads look for the place where that is the present token, and write down what stands there.
    """
    s = model.s
    d, half, kept = s.head_dim, s.head_dim // 2, s.head_dim
    content = torch.arange(1 + kept, s.hidden)  # dimension 0 is the same for all tokens, the next ones hold the token before
    model.embed[:, 0], model.embed[:, 1 : 1 + kept] = 3.0, 0.0
    model.head.copy_(model.embed * 0.05)
    seen = torch.linalg.qr(torch.randn(len(content), kept)).Q.T  # [kept, content]
    first, second = model.layers[0].attention, model.layers[1].attention
    # the same vector everywhere, in the keys turned by one position: where the two meet is the token before
    fast = torch.arange(5)
    angle = s.theta ** (-fast / half)
    first.q[:d], first.k[:d], first.v[:d] = 0.0, 0.0, 0.0
    first.q[fast, 0], first.k[fast, 0], first.k[fast + half, 0] = 1.0, angle.cos(), angle.sin()
    first.v[torch.arange(kept)[:, None], content] = seen
    first.o[torch.arange(1, 1 + kept), torch.arange(kept)] = 1.0
    # slow dimensions compare at any distance; each head compares other parts, and copies other parts
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half // 2, half) + half])
    second.q.zero_(), second.k.zero_(), second.v.zero_()
    for head, copied in enumerate(content.chunk(s.heads)):
        compared = torch.arange(head * half // 2, head * half // 2 + half) % kept
        second.q[(head * d + slow)[:, None], content] = seen[compared]
        second.k[head * d + slow, 1 + compared] = 1.0
        at = head * d + torch.arange(len(copied))
        second.v[at, copied], second.o[copied, at] = 1.0, 2.0
    for attention in (first, second):
        attention.q_norm.weight.fill_(2.0), attention.k_norm.weight.fill_(2.0)
