"""Draws that several initializers share. Fresh weights are leaves of the graph: they are filled through a detached view."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TABLE_STD = 0.02  # of token tables, whose fans say nothing; Radford et al. 2019 (GPT-2)


def normal(weight: Tensor, std: float, random: torch.Generator) -> None:
    """N(0, std²): the second number is the standard deviation, not the variance (E6)."""
    weight.detach().normal_(0.0, std, generator=random)


def uniform(weight: Tensor, bound: float, random: torch.Generator) -> None:
    """Uniform on [−bound, bound], whose variance is bound²/3."""
    weight.detach().uniform_(-bound, bound, generator=random)


def table(weight: Tensor, random: torch.Generator) -> None:
    """A token table: normal with standard deviation 0.02."""
    normal(weight, TABLE_STD, random)
