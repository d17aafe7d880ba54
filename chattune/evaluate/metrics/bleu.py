"""BLEU by sacrebleu, with a bootstrap over its sufficient statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from chattune.core.part import setting
from chattune.evaluate.metrics import Item, Metric, Score
from chattune.features import words


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

        from chattune.evaluate import bootstrap, overlap

        tokenize = self.tokenize
        if tokenize == "auto":
            tokenize = "zh" if words.is_chinese(item.reference for item in items) else "13a"
        judge = bleu.BLEU(tokenize=tokenize, force=True)
        judge.num_refs = 1
        note = str(judge.get_signature())
        if not items:
            return Score(0.0, 0.0, 0.0, note=note)
        rows = judge._extract_corpus_statistics([item.reply for item in items], [[item.reference for item in items]])
        sums = bootstrap.by_conversation([item.conversation for item in items], rows)
        return Score(*bootstrap.interval(sums, overlap.bleu, seed), tuple(overlap.bleu(rows, effective=True).tolist()), note)
