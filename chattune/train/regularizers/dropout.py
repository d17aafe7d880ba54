"""Random zeros inside the model while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel


class Dropout(Regularizer):
    """Set a share of the activations to zero at random in training and scale up the others, so that the mean stays.

    `drop` is the probability of going, PyTorch's p; the probability of staying is `keep = 1 − drop`, the p of the original
    paper (E4). Nothing is dropped or scaled when the model replies.
    Helps when: several epochs over little data.   Hurts when: data is seen once; the model is small for its data.
    Cost: up to a third of the step on a processor.   Start with: drop 0.1; 0.2 for few data.
    Source: Srivastava et al. 2014, JMLR 15, in the inverted form. Where it is applied is the family's choice. It replaces the
    family's own setting.
    """

    drop: float = setting(0.1, "probability that a number is set to zero in training", low=0.0, below=1.0, search=(0.0, 0.3))

    @property
    def keep(self) -> float:
        """Probability that a number stays."""
        return 1 - self.drop

    def edit(self, model: LanguageModel) -> None:
        model.set_dropout(self.drop)
