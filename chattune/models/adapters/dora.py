"""Weight-decomposed low-rank adaptation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.models.adapters.lora import LoRA

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class DoRA(LoRA):
    """LoRA for the direction of each unit's weights, and one learned number for their length.

    Helps when: the rank is low (4 to 8); it learns more like a full update than LoRA of the same rank.   Hurts when: time is short.
    Cost: as LoRA, and one more pass over every output in training; nothing when decoding: it merges.
    Start with: as LoRA, with half its rank.
    Source: Liu et al. 2024, arXiv:2402.09353. The length of the sum counts as a constant in the gradient (their section 4.3).
    """

    def attach(self, model: LanguageModel, seed: int = 0) -> None:
        from chattune.models.adapters import _attached
        from chattune.models.adapters._low_rank import Magnitudes

        _attached.attach(self, model, seed, Magnitudes)

    def exported(self, model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """peft's DoRA."""
        from chattune.models.adapters import _attached

        return _attached.tensors(model), _attached.config(self, model, weighted=True)
