"""Muon for the hidden matrices, AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.part import setting
from chattune.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer


class Muon(Optimizer):
    """Step in the direction of the nearest orthogonal matrix to the momentum; embeddings, heads, norms and biases by AdamW.

    Every direction of a weight matrix moves by the same amount, also the rare ones that a plain gradient hardly moves.
    Helps when: pretraining from scratch; fewer steps to the same loss than AdamW.   Hurts when: batches are tiny (its cost a
    step does not shrink with them), or fine-tuning weights that AdamW trained.
    Cost: 4 bytes a matrix weight (AdamW: 8); some 20 matrix products of the layer's size a step.
    Start with: lr 0.02, adamw_lr as for AdamW alone times 3.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon, with their factor √max(1, rows/columns) on the rate; decoupled
    decay as in Liu et al. 2025, arXiv:2502.16982; instead of one fixed quintic the polynomials of Amsel et al. 2025,
    arXiv:2505.16932: five bring singular values from 0.001 of the norm on within a tenth of 1 (the fixed one: 0.7 to 1.2).
    Momentum is an average, (1 − μ)·g added: the scale cancels.
    """

    lr: float | None = setting(0.02, "peak learning rate of the matrices", above=0.0, high=10.0, log=True, search=(0.005, 0.05))
    adamw_lr: float = setting(3e-3, "peak learning rate of everything else", above=0.0, high=1.0, log=True, search=(5e-4, 1e-2))
    momentum: float = setting(0.95, "decay of the average of gradients; Nesterov's form", low=0.0, below=1.0, search=(0.9, 0.98))
    iterations: int = setting(5, "polynomials that orthogonalise; each more reaches four times smaller singular values", low=1, high=20)
    weight_decay: float = setting(0.1, "share of a weight removed a step, times its rate; not norms or biases", low=0.0, high=10.0)
    beta1: float = setting(0.9, "AdamW: decay of the mean of gradients", low=0.0, below=1.0)
    beta2: float = setting(0.95, "AdamW: decay of the mean of squared gradients", low=0.0, below=1.0)
    epsilon: float = setting(1e-8, "AdamW: added to the root of the second moment", above=0.0, high=1e-2, log=True)

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        from chattune.train.optimizers._muon import MuonWithAdamW

        torch_groups = []
        for group in groups:
            muon = group["role"] == "matrix"
            rate = self.peak if muon else self.adamw_lr
            momentum = {"momentum": self.momentum, "iterations": self.iterations}
            own = momentum if muon else {"betas": (self.beta1, self.beta2), "eps": self.epsilon}
            decay = self.weight_decay if group["decay"] else 0.0
            torch_groups.append({**group, **own, "muon": muon, "lr": rate, "base_lr": rate, "weight_decay": decay})
        return MuonWithAdamW(torch_groups)
