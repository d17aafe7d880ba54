"""The official `openai` client and the `llm` tool, unmodified, against a real server; and against one that stands in front of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import ANSWER, learnt, listening, native, server, user

from chattune.serve.limits import Limits
from chattune.serve.upstream import Upstream

LIMITS = Limits(queue_seconds=20)


@pytest.fixture(scope="module")
def direct() -> Iterator[str]:
    """Two models of ours: ``tiny`` with random weights, ``learnt`` that knows one exchange by heart."""
    with listening(server(native(limits=LIMITS), learnt(limits=LIMITS), limits=LIMITS)) as url:
        yield url


@pytest.fixture(scope="module")
def gateway(direct: str) -> Iterator[str]:
    """A chattune without models of its own, in front of the other."""
    behind = [Upstream(name, f"{direct}/v1", LIMITS) for name in ("tiny", "learnt")]
    with listening(server(*behind, limits=LIMITS)) as url:
        yield url


@pytest.fixture(params=["direct", "gateway"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def ask(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def said(stream: Any, index: int = 0) -> str:
    return "".join(
        choice.delta.content or "" for chunk in stream for choice in chunk.choices if choice.index == index
    )


@pytest.mark.requirement("S6", "I32")
def test_a_chat_is_answered_plain_and_streamed(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "learnt", "messages": user("hello"), "temperature": 0, "extra_body": {"repetition_penalty": 1}}
    plain = ask.chat.completions.create(**asked)
    assert plain.choices[0].message.content == ANSWER
    assert (plain.choices[0].finish_reason, plain.choices[0].message.role, plain.model) == ("stop", "assistant", "learnt")
    assert plain.usage is not None and plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert said(chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask.chat.completions.create(**asked, stream=True)), "only where it was asked for"


@pytest.mark.requirement("S5")
def test_streamed_text_equals_plain_text_whatever_the_seed(ask: openai.OpenAI, url: str, direct: str) -> None:
    whole = 200 if url == direct else 20
    for seed in range(whole):
        asked: dict[str, Any] = {
            "model": "tiny", "messages": user(f"who {seed % 7}"), "seed": seed, "temperature": 1.2, "max_tokens": 1 + seed % 12,
            "stop": ["e", " t"] if seed % 3 == 0 else None,
        }  # fmt: skip
        plain = ask.chat.completions.create(**asked)
        chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert said(chunks) == plain.choices[0].message.content
        assert next(c.choices[0].finish_reason for c in chunks[::-1] if c.choices) == plain.choices[0].finish_reason
        assert chunks[-1].usage == plain.usage
        if asked["stop"]:
            assert not any(stop in (plain.choices[0].message.content or "") for stop in asked["stop"]), "a stop text never leaks"
