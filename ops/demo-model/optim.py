"""Muon for matrices and AdamW for the rest.

In: a model whose gradients are filled. Out: updated weights. Matrices of one size go through the
orthogonalisation together, since many small products are what costs here.
"""

import torch

# coefficients of the polar iteration (Amsel et al., "The Polar Express", 2025), five steps
POLAR = [(8.28721201814563, -23.595886519098837, 17.300387312530933), (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
         (3.9486908534822946, -2.908902115962949, 0.5518191394370137), (3.3184196573706015, -2.488488024314874, 0.51004894012372),
         (2.300652019954817, -1.6689039845747493, 0.4188073119525673)]
ADAM_NAMES = ("embed", "head", "gate", "norm")


def orthogonal(g: torch.Tensor, steps: int) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of g [N, R, C], R <= C, roughly."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    for a, b, c in POLAR[:steps]:
        for i in range(len(x)):
            gram = x[i] @ x[i].T
            x[i] = a * x[i] + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x[i]
    return x


def uses_adam(name: str) -> bool:
    return any(part.rstrip("12") in ADAM_NAMES or part in ("q_norm", "k_norm") for part in name.split("."))


class Optimizer:
    """`rate` multiplies both learning rates: the schedule is the caller's."""

    def __init__(self, model, muon=0.02, adam=3e-3, momentum=0.95, decay=0.01, steps=4):
        self.matrices = [p for n, p in model.named_parameters() if not uses_adam(n)]
        rest = [p for n, p in model.named_parameters() if uses_adam(n)]
        self.muon, self.adam_rate, self.momentum, self.decay, self.steps = muon, adam, momentum, decay, steps
        self.velocity = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate: float):
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * rate
        self.adam.step()
        by_size = {}
        for p, v in zip(self.matrices, self.velocity):
            v.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(v, self.momentum).reshape(-1, *p.shape[-2:])
            tall = update.shape[-2] > update.shape[-1]
            update = update.mT if tall else update
            by_size.setdefault(update.shape[-2:], []).append((p, update, tall))
        for items in by_size.values():
            done = orthogonal(torch.cat([u for _, u, _ in items]), self.steps).split([len(u) for _, u, _ in items])
            for (p, _, tall), u in zip(items, done):
                u = (u.mT if tall else u).reshape(p.shape)
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - self.muon * rate * self.decay).add_(u, alpha=-self.muon * rate * scale)

    def state_dict(self):
        return {"velocity": self.velocity, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        self.velocity = state["velocity"]
        self.adam.load_state_dict(state["adam"])
