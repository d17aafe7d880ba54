"""Chat templates from elsewhere, rendered in a helper process with limits: a template is a program that a stranger wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chattune.core.errors import ArtifactError, DataError
from chattune.tokens.control import CHAT_TEMPLATE

_PROGRAM = Path(__file__).with_name("_renderer.py")
_TOGETHER, _CHARACTERS = 64, 1 << 20  # renderings, and characters of them, that are asked for in one line


class TemplateRefusal(DataError):
    """The template does not take this conversation; in its own words."""


class Renderer:
    """Renders one template. The process starts when it is first needed and anew when it was ended; it ends with its owner.

    Each rendering may last 2 s, its process may hold 256 MiB and neither write files nor see the environment.
    """

    def __init__(self, template: str, variables: Mapping[str, Any]) -> None:
        self.template, self.variables = template, dict(variables)
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[str] | None = None

    def render(
        self, many: Sequence[tuple[Sequence[Mapping[str, Any]], bool]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[str]:
        """The text of each conversation: its messages, and whether the header of a reply follows. `tools`: that may be called in all.

        Raises `TemplateRefusal` for a conversation that the template refuses, and `ArtifactError` for a template that breaks a limit
        or breaks down. Both have the place of the conversation among the `many` as ``value``.
        """
        texts: list[str] = []
        with self._lock:
            for some in _together(many, tools):
                texts += self._answers(some, len(texts))
        return texts

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _answers(self, requests: list[dict[str, Any]], before: int) -> Iterator[str]:
        process = self._running()
        self._say(process, {"many": requests})
        for place in range(len(requests)):
            answer = self._hear(process, before + place)
            if "refused" in answer:
                self.close()  # what else was asked for is not to be taken for the answer to something later
                raise TemplateRefusal(
                    f"the chat template refuses it: {answer['refused'].rstrip('.')}.", path=f"dialogs[{before + place}]",
                    value=before + place, rule="a conversation that the model's chat template takes",
                    hint="Bring the turns into the order that the model knows, or give another template.",
                )
            yield self._text(answer, before + place)

    def _running(self) -> subprocess.Popen[str]:
        """The process, with the template loaded; a forked program starts one of its own."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        # The environment is not for a template's eyes; where modules lie is all that the program needs of it.
        surroundings = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=surroundings, text=True, encoding="utf-8",
        )  # fmt: skip
        self._owner = os.getpid()
        weakref.finalize(self, _end_own, self._process, self._owner)
        self._say(self._process, {"template": self.template, "variables": self.variables})
        self._text(self._hear(self._process, 0), 0)
        return self._process

    def _say(self, process: subprocess.Popen[str], data: Mapping[str, Any]) -> None:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it ended: why, is told when its answer is awaited
            process.stdin.write(json.dumps(data) + "\n")
            process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str], place: int) -> dict[str, Any]:
        assert process.stdout
        line = process.stdout.readline()
        if line.endswith("\n"):
            found: dict[str, Any] = json.loads(line)
            return found
        ended = process.wait()
        return {"broken": "one rendering takes longer than 2 seconds" if ended == -signal.SIGALRM else f"its process ended ({ended})"}

    def _text(self, answer: Mapping[str, Any], place: int) -> str:
        if "text" in answer:
            return str(answer["text"])
        self.close()
        raise ArtifactError(
            f"does not work: {answer['broken'].rstrip('.')}.", path=CHAT_TEMPLATE, value=place,
            rule="a Jinja template of at most 2 seconds and 256 MiB a conversation",
            hint="Ask where the model comes from, or give another template.",
        )


def _together(
    many: Sequence[tuple[Sequence[Mapping[str, Any]], bool]], tools: Sequence[Mapping[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    characters = 0
    for messages, asking in many:
        some.append({"messages": list(messages), "add_generation_prompt": asking, "tools": list(tools) or None, "documents": None})
        characters += sum(len(message["content"]) for message in messages)
        if len(some) == _TOGETHER or characters >= _CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _end_own(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:  # a forked program leaves its parent's helper alone
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the helper for good and release its pipes."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError, ValueError):
            if pipe:
                pipe.close()
    with contextlib.suppress(ProcessLookupError, ChildProcessError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(5)
