"""Stochastic gradient descent, plain or with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.part import setting
from chattune.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer


class SGD(Optimizer):
    """Step down the gradient, with momentum if wanted.

    Helps when: as a plain baseline, and where noise in the steps helps (convolutional classifiers).   Hurts when: gradients of
    layers or words differ in scale, as in transformers: use adamw or muon.
    Cost: 4 bytes a parameter with momentum, none without.   Start with: lr 0.1, momentum 0.9.
    Source: Robbins & Monro 1951; Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013. PyTorch's convention:
    v ← ρv + g, θ ← θ − αv; it equals Δθ ← ρΔθ − αg as long as α stays. Weight decay w is added to the gradient (L2 of strength w;
    decoupled decay of αw a step is the same thing here, and is not under Adam).
    """

    lr: float | None = setting(0.1, "peak learning rate", above=0.0, high=10.0, log=True, search=(1e-3, 1.0))
    momentum: float = setting(0.9, "share of the last step that goes on; 0: plain descent", low=0.0, below=1.0, search=[0.0, 0.9, 0.99])
    nesterov: bool = setting(False, "take the gradient where the momentum leads")
    weight_decay: float = setting(0.0, "strength of L2: matrices and embeddings only", low=0.0, high=1.0)

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        import torch

        torch_groups = [
            {**group, "lr": self.peak, "base_lr": self.peak, "weight_decay": self.weight_decay if group["decay"] else 0.0}
            for group in groups
        ]
        return torch.optim.SGD(torch_groups, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0)
