"""AdamW on torch's fused implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.part import setting
from chattune.train.optimizers import Optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay: the decay shrinks weights directly and does not pass through the moments.

    Helps when: almost always; the safe default.   Hurts when: memory is very short (two numbers a weight).
    Cost: 8 bytes a parameter.   Start with: lr 1e-3 for 5M parameters, 3e-4 for 100M; decay 0.1.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101. β2 is 0.95 as is usual for language models (Adam's paper: 0.999, see E5).
    """

    beta1: float = setting(0.9, "decay of the mean of gradients", low=0.0, below=1.0)
    beta2: float = setting(0.95, "decay of the mean of squared gradients", low=0.0, below=1.0, search=[0.9, 0.95, 0.99, 0.999])
    epsilon: float = setting(1e-8, "added to the root of the second moment", above=0.0, high=1e-2, log=True)
    weight_decay: float = setting(0.1, "share of a weight removed a step, times the rate; not norms or biases", low=0.0, high=10.0)

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        import torch

        torch_groups = [
            {**group, "lr": self.peak, "base_lr": self.peak, "weight_decay": self.weight_decay if group["decay"] else 0.0}
            for group in groups
        ]
        return torch.optim.AdamW(torch_groups, betas=(self.beta1, self.beta2), eps=self.epsilon, fused=True)
