"""The official `openai` client and the `llm` tool, unmodified, against a real server, and against one in front of another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import ANSWER, learnt, listening, native, server, user

from chattune.serve.keys import KeyFile
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


@pytest.mark.requirement("S6")
def test_several_choices_differ_and_each_is_whole(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": user("who"), "seed": 3, "temperature": 1.3, "max_tokens": 10, "n": 3}
    plain = ask.chat.completions.create(**asked)
    texts = [choice.message.content for choice in plain.choices]
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    chunks = list(ask.chat.completions.create(**asked, stream=True))
    assert [said(chunks, index) for index in range(3)] == texts
    alone = ask.chat.completions.create(**{**asked, "n": 1})
    assert alone.choices[0].message.content == texts[0]
    other = {ask.chat.completions.create(**{**asked, "n": 1, "seed": seed}).choices[0].message.content for seed in range(4)}
    assert len(other) > 1
    unseeded = {ask.chat.completions.create(**{**asked, "seed": openai.omit}).choices[0].message.content for _ in range(4)}
    assert len(unseeded) > 1, "without a seed, each answer is drawn anew"


@pytest.mark.requirement("S6")
def test_log_probabilities_come_for_every_token(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": user("who"), "seed": 1, "max_tokens": 8, "logprobs": True, "top_logprobs": 3, "temperature": 0,
        "extra_body": {"repetition_penalty": 1},
    }  # fmt: skip
    plain = ask.chat.completions.create(**asked)
    assert plain.choices[0].logprobs is not None and plain.usage is not None
    content = plain.choices[0].logprobs.content or []
    assert len(content) == plain.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs), "greedy: the likeliest was chosen"
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace") == plain.choices[0].message.content
    streamed = [
        entry for chunk in ask.chat.completions.create(**asked, stream=True) for choice in chunk.choices
        for entry in (choice.logprobs.content if choice.logprobs and choice.logprobs.content else [])
    ]  # fmt: skip
    # The server may have computed other prompts beside this one, which rounds otherwise.
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in content], abs=1e-4)


@pytest.mark.requirement("S6")
def test_texts_go_on_by_the_older_interface(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["hello", "who"], "seed": 1, "max_tokens": 6, "n": 2, "logprobs": 2}
    plain = ask.completions.create(**asked)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    for choice in plain.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.text_offset or []) <= 6
    texts = ["", "", "", ""]
    for chunk in ask.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in plain.choices]
    ids = ask.completions.create(model="tiny", prompt=[20, 21, 22], max_tokens=1)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3, "ids are taken as they are"


@pytest.mark.requirement("S6")
def test_embeddings_are_unit_vectors_in_both_encodings(ask: openai.OpenAI) -> None:
    texts = ["hello there", "who are you?", "hello there"]
    in_base64 = ask.embeddings.create(model="tiny", input=texts)
    as_floats = ask.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for one, other in zip(in_base64.data, as_floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(value * value for value in one.embedding) == pytest.approx(1.0, abs=1e-5)
    assert as_floats.data[0].embedding == as_floats.data[2].embedding != as_floats.data[1].embedding
    short = ask.embeddings.create(model="tiny", input="hello there", dimensions=8, encoding_format="float").data[0].embedding
    assert len(short) == 8 and sum(value * value for value in short) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        ask.embeddings.create(model="tiny", input="hello there", dimensions=65)


@pytest.mark.requirement("S6")
def test_models_are_listed_and_found_by_name(ask: openai.OpenAI) -> None:
    assert {model.id for model in ask.models.list()} == {"tiny", "learnt"}
    assert ask.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="There are: 'tiny', 'learnt'"):
        ask.models.retrieve("large")


@pytest.mark.requirement("S6", "R210")
@pytest.mark.parametrize("form", ["schema", "object", "regex"])
def test_a_reply_follows_the_form_that_was_asked_for(ask: openai.OpenAI, form: str) -> None:
    schema = {
        "type": "object", "properties": {"name": {"enum": ["Ada", "Bo"]}, "old": {"type": "boolean"}}, "required": ["name", "old"],
        "additionalProperties": False,
    }  # fmt: skip
    wanted: dict[str, Any] = {
        "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}},
        "object": {"response_format": {"type": "json_object"}},
        "regex": {"extra_body": {"regex": "(red|green) [0-9]{3}"}},
    }[form]  # fmt: skip
    for seed in range(3):
        asked: dict[str, Any] = {"model": "tiny", "messages": user("who"), "seed": seed, "temperature": 1, "max_tokens": 200, **wanted}
        plain = ask.chat.completions.create(**asked)
        text = plain.choices[0].message.content or ""
        assert said(ask.chat.completions.create(**asked, stream=True)) == text
        if form == "regex":
            assert re.fullmatch("(red|green) [0-9]{3}", text)
        elif form == "schema":
            assert json.loads(text).keys() == {"name", "old"}
        elif plain.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


@pytest.mark.requirement("S6")
def test_mistakes_are_typed_exceptions(ask: openai.OpenAI) -> None:
    chat: dict[str, Any] = {"model": "tiny", "messages": user("who"), "max_tokens": 4}
    wrong: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None]] = [
        ({"model": "large"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": user("hello " * 900)}, openai.BadRequestError, "messages"),
        ({"max_tokens": 1000}, openai.BadRequestError, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"extra_body": {"functions": []}}, openai.BadRequestError, "functions"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"logit_bias": {"100000": 1}}, openai.BadRequestError, "logit_bias"),
    ]
    for change, kind, param in wrong:
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                ask.chat.completions.create(**{**chat, **change}, stream=stream)
            assert (caught.value.param, caught.value.body is not None) == (param, True), change
            assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")


@pytest.mark.requirement("S6")
def test_keys_are_asked_for_and_scoped(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    chat, reader = keys.create("chat", ("chat",)), keys.create("reader", ("embeddings",))
    few = keys.create("few", requests=2)
    with listening(server(native(), keys=keys)) as url:

        def once(key: str) -> Any:
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as ask:
                return ask.chat.completions.create(model="tiny", messages=user("who"), max_tokens=2)  # type: ignore[arg-type]

        assert once(chat).choices
        with pytest.raises(openai.AuthenticationError):
            once("ct-wrong")
        with pytest.raises(openai.AuthenticationError):
            once(chat.swapcase())
        with pytest.raises(openai.PermissionDeniedError, match="scope 'chat'"):
            once(reader)
        assert once(few).choices and once(few).choices
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as caught:
            once(few)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
        keys.revoke("chat")
        with pytest.raises(openai.AuthenticationError):
            once(chat)


@pytest.mark.requirement("S6")
def test_the_llm_tool_talks_to_it_unmodified(url: str, tmp_path: Path) -> None:
    models = [
        {"model_id": "ours", "model_name": "learnt", "api_base": f"{url}/v1", "supports_schema": True},
        {"model_id": "texts", "model_name": "tiny", "api_base": f"{url}/v1", "completion": True},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models), "utf-8")
    # An unrelated plugin that is installed here without what it needs must not be loaded.
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "none"}

    def run(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, "-m", "llm", *words], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=60,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout.rstrip("\n")

    assert run("-m", "ours", "hello", "-o", "temperature", "0", "--no-stream") == ANSWER
    assert run("-m", "ours", "hello", "-o", "temperature", "0") == ANSWER
    assert run("-m", "texts", "hello", "-o", "max_tokens", "3", "-o", "seed", "1")
