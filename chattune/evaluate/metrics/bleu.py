"""BLEU by sacrebleu, with a bootstrap over its sufficient statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from chattune.core.part import setting
from chattune.evaluate import bootstrap, words
from chattune.evaluate.metrics import Item, Metric, Score

ORDERS = 4


class BLEU(Metric):
    """Word sequences of one to four that reply and reference share, 0 to 100: precision, with a penalty for short replies.

    Helps when: replies have one right answer, or two models are compared on the same prompts.
    Hurts when: many answers are good: open chat scores low for everybody, so read it beside the baselines.
    Cost: milliseconds.   Start with: auto.
    Source: Papineni et al. 2002; sacrebleu (Post 2018, arXiv:1804.08771), exponential smoothing. Tokenisation: ``zh`` for
    mostly Chinese references, ``13a`` otherwise, unless set.
    """

    tokenize: Literal["auto", "13a", "zh", "char", "intl"] = setting("auto", "tokenisation of sacrebleu; auto: by the references")

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from sacrebleu.metrics import bleu

        tokenize = self.tokenize
        if tokenize == "auto":
            tokenize = "zh" if words.is_chinese(item.reference for item in items) else "13a"
        judge = bleu.BLEU(tokenize=tokenize, force=True)
        judge.num_refs = 1
        note = str(judge.get_signature())
        if not items:
            return Score(0.0, 0.0, 0.0, note=note)
        rows = np.array(judge._extract_corpus_statistics([item.reply for item in items], [[item.reference for item in items]]))
        sums = bootstrap.by_conversation([item.conversation for item in items], rows)
        return Score(*bootstrap.interval(sums, _bleu, seed), tuple(_bleu(rows, effective=True)), note)


def _bleu(totals: np.ndarray, effective: bool = False) -> np.ndarray:
    """(n, 2 + 2 * ORDERS) lengths of reply and reference, matches and totals by order → (n,) BLEU.

    `effective`: average over the orders that the reply is long enough for, as sacrebleu does for single sentences.
    """
    reply, reference = totals[:, 0], totals[:, 1]
    correct, total = totals[:, 2 : 2 + ORDERS], totals[:, 2 + ORDERS :]
    missing = (correct == 0) & (total > 0)
    halvings = np.cumsum(missing, axis=1)  # each order without a match counts half as much as the one before
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(missing, 100.0 / (2.0**halvings * total), 100.0 * correct / total)
        logs = np.where(total > 0, np.log(precision), 0.0 if effective else -np.inf)
        orders = np.maximum((total > 0).sum(axis=1), 1) if effective else ORDERS
        brevity = np.where(reply > 0, np.exp(np.minimum(0.0, 1 - reference / reply)), 0.0)
    score: np.ndarray = np.where(correct.any(axis=1), brevity * np.exp(logs.sum(axis=1) / orders), 0.0)
    return score
