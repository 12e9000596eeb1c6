"""Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .settings import TrainingSettings


def orthogonalise(m: Float[Tensor, "n rows columns"], steps: int = 5) -> Float[Tensor, "n rows columns"]:
    """Nearest semi-orthogonal matrices, roughly: singular values go to about 1 (Newton-Schulz, as in Muon)."""
    x = m if m.shape[1] <= m.shape[2] else m.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x if m.shape[1] <= m.shape[2] else x.mT


class Muon:
    """Momentum, orthogonalised, for the matrices inside the layers (Jordan et al. 2024).

    `torch.optim.Muon` iterates in bfloat16, which CPUs without bfloat16 units emulate slowly; this is float32, and
    matrices of one shape are iterated together.
    """

    def __init__(self, weights: dict[str, Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.groups: dict[tuple, list[Tensor]] = {}
        for weight in weights.values():
            self.groups.setdefault(tuple(weight.shape), []).append(weight)
        self.buffers = {shape: torch.zeros(len(ws), *shape, device=ws[0].device) for shape, ws in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        lr = self.lr * rate
        for shape, weights in self.groups.items():
            gradient = torch.stack([w.grad for w in weights])
            buffer = self.buffers[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))  # Nesterov
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for weight, u in zip(weights, update, strict=True):
                weight.mul_(1 - lr * self.weight_decay).add_(u, alpha=-lr * scale)

    def state_dict(self) -> dict:
        return {"x".join(map(str, shape)): buffer for shape, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict) -> None:
        for shape, buffer in self.buffers.items():
            buffer.copy_(state["x".join(map(str, shape))])


class Optimiser:
    """Muon for the matrices inside the layers, AdamW for the rest."""

    def __init__(self, weights: dict[str, Tensor], settings: TrainingSettings) -> None:
        inner = {k: w for k, w in weights.items() if w.ndim == 2 and ".layers." in k}
        outer = [w for k, w in weights.items() if k not in inner]
        self.muon = Muon(inner, settings.muon_lr, settings.weight_decay)
        groups = [
            {"params": [w for w in outer if w.ndim == 2], "weight_decay": settings.weight_decay},
            {"params": [w for w in outer if w.ndim == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=settings.adam_lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.settings = settings

    def step(self, rate: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.settings.adam_lr * rate
        self.adam.step()
        self.muon.step(rate)

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
