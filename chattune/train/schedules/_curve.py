"""What schedules share: the linear rise at the start, and how far the part after it has come."""

from __future__ import annotations


def warmup_steps(share: float, total: int) -> int:
    """Whole steps of warmup; at least one step of the run is left."""
    return min(round(share * total), total - 1)


def rise(step: int, warmup: int) -> float:
    """1/w, 2/w, … 1 over the first w steps, so that no update is spent at rate 0; then 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def travelled(step: int, start: int, total: int) -> float:
    """Share of the way from `start` to `total`; 1 is first reached at step `total`, one after the last update."""
    return min(1.0, max(0.0, (step - start) / (total - start)))
