"""Retrieval: the reply that a person gave to the most similar question in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.evaluate.baselines import Baseline, Learned
from chattune.evaluate.baselines.most_frequent import most_frequent
from chattune.features import words

if TYPE_CHECKING:
    from bm25s import BM25

    from chattune.evaluate.exchanges import Exchange
    from chattune.tokens.token_set import TokenSet


class Retrieval(Baseline):
    """Answers with the reply to the training question whose words match best (BM25); without any match, with the commonest reply.

    Helps when: always: replies written by people, chosen without understanding, are a hard thing to beat on fluency.
    Hurts when: the training split is huge: it is indexed in memory.   Cost: seconds for 100k exchanges.   Start with: auto.
    Source: Robertson & Zaragoza 2009; the bm25s library (Lù 2024, arXiv:2407.03618), its ``lucene`` variant.
    """

    k1: float = setting(1.5, "how soon a repeated word stops counting", low=0.0, high=10.0)
    b: float = setting(0.75, "how much long questions are discounted", low=0.0, high=1.0)
    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese questions, else runs of letters and digits")

    def learn(self, exchanges: Sequence[Exchange], tokens: TokenSet) -> Learned:
        import bm25s

        questions = [exchange.question for exchange in exchanges]
        split = words.splitter(words.chosen(self.word, questions))
        index = bm25s.BM25(k1=self.k1, b=self.b)
        corpus = [_terms(question, split) for question in questions]
        if any(corpus):
            index.index(corpus, show_progress=False)
        replies = [exchange.reply for exchange in exchanges]
        return _Index(index if any(corpus) else None, split, replies, most_frequent(replies))


class _Index(Learned):
    def __init__(self, index: BM25 | None, split: words.Words, answers: list[str], otherwise: str) -> None:
        self.index, self.split, self.answers, self.otherwise = index, split, answers, otherwise

    def replies(self, prompts: Sequence[Exchange], seed: int) -> list[str]:
        return [self._nearest(prompt.question) for prompt in prompts]

    def _nearest(self, question: str) -> str:
        known = [term for term in _terms(question, self.split) if self.index is not None and term in self.index.vocab_dict]
        if self.index is None or not known:
            return self.otherwise
        scores = self.index.get_scores(known)
        return self.answers[int(scores.argmax())] if scores.max() > 0 else self.otherwise


def _terms(text: str, split: words.Words) -> list[str]:
    """Words; for a text without any (a smiley, marks) its characters in pairs."""
    found = split(text)
    if found:
        return found
    letters = "".join(text.split())
    return [letters[place : place + 2] for place in range(max(len(letters) - 1, 1))] if letters else []
