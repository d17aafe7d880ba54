"""Low-rank adaptation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from chattune.core.part import setting
from chattune.models.adapters import Adapter

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class LoRA(Adapter):
    """Add to each matrix the product of two thin ones, and learn only these.

    Helps when: a pretrained model is fine-tuned on little data or in little memory; it forgets less than when all weights learn.
    Hurts when: much is to be learned that the model never saw (a new language, a large domain): train all weights then.
    Cost: no gradient and no moments for the frozen weights, which is most of the memory of training; two thirds of the time of
    a full update. Nothing when decoding: it merges.   Start with: rank 16, alpha 32, all matrices; adamw at 0.5 / width.
    Source: Hu et al. 2021, arXiv:2106.09685; rank-stabilised scale: Kalajdzievski 2023, arXiv:2312.03732; four-bit base (QLoRA):
    Dettmers et al. 2023, arXiv:2305.14314. Queries, keys and values (gate and up) have a pair each, though they are stored as one.
    """

    rank: int = setting(16, "columns of the thin matrices", low=1, high=4096, log=True, search=[4, 8, 16, 32, 64])
    alpha: float = setting(32.0, "their product is multiplied by alpha / rank", above=0.0, high=65536.0, log=True, search=(8, 128))
    rank_stabilised: bool = setting(False, "by alpha / √rank instead, which keeps high ranks from learning slower")
    targets: tuple[str, ...] = setting((), "maps to adapt, by name or pattern (q_proj, blocks.*.attention); none: all but the head")
    dropout: float = setting(0.0, "share of a map's input dropped (not kept) on the way to the thin matrices", low=0.0, below=1.0)
    base: Literal["full", "nf4"] = setting(
        "full", "frozen matrices as they are, or in 4 bits each: an eighth of the memory, some of the precision, slower on processors"
    )

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def attach(self, model: LanguageModel, seed: int = 0) -> None:
        from chattune.models.adapters import _attached
        from chattune.models.adapters._low_rank import LowRank

        _attached.attach(self, model, seed, LowRank)

    def merge(self, model: LanguageModel) -> None:
        from chattune.models.adapters import _attached

        _attached.merge(model)

    def detach(self, model: LanguageModel) -> None:
        from chattune.models.adapters import _attached

        _attached.detach(model)

    def exported(self, model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """peft's LoRA."""
        from chattune.models.adapters import _attached

        return _attached.tensors(model), _attached.config(self, model, weighted=False)

    def load_exported(self, model: LanguageModel, tensors: dict[str, Tensor]) -> None:
        from chattune.models.adapters import _attached

        _attached.load(model, tensors)
