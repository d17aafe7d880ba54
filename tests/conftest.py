"""Shared fixtures: raw logs, and one finished story of them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from material import TINY, write_raw_logs

import chattune
from chattune.story import Result


def pytest_configure() -> None:
    """A background job of a shell inherits an ignored SIGINT, and so would every program that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that with several workers none waits for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def raw_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of raw conversations. Not to be written to."""
    return write_raw_logs(tmp_path_factory.mktemp("logs") / "window.txt")


@pytest.fixture(scope="session")
def told(raw_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The whole story, finished, in a home of its own, called ``first``. Not to be written to."""
    home = tmp_path_factory.mktemp("home") / "runs"
    return chattune.run({"collect": {"sources": str(raw_logs)}, "train": {"prompts": ["hello"]}}, TINY, home=home, name="first")
