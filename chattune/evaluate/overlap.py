"""BLEU and chrF from their sufficient statistics, many at a time: what a bootstrap needs. The counting is sacrebleu's."""

from __future__ import annotations

import numpy as np

ORDERS = 4


def bleu(totals: np.ndarray, effective: bool = False) -> np.ndarray:
    """(n, 2 + 2 * ORDERS) lengths of reply and reference, matches and totals by order → (n,) BLEU.

    `effective`: average over the orders that the reply is long enough for, as sacrebleu does for single sentences.
    """
    totals = np.asarray(totals, dtype=np.float64)
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


def chrf(totals: np.ndarray, beta: int) -> np.ndarray:
    """(n, 3 * orders) of reply, reference and matching sequences → (n,) chrF."""
    totals = np.asarray(totals, dtype=np.float64)
    reply, reference, match = totals[:, 0::3], totals[:, 1::3], totals[:, 2::3]
    both = (reply > 0) & (reference > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision = np.where(both, match / np.maximum(reply, 1), 0.0).sum(axis=1) / orders
    recall = np.where(both, match / np.maximum(reference, 1), 0.0).sum(axis=1) / orders
    below = beta**2 * precision + recall
    score: np.ndarray = np.divide(100 * (1 + beta**2) * precision * recall, below, out=np.zeros(len(totals)), where=below > 0)
    return score
