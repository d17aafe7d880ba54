"""Asking a model at an OpenAI-compatible endpoint: one question at a time, every answer kept, failures counted.

Answers are kept by what was asked (address, model, messages, temperature, seed), so that a run that is repeated, or goes on after a
crash, asks nothing twice and comes to the same. After ten failures in a row nothing more is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import SettingError
from chattune.core.record import Record

PATIENCE = 10  # failures in a row after which the endpoint is taken for dead


@dataclass(frozen=True)
class Place:
    """Where to ask: `url` up to and with ``/v1``, `model`, and the variable or file that holds the key, if any."""

    url: str
    model: str
    key: str | None
    seconds: float


@dataclass
class Endpoint:
    """An endpoint, what it has answered before, and how often it failed, by reason."""

    place: Place
    path: str  # of the setting, for errors
    keep: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import httpx2

        try:
            url = httpx2.URL(self.place.url)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise SettingError(
                "is not the address of an endpoint.", path=f"{self.path}.endpoint", value=self.place.url, rule="http://HOST:PORT/v1",
                hint=f"Set {self.path}.endpoint=http://127.0.0.1:8000/v1, or whichever server you may ask.",
            )
        key = _secret(self.place.key, self.path)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=self.place.seconds, trust_env=False, follow_redirects=False)
        self.keep.parent.mkdir(parents=True, exist_ok=True)
        self._record = Record(self.keep)
        self._known: dict[str, str] = {row["asked"]: row["answer"] for row in self._record.rows()}
        self._in_a_row = 0

    def ask(self, messages: Sequence[dict[str, str]], temperature: float, seed: int) -> str | None:
        """The answer's text, or nothing where there is none."""
        question = {
            "model": self.place.model, "messages": list(messages), "temperature": temperature, "seed": seed, "max_tokens": 1024,
        }  # fmt: skip
        asked = files.digest_of_data({"url": self.place.url, **question})
        if asked in self._known:
            self.counts["found"] += 1
            return self._known[asked]
        if self._in_a_row >= PATIENCE:
            self.counts["not_asked"] += 1
            return None
        answer = self._answer(question)
        if answer is None:
            self._in_a_row += 1
            return None
        self._in_a_row = 0
        self.counts["asked"] += 1
        self._known[asked] = answer
        self._record.append(asked=asked, answer=answer)
        return answer

    def _answer(self, question: dict[str, Any]) -> str | None:
        import httpx2

        try:
            response = self._client.post(f"{self.place.url.rstrip('/')}/chat/completions", json=question)
            if response.status_code != 200:
                self.counts[f"status_{response.status_code}"] += 1
                return None
            text = response.json()["choices"][0]["message"]["content"]
        except httpx2.TimeoutException:
            self.counts["timeout"] += 1
            return None
        except httpx2.HTTPError:
            self.counts["unreachable"] += 1
            return None
        except (ValueError, LookupError, TypeError):
            self.counts["not_understood"] += 1
            return None
        if not isinstance(text, str) or not text.strip():
            self.counts["empty"] += 1
            return None
        return text.strip()


def _secret(key: str | None, path: str) -> str | None:
    """The key that ``env:VARIABLE`` or ``file:PATH`` means; it stands in no recipe and in no run."""
    import os

    if key is None:
        return None
    kind, _, name = key.partition(":")
    found: str | None = None
    if kind == "env":
        found = os.environ.get(name)
    elif kind == "file" and Path(name).expanduser().is_file():
        found = Path(name).expanduser().read_text("utf-8").strip()
    if not found:
        hint = "Leave it out where none is asked for."
        raise SettingError("no key is there.", path=f"{path}.key", rule="env:VARIABLE or file:PATH", hint=hint)
    return found
