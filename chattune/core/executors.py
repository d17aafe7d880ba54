"""Where work that falls into pieces is done: in this process, in several of this machine, or on a Ray cluster. One door for all.

Whatever the place, results come in the order of the pieces and are the same, so that the place is no part of an answer. Pieces are
to be small (a stretch of a file, not what it holds); what the work needs beside them travels once to each worker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from chattune.core.errors import ChattuneError, SettingError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Kind = Literal["inline", "processes", "ray"]
_BLOCKS = 1024  # of pieces that are handed to Ray as one task, at the most
_EXTRA = "pip install 'chattune[cluster]'"
# Ray reports its use to its makers unless told not to. Besides, Ray Data gathers figures for that in a thread that never ends, and that
# ends the whole process, with status 1, when it asks a cluster that was shut down.
_UNASKED = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}


@dataclass(frozen=True)
class Executor:
    """`kind`: ``inline`` (here, one piece after the other), ``processes`` (of this machine) or ``ray`` (a cluster's).

    `count`: processes or workers that work side by side; none: for Ray as many as the cluster has processors, else 1.
    `section`: of the recipe that asked for it, for errors.
    """

    kind: Kind = "inline"
    count: int | None = None
    section: str = ""

    def map(self, work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """``work(piece)`` for each piece, in their order. `work` and what it gives are pickled where another process works.

        What `work` raises is raised here. `ChattuneError` where a worker ended before its work did, `SettingError` for Ray that is not
        installed.
        """
        if self.kind == "ray":
            return _on_ray(work, list(pieces), self.count, self.section)
        if self.kind == "processes" and (self.count or 1) > 1:
            return _in_processes(work, pieces, self.count or 1, self.section)
        return map(work, pieces)


INLINE = Executor()


def require_ray(path: str) -> None:
    """A `SettingError` at `path` where Ray is not installed: before the work, not within it."""
    if importlib.util.find_spec("ray") is None:
        raise SettingError(
            "the package ray is not installed.", path=path, value="ray", rule="processes, or ray where it is installed",
            hint=f"Install it here and on every machine of the cluster: {_EXTRA}.",
        )  # fmt: skip


def _in_processes(work: Callable[[Any], Any], pieces: Iterable[Any], count: int, section: str) -> Iterator[Any]:
    with _telling(section), ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"), _begin, (work,)) as pool:
        waiting: list[Future[Any]] = []
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) > 2 * count:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()


@contextlib.contextmanager
def _telling(section: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise ChattuneError(
            "a process that worked ended before its work did.", path=f"{section}.processes", rule="processes that can start and stay",
            hint=f"In a program of your own, call chattune below `if __name__ == \"__main__\":`; or set {section}.processes=1.",
        ) from None


_work: list[Callable[[Any], Any]] = []  # of a process of the pool


def _begin(work: Callable[[Any], Any]) -> None:
    _work[:] = [work]


def _do(piece: Any) -> Any:
    return _work[0](piece)


def _on_ray(work: Callable[[Any], Any], pieces: Sequence[Any], count: int | None, section: str) -> Iterator[Any]:
    """With Ray Data, whose streaming holds back reading while results wait. The cluster is the one that ``RAY_ADDRESS`` names, or that
    runs on this machine; where there is none, one of this machine alone is started for the work.
    """
    require_ray(f"{section}.executor")
    for name, value in _UNASKED.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.exceptions import RayError, RayTaskError

    if not pieces:
        return
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        done = _asked(work, pieces, count or max(1, int(found.get("CPU", 1))))
        for number, row in enumerate(done.iter_rows()):
            if row["number"] != number:
                raise AssertionError(f"the result of piece {row['number']} came in the place of {number}")
            if row["result"].raised:
                raise row["result"].value
            yield row["result"].value
    except RayTaskError:
        raise  # a defect of the work, with the worker's traceback
    except (RayError, ConnectionError) as error:
        said = " ".join(str(error).split())[:200]
        raise ChattuneError(
            f"the Ray cluster did not do its work: {said}", path=f"{section}.executor", value="ray", rule="a cluster that stays",
            hint=f"Look at `ray status`, or set {section}.executor=processes.",
        ) from error
    finally:
        if started:
            ray.shutdown()


def _asked(work: Callable[[Any], Any], pieces: Sequence[Any], workers: int) -> Any:
    """The data set whose rows are the results; nothing is done before it is iterated over."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells each plan
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    rows = [{"number": number, "piece": _Whole(piece)} for number, piece in enumerate(pieces)]
    try:
        asked = ray.data.from_items(rows, override_num_blocks=min(len(pieces), _BLOCKS))
        pool = ray.data.ActorPoolStrategy(size=workers)
        return asked.map_batches(_Worker, fn_constructor_args=(work,), compute=pool, batch_size=1, num_cpus=1)
    finally:  # the data set has its own copy
        context.enable_progress_bars, context.execution_options.preserve_order = before


@dataclass(frozen=True)
class _Whole:
    """A value, or an error of ours, that Ray Data is not to take apart into columns, nor to turn into an array."""

    value: Any
    raised: bool = False


class _Worker:
    """An actor of Ray Data: one for each worker, made once."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            result = _Whole(self._work(batch["piece"][0].value))
        except ChattuneError as error:  # Ray would wrap it into one of its own, and lose it on the way
            result = _Whole(error, raised=True)
        return {"number": batch["number"], "result": [result]}
