"""The verdict in words: is the model worth talking to? Rules over the figures, written so that a reader can check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OVERLAP = ("bleu", "chrf", "rouge_l")  # metrics that compare a reply with what a person answered
NAMES = {
    "bits_per_byte": "bits per byte", "perplexity": "perplexity", "bleu": "BLEU", "chrf": "chrF", "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L", "distinct_1": "distinct-1", "distinct_2": "distinct-2", "repetition": "repetition",
    "empty": "empty replies", "length": "words a reply", "ngram": "n-gram model", "retrieval": "retrieval",
    "most_frequent": "most frequent reply",
}  # fmt: skip
MOST_EMPTY, MOST_STUCK = 0.05, 0.10  # shares of replies that a conversation bears

Scores = Mapping[str, Mapping[str, float]]


def said(name: str) -> str:
    """What a metric or a baseline is called in a sentence."""
    return NAMES.get(name, name.rpartition(".")[2].replace("_", " "))


def relation(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    """``"above"``, ``"below"`` or ``"level with"``: only intervals that do not touch tell a difference."""
    return "above" if ours["low"] > theirs["high"] else "below" if ours["high"] < theirs["low"] else "level with"


def verdict(
    metrics: Scores, baselines: Mapping[str, Scores], people: Scores, difference: Mapping[str, float] | None
) -> dict[str, Any]:
    """``{"answer", "text", "reasons", "against_ngram"}`` from scores; `difference`: bits per byte, model minus n-gram, paired.

    The answer is ``"yes"`` when the model predicts the test split better than the n-gram, its replies are not empty or stuck
    more often than people's and a margin, and no baseline's replies are clearly nearer to people's by every measure;
    ``"no"`` when it predicts worse or its replies break down; ``"not sure"`` otherwise.
    """
    against = _against_ngram(metrics, baselines, difference)
    broken = _broken(metrics, people)
    beaten = _beaten_by(metrics, baselines)
    reasons = [*_of_prediction(against, metrics, baselines, difference), *broken, *_of_replies(metrics, baselines)]
    talks = any(name in metrics for name in (*OVERLAP, "empty", "repetition"))
    if against == "worse" or broken:
        answer = "no"
    elif against in ("better", "slightly better") and talks and not beaten:
        answer = "yes"
    else:
        answer = "not sure"
    return {"answer": answer, "text": _text(answer, against, broken, beaten, talks), "reasons": reasons, "against_ngram": against}


def _against_ngram(metrics: Scores, baselines: Mapping[str, Scores], difference: Mapping[str, float] | None) -> str:
    """``better``/``worse``: the intervals are apart; ``slightly …``: they touch, but the paired difference is clear; ``level``."""
    theirs = baselines.get("ngram", {}).get("bits_per_byte")
    if theirs is None:
        return "unknown"
    apart = {"below": "better", "above": "worse"}.get(relation(metrics["bits_per_byte"], theirs))
    if apart:
        return apart
    if difference is not None and difference["high"] < 0:
        return "slightly better"
    if difference is not None and difference["low"] > 0:
        return "slightly worse"
    return "level"


def _broken(metrics: Scores, people: Scores) -> list[str]:
    found = []
    for name, most, what in (("empty", MOST_EMPTY, "empty"), ("repetition", MOST_STUCK, "stuck in a loop")):
        allowed = most + people.get(name, {"value": 0.0})["value"]
        if name in metrics and metrics[name]["value"] > allowed:
            found.append(f"{metrics[name]['value']:.0%} of its replies are {what}; more than {allowed:.0%} spoils a conversation.")
    return found


def _beaten_by(metrics: Scores, baselines: Mapping[str, Scores]) -> list[str]:
    """Baselines whose replies are nearer to people's by every overlap metric, intervals apart."""
    measured = [name for name in OVERLAP if name in metrics]
    return [
        baseline
        for baseline, scores in baselines.items()
        if measured and all(name in scores and relation(metrics[name], scores[name]) == "below" for name in measured)
    ]


def _of_prediction(against: str, metrics: Scores, baselines: Mapping[str, Scores], difference: Mapping[str, float] | None) -> list[str]:
    ours = metrics["bits_per_byte"]
    if against == "unknown":
        return [f"Bits per byte on the test split: {_interval(ours)}; no n-gram model was asked for to compare with."]
    theirs = baselines["ngram"]["bits_per_byte"]
    share = ours["value"] / theirs["value"] - 1 if theirs["value"] else 0.0
    how = {
        "better": "better, the intervals are apart", "worse": "worse, the intervals are apart",
        "slightly better": "better: the intervals touch, but on the same conversations the difference is clear",
        "slightly worse": "worse: the intervals touch, but on the same conversations the difference is clear",
        "level": "the intervals touch and so does the difference: level",
    }[against]  # fmt: skip
    paired = f" (difference {_interval(difference, '+.3f')})" if difference is not None else ""
    both = f"{_interval(ours)} against {_interval(theirs)} of the n-gram model, {share:+.1%}"
    return [f"Bits per byte on the test split: {both}: {how}{paired}."]


def _of_replies(metrics: Scores, baselines: Mapping[str, Scores]) -> list[str]:
    reasons = []
    for name in OVERLAP:
        told = [
            f"{relation(metrics[name], scores[name])} {said(baseline)} ({_number(name, scores[name]['value'])})"
            for baseline, scores in baselines.items()
            if name in metrics and name in scores
        ]
        if told:
            reasons.append(f"{said(name)} {_number(name, metrics[name]['value'])}: {', '.join(told)}.")
    return reasons


def _text(answer: str, against: str, broken: list[str], beaten: list[str], talks: bool) -> str:
    if answer == "yes":
        return "It predicts unseen conversations better than an n-gram model, and its replies hold together."
    if broken:
        return "Its replies break down too often."
    if answer == "no":
        return "An n-gram model predicts unseen conversations better: train longer, on more, or with a larger model."
    if not talks:
        return "It was not asked to reply, so only its predictions are known."
    if beaten:
        return f"{said(beaten[0]).capitalize()} gives replies that are nearer to what people said, by every measure."
    if against == "unknown":
        return "There is nothing here to compare its predictions with."
    return "It predicts unseen conversations about as well as an n-gram model, not clearly better."


def _interval(score: Mapping[str, float], form: str = ".3f") -> str:
    return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"


def _number(name: str, value: float) -> str:
    return f"{value:.1f}" if name in ("bleu", "chrf") else f"{value:.3f}"
