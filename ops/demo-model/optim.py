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
    x = x.to(torch.bfloat16)
    for a, b, c in POLAR[:steps]:
        for i in range(len(x)):
            gram = x[i] @ x[i].T
            x[i] = a * x[i] + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x[i]
    return x.to(g.dtype)


def uses_adam(name: str) -> bool:
    return any(part.rstrip("12") in ADAM_NAMES or part in ("q_norm", "k_norm") for part in name.split("."))


class Optimizer:
    """Muon and AdamW over gradients that several processes hold; `rate` multiplies both learning rates.

    Work is cut into units (one parameter each), so that the processes share it. All state lies in shared
    memory. Unit 0 is everything that AdamW updates.
    """

    def __init__(self, model, workers: int, muon=0.02, adam=3e-3, momentum=0.95, decay=0.01, steps=4):
        named = list(model.named_parameters())
        self.grads = [{n: torch.zeros_like(p).share_memory_() for n, p in named} for _ in range(workers)]
        self.parameters = dict(named)
        self.velocity = {n: torch.zeros_like(p).share_memory_() for n, p in named}  # first moment
        self.second = {n: torch.zeros_like(p).share_memory_() for n, p in named if uses_adam(n)}
        self.muon, self.adam, self.momentum, self.decay, self.steps = muon, adam, momentum, decay, steps
        matrices = sorted((n for n, p in named if not uses_adam(n)), key=lambda n: -self.parameters[n].numel())
        self.units = [list(self.second)] + [[n] for n in matrices]

    def attach(self, worker: int):
        """Lets the backward pass of this process add into its own gradients, from zero."""
        for n, p in self.parameters.items():
            p.grad = self.grads[worker][n].zero_()

    @torch.no_grad()
    def update(self, unit: int, step: int, rate: float):
        for n in self.units[unit]:
            grad = sum(g[n] for g in self.grads[1:]) + self.grads[0][n] if len(self.grads) > 1 else self.grads[0][n]
            (self.update_adam if uses_adam(n) else self.update_muon)(n, grad, step, rate)

    def update_adam(self, n, grad, step, rate):
        first, second = self.velocity[n], self.second[n]
        first.lerp_(grad, 0.1)
        second.lerp_(grad * grad, 0.05)
        size = (second / (1 - 0.95 ** (step + 1))).sqrt_().add_(1e-8)
        self.parameters[n].data.addcdiv_(first, size, value=-self.adam * rate / (1 - 0.9 ** (step + 1)))

    def update_muon(self, n, grad, step, rate):
        p, v = self.parameters[n].data, self.velocity[n]
        v.lerp_(grad, 1 - self.momentum)
        update = grad.lerp(v, self.momentum).reshape(-1, *p.shape[-2:])
        tall = p.shape[-2] > p.shape[-1]
        update = orthogonal(update.mT if tall else update, self.steps)
        update = (update.mT if tall else update).reshape(p.shape)
        scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
        p.mul_(1 - self.muon * rate * self.decay).add_(update, alpha=-self.muon * rate * scale)

    def state_dict(self):
        return {"velocity": self.velocity, "second": self.second}

    def load_state_dict(self, state):
        for kind in ("velocity", "second"):
            for n, t in getattr(self, kind).items():
                t.copy_(state[kind][n])
