"""Maximum likelihood of the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.train.objectives import LossView, Objective

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.batch import Batch


class NextToken(Objective):
    """Mean negative log-likelihood of each target token given everything before it in its dialog (teacher forcing).

    Helps when: always the start; it is the objective that perplexity measures.   Hurts when: the model must recover from its own
    mistakes, which it never sees in training (exposure bias, E16).
    Cost: one forward and backward pass; logits only at positions that have a target, in pieces that fit the cache.
    Start with: this.
    Source: maximum likelihood; weighted by ``weights`` and normalised by their sum over the whole global batch.
    """

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        import torch

        from chattune.train.objectives._cross_entropy import linear_cross_entropy

        hidden = model.hidden(batch.inputs, batch.positions, batch.segments)
        chosen = batch.learned
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, chosen)
        targets, weights = batch.targets.view(-1)[chosen], batch.weights.view(-1)[chosen]
        matrix = model.head_weight()
        if full or matrix is None:
            logits = model.head(hidden)
            nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            loss = (weights * nll).sum() / weights.sum()
            return LossView(loss=loss, logits=logits, targets=targets, weights=weights, nll=nll.detach())
        loss, nll = linear_cross_entropy(hidden, matrix, targets, weights)
        return LossView(loss=loss, logits=lambda: model.head(hidden), targets=targets, weights=weights, nll=nll)
