"""Figures for Prometheus, and the access log: what was asked of which model and how long it took; never what was said.

Each server has a registry of its own. Labels take few values: routes as written in the code, models that are there, reasons of ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

ACCESS = logging.getLogger("chattune.serve.access")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
# What an engine counts (`EngineLoad`), and what that is called outside.
GAUGES = {"waiting": "requests waiting in the engine", "running": "requests being decoded", "slots": "requests decoded side by side"}
COUNTERS = {
    "prompt_total": "tokens of prompts read", "generated_total": "tokens decoded", "prefix_hits_total": "tokens of prompts found read",
    "proposed_total": "tokens proposed by speculation", "accepted_total": "proposed tokens that were accepted",
    "cancelled_total": "requests cancelled", "failed_total": "requests that failed", "steps_total": "steps of the engine",
}  # fmt: skip


class Metrics:
    """Counters and times of one server; `models` gives what is served at this moment."""

    def __init__(self, models: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("chattune_requests", "answers by route and status", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "chattune_request_seconds", "from the head of a request to the end of its answer", ["route"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "chattune_first_token_seconds", "from admission to the first token", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.between = Histogram(
            "chattune_between_tokens_seconds", "mean time between tokens of a reply", ["model"], buckets=BETWEEN, registry=self.registry
        )
        self.queue = Histogram(
            "chattune_queue_seconds", "time until a request had its place", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.tokens = Counter("chattune_tokens", "tokens of requests and replies", ["model", "kind"], registry=self.registry)
        self.refused = Counter("chattune_refused", "requests that were refused, by code", ["code"], registry=self.registry)
        self.cut = Counter("chattune_cut", "answers that ended early, by reason", ["reason"], registry=self.registry)
        self.lag = 0.0  # the longest that the event loop was late since it was last asked
        self.registry.register(_Now(models, self))

    def text(self) -> bytes:
        """The exposition format that Prometheus reads."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.02)
            self.lag = max(self.lag, time.perf_counter() - before - 0.02)


class _Now(Collector):
    """What models hold at the moment of the question."""

    def __init__(self, models: Callable[[], Mapping[str, Any]], metrics: Metrics) -> None:
        self._models, self._metrics = models, metrics

    def collect(self) -> Iterable[Any]:
        lag = GaugeMetricFamily("chattune_event_loop_lag_seconds", "the longest delay of the event loop since the last look")
        lag.add_metric([], self._metrics.lag)
        self._metrics.lag = 0.0
        yield lag
        models = dict(self._models())
        for name, meaning in {"used": "places in use", "waiting": "requests waiting for a place"}.items():
            gauge = GaugeMetricFamily(f"chattune_admission_{name}", meaning, labels=["model"])
            for model, served in models.items():
                gauge.add_metric([model], getattr(served.admission, name))
            yield gauge
        loads = {model: served.engine.load() for model, served in models.items() if served.kind == "native"}
        for name, meaning in GAUGES.items():
            gauge = GaugeMetricFamily(f"chattune_engine_{name}", meaning, labels=["model"])
            for model, load in loads.items():
                gauge.add_metric([model], getattr(load, name))
            yield gauge
        for name, meaning in COUNTERS.items():
            counter = CounterMetricFamily(f"chattune_engine_{name.removesuffix('_total')}", meaning, labels=["model"])
            for model, load in loads.items():
                counter.add_metric([model], getattr(load, name))
            yield counter


def log_access(facts: Mapping[str, Any]) -> None:
    """One line of JSON, ASCII only: nothing in it can steer a terminal or begin a new line."""
    ACCESS.info(json.dumps(facts, ensure_ascii=True, allow_nan=False, default=str))
