"""The n-gram model over the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.evaluate.baselines import Baseline, Learned

if TYPE_CHECKING:
    import numpy as np

    from chattune.evaluate.exchanges import Exchange
    from chattune.evaluate.kneser_ney import KneserNey
    from chattune.evaluate.loss import SplitLoss
    from chattune.tokens.token_set import TokenSet, TokenSplit


class NGram(Baseline):
    """Interpolated modified Kneser-Ney over the same tokens and targets as the model: the bar for bits per byte.

    Helps when: always: a neural model that does not beat it has not learned more than phrases.
    Hurts when: the training split does not fit into memory (about 300 bytes a token while learning).
    Cost: 5 s for 2.7M tokens on one core, 1 s to score 400k.   Start with: order 5; 4 is as good below 1M tokens.
    Source: Chen & Goodman 1999; see ``kneser_ney.py``.
    """

    order: int = setting(5, "longest sequence of tokens that is counted", low=1, high=8)
    temperature: float = setting(0.7, "of its sampled replies", low=0.05, high=2.0)
    max_tokens: int = setting(64, "longest reply, in tokens", low=1, high=1024)

    def learn(self, exchanges: Sequence[Exchange], tokens: TokenSet) -> Learned:
        from chattune.evaluate.kneser_ney import KneserNey

        train = tokens.split("train")
        model = KneserNey(train.ids, train.offsets, train.weights > 0, tokens.tokenizer.vocabulary, self.order)
        return _Phrases(self, model, tokens)


class _Phrases(Learned):
    def __init__(self, settings: NGram, model: KneserNey, tokens: TokenSet) -> None:
        self.settings, self.model, self.tokens = settings, model, tokens

    def loss(self, split: TokenSplit) -> SplitLoss:
        from chattune.evaluate.loss import score_tokens

        lengths = self.tokens.tokenizer.byte_lengths
        return score_tokens(split, lengths, self.model.log_probabilities(split.ids, split.offsets))

    def replies(self, prompts: Sequence[Exchange], seed: int) -> list[str]:
        from chattune.core.seeds import generator

        return [self._reply(prompt, generator(seed, "ngram", place)) for place, prompt in enumerate(prompts)]

    def _reply(self, prompt: Exchange, random: np.random.Generator) -> str:
        tokenizer = self.tokens.tokenizer
        ids = self.tokens.template.prompt(prompt.history)[-self.settings.order :]
        said: list[int] = []
        while len(said) < self.settings.max_tokens:
            chances = self.model.distribution([*ids, *said])
            chances = (chances / chances.max()) ** (1 / self.settings.temperature)
            token = int(random.choice(len(chances), p=chances / chances.sum()))
            if token in tokenizer.ends:
                break
            said.append(token)
        return tokenizer.decode(said)
