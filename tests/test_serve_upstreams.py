"""A server that is not ours behind `chattune serve --upstream`: llama.cpp with the same weights, asked like the engine of our own.

The same tests run against both, as far as llama.cpp has the feature; what differs is asserted, too, and stands in the guide's table.
Keys, limits and figures in front are those of the program `chattune serve`. Other kinds of servers are played by a stand-in.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.resources.chat.completions import Completions as OpenAIChat
from openai.resources.completions import Completions as OpenAITexts
from serving import ANSWER, client, learnt, listening, native, server, user

from chattune.core.artifact import Home
from chattune.dialogs.dialog import Message
from chattune.models.gguf import write_gguf
from chattune.serve import upstream
from chattune.serve.keys import KeyFile
from chattune.serve.limits import Limits
from chattune.serve.models import NativeModel
from chattune.serve.upstream import BEYOND, Upstream
from chattune.serve.wire import DONE, ChatRequest, CompletionRequest, sse

LIMITS = Limits(queue_seconds=20)
SECRET = "the-key-of-the-far-server"
LONG = 2048  # tokens of the context of ``tiny``: seconds of work for llama.cpp, so that a reply can be cut


class Both:
    """The servers, and how each is asked."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def ask(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=60)

    def post(self, path: str, **body: Any) -> httpx2.Response:
        with client(self.url, headers={"authorization": f"Bearer {self.key}"}) as line:
            return line.post(path, json=body)

    def figures(self, key: str) -> dict[str, float]:
        with client(self.url, headers={"authorization": f"Bearer {key}"}) as line:
            lines = [line for line in line.get("/metrics").raise_for_status().text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture(scope="module")
def models() -> dict[str, NativeModel]:
    """``learnt`` knows one exchange by heart, ``tiny`` has random weights."""
    return {"learnt": learnt(limits=LIMITS), "tiny": native(limits=LIMITS, context=LONG)}


@pytest.fixture(scope="module")
def direct(models: dict[str, NativeModel]) -> Iterator[Both]:
    """Our own engine."""
    with listening(server(*models.values(), limits=LIMITS)) as url:
        yield Both(url, "none")


@pytest.fixture(scope="module")
def llama(models: dict[str, NativeModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """llama.cpp's server with the same weights, in a process of its own; an address for each model."""
    pytest.importorskip("xllamacpp", reason="xllamacpp, a build of llama.cpp, is not installed: `pip install -e .[dev]`")
    paths = []
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name)
        model.chat.template.save(folder)
        write_gguf(model.chat.model, folder, folder / f"{name}.gguf", "F32")
        paths.append(str(folder / f"{name}.gguf"))
    words = [sys.executable, __file__, SECRET, *paths]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdin and child.stdout
    try:
        yield {name: child.stdout.readline().strip() for name in models}
    finally:
        child.stdin.close()
        child.wait(30)
        child.stdout.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(Home(tmp_path_factory.mktemp("home") / "runs").path / "keys.json")


@pytest.fixture(scope="module")
def gateway(llama: dict[str, str], keys: KeyFile) -> Iterator[Both]:
    """The program ``chattune serve`` in front of llama.cpp. Its log is looked through at the end."""
    key = keys.create("anna")
    log = keys.path.with_name("log")
    words = [sys.executable, "-m", "chattune", "serve", "--home", str(keys.path.parent), "--port", "0", "--json"]
    for name, address in llama.items():
        words += ["--upstream", f"{name}={address}/v1", "--upstream-key", f"{name}=env:FAR_KEY"]
    with log.open("w") as errors:
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "FAR_KEY": SECRET})
    assert child.stdout
    try:
        line = child.stdout.readline()
        assert line, log.read_text()
        yield Both(json.loads(line)["url"], key)
    finally:
        child.terminate()
        child.stdout.read()
        ended = child.wait(30)
        child.stdout.close()
    told = log.read_text()
    assert ended == 0 and '"route": "/v1/chat/completions"' in told
    assert SECRET not in told and key not in told and "Traceback" not in told


@pytest.fixture(scope="module")
def letters(models: dict[str, NativeModel]) -> dict[str, int]:
    """A bias by which random weights say ASCII only: other bytes hardly ever make up characters."""
    pieces = models["tiny"].chat.tokenizer.pieces
    return {str(token): -100 for token, piece in enumerate(pieces) if max(piece, default=0) > 127}


@pytest.fixture(params=["native", "llama.cpp"])
def both(request: pytest.FixtureRequest) -> Both:
    return request.getfixturevalue({"native": "direct", "llama.cpp": "gateway"}[request.param])  # type: ignore[no-any-return]


@pytest.fixture
def ask(both: Both) -> Iterator[openai.OpenAI]:
    with both.ask() as found:
        yield found


@pytest.fixture
def foreign(request: pytest.FixtureRequest, both: Both) -> bool:
    """Whether llama.cpp answers."""
    return "llama.cpp" in request.node.name


def said(chunks: Any, index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


def whole(text: str | None) -> str:
    """The text without a last character whose bytes did not all come: we show that it is broken, llama.cpp leaves it out."""
    return (text or "").rstrip("\ufffd")


@pytest.mark.requirement("S6", "I32")
def test_a_chat_is_answered_plain_and_streamed(ask: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "learnt", "messages": user("hello"), "temperature": 0, "extra_body": {"repetition_penalty": 1}}
    plain = ask.chat.completions.create(**asked)
    assert plain.choices[0].message.content == ANSWER, "the weights are the same, and so is the template"
    assert (plain.choices[0].finish_reason, plain.choices[0].message.role, plain.model) == ("stop", "assistant", "learnt")
    assert plain.object == "chat.completion"
    assert plain.usage is not None and plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    assert plain.usage.prompt_tokens == 5
    chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert said(chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {(chunk.id, chunk.model) for chunk in chunks} == {(chunks[0].id, "learnt")}
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask.chat.completions.create(**asked, stream=True)), "only where it was asked for"


@pytest.mark.requirement("S5")
def test_streamed_text_equals_plain_text_and_a_stop_text_never_leaks(ask: openai.OpenAI) -> None:
    stopped = 0
    for seed in range(24):
        asked: dict[str, Any] = {
            "model": "tiny", "messages": user(f"who {seed % 7}"), "seed": seed, "temperature": 1.2, "max_tokens": 1 + seed % 12,
            "stop": ["e", " t", "o", "a"] if seed % 2 == 0 else None,
        }  # fmt: skip
        plain = ask.chat.completions.create(**asked)
        chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert said(chunks) == plain.choices[0].message.content
        reason = next(chunk.choices[0].finish_reason for chunk in chunks[::-1] if chunk.choices)
        assert reason == plain.choices[0].finish_reason in ("stop", "length")
        assert chunks[0].choices[0].delta.role == "assistant"
        assert plain.usage is not None and chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens <= 1 + seed % 12
        if asked["stop"]:
            assert not any(stop in (plain.choices[0].message.content or "") for stop in asked["stop"])
            stopped += reason == "stop"
    assert stopped, "some were stopped by their text"


@pytest.mark.requirement("S6")
def test_a_seed_repeats_whatever_it_is_and_without_one_each_reply_is_new(ask: openai.OpenAI) -> None:
    def reply(seed: int | None) -> str | None:
        asked: Any = {"model": "tiny", "messages": user("who"), "temperature": 1.5, "max_tokens": 12}
        more = {} if seed is None else {"seed": seed}
        return ask.chat.completions.create(**asked, **more).choices[0].message.content

    seeds = (0, 1, -1, (1 << 32) - 1, 1 << 40, 1 << 62, -(1 << 63))  # llama.cpp takes 32 bits, of which all ones mean: at random
    for seed in seeds:
        assert reply(seed) == reply(seed), seed
    assert len({reply(seed) for seed in range(4)}) > 1
    assert len({reply(None) for _ in range(4)}) > 1


@pytest.mark.requirement("S6")
def test_several_choices_differ_and_are_all_counted(ask: openai.OpenAI, models: dict[str, NativeModel]) -> None:
    end = models["tiny"].chat.tokenizer.control["end"]
    asked: dict[str, Any] = {
        "model": "tiny", "messages": user("who"), "seed": 3, "temperature": 1.3, "max_tokens": 10, "n": 3,
        "logit_bias": {str(end): -100},
    }  # fmt: skip
    plain = ask.chat.completions.create(**asked)
    texts = [choice.message.content for choice in plain.choices]
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert [said(chunks, index) for index in range(3)] == texts
    for index in range(3):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert (own[0].delta.role, own[-1].finish_reason) == ("assistant", "length")
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert chunks[-1].choices == [] and len(told) == 1
    assert plain.usage is not None
    for usage in (plain.usage, told[0]):
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 30, 35)
    alone = ask.chat.completions.create(**{**asked, "n": 1})
    assert alone.choices[0].message.content == texts[0]


@pytest.mark.requirement("S6")
def test_log_probabilities_are_those_of_the_same_model(direct: Both, ask: openai.OpenAI, foreign: bool) -> None:
    asked: dict[str, Any] = {
        "model": "learnt", "messages": user("hello"), "max_tokens": 40, "logprobs": True, "top_logprobs": 3, "temperature": 0,
        "extra_body": {"repetition_penalty": 1},
    }  # fmt: skip
    plain = ask.chat.completions.create(**asked).choices[0]
    entries = plain.logprobs.content if plain.logprobs and plain.logprobs.content else []
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == plain.message.content == ANSWER
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs), "greedy: the likeliest was chosen"
    for none in ({"top_logprobs": 0}, {"top_logprobs": openai.omit}):
        alone = ask.chat.completions.create(**(asked | none)).choices[0].logprobs
        assert alone is not None and [one.logprob for one in alone.content or []] == [entry.logprob for entry in entries]
        assert not any(one.top_logprobs for one in alone.content or []), "no more than was asked for"
    streamed = [
        entry for chunk in ask.chat.completions.create(**asked, stream=True) for choice in chunk.choices
        for entry in (choice.logprobs.content if choice.logprobs and choice.logprobs.content else [])
    ]  # fmt: skip
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in entries]
    tokens = len(ANSWER.encode())  # at most: some tokens are several bytes
    assert max(len(entry.bytes or []) for entry in entries) >= (3 if foreign else 1)
    if foreign:
        assert len(entries) == len(ANSWER), "an entry is a whole character"
    else:
        assert len(ANSWER) < len(entries) <= tokens, "an entry is a token"
    if foreign:
        with direct.ask() as ours:
            other = ours.chat.completions.create(**asked).choices[0]
        assert other.logprobs is not None and other.logprobs.content is not None
        single = {entry.token: entry.logprob for entry in other.logprobs.content if entry.token.isascii()}
        shared = [entry for entry in entries if entry.token in single and ANSWER.count(entry.token) == 1]
        assert len(shared) > 5
        for entry in shared:
            # llama.cpp keeps keys and values in float16; measured: below 0.002.
            assert entry.logprob == pytest.approx(single[entry.token], abs=0.05)


@pytest.mark.requirement("S6")
def test_texts_go_on_by_the_older_interface(ask: openai.OpenAI, foreign: bool, models: dict[str, NativeModel]) -> None:
    ids_of_hello = models["learnt"].chat.template.prompt([Message("user", "hello")])
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["hello", "who"], "seed": 1, "max_tokens": 6, "n": 2}
    plain = ask.completions.create(**asked)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in plain.choices} <= {"stop", "length"}
    texts, usages = ["", "", "", ""], []
    for chunk in ask.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in plain.choices]
    assert plain.object == "text_completion" and plain.usage == usages[0]
    assert len(usages) == 1 and usages[0].prompt_tokens == (2 if foreign else 4), "`begin` stands before a text of ours, not there"
    assert usages[0].completion_tokens <= 24
    ids = ask.completions.create(model="tiny", prompt=[20, 21, 22], max_tokens=1)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3, "ids are taken as they are"
    for most in (2, 0):
        asked = {"model": "learnt", "prompt": ids_of_hello, "max_tokens": 60, "logprobs": most, "temperature": 0}
        known = ask.completions.create(**asked, extra_body={"repetition_penalty": 1}).choices[0]
        found = known.logprobs
        assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
        assert known.text == ANSWER
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
        place = found.tokens.index("v")
        assert ANSWER[found.text_offset[place]] == "v"
        if most:
            assert {len(tops) for tops in found.top_logprobs} == {2}
            assert found.top_logprobs[place]["v"] == found.token_logprobs[place] > -1
        else:
            assert {*found.top_logprobs} == {None}, "the chosen ones alone"


@pytest.mark.requirement("S6")
def test_embeddings_are_unit_vectors_in_both_encodings(ask: openai.OpenAI, both: Both, foreign: bool) -> None:
    texts = ["hello there", "who are you?", "hello there"]
    as_floats = ask.embeddings.create(model="tiny", input=texts, encoding_format="float")
    raw = both.post("/v1/embeddings", model="tiny", input=texts, encoding_format="base64").json()
    assert [one["index"] for one in raw["data"]] == [0, 1, 2] and raw["model"] == "tiny"
    for one, packed in zip(as_floats.data, raw["data"], strict=True):
        assert len(one.embedding) == 64
        assert struct.unpack("<64f", base64.b64decode(packed["embedding"])) == pytest.approx(one.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1.0, abs=1e-5)
    assert as_floats.data[0].embedding == pytest.approx(as_floats.data[2].embedding, abs=1e-5) != as_floats.data[1].embedding
    if foreign:
        with pytest.raises(openai.BadRequestError, match=r"'dimensions'\. The server behind 'tiny' is not known") as caught:
            ask.embeddings.create(model="tiny", input="hello", dimensions=8)
        assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")
        with pytest.raises(openai.BadRequestError, match="embeddings") as caught:
            ask.embeddings.create(model="learnt", input="hello")  # started without them
        assert caught.value.code == "unsupported_operation"
    else:
        assert len(ask.embeddings.create(model="tiny", input="hello", dimensions=8, encoding_format="float").data[0].embedding) == 8


@pytest.mark.requirement("S6", "R210")
@pytest.mark.parametrize("form", ["schema", "object"])
def test_a_reply_follows_the_form_that_was_asked_for(ask: openai.OpenAI, form: str, letters: dict[str, int]) -> None:
    schema = {
        "type": "object", "properties": {"name": {"enum": ["Ada", "Bo"]}, "old": {"type": "boolean"}}, "required": ["name", "old"],
        "additionalProperties": False,
    }  # fmt: skip
    wanted: dict[str, Any] = {
        "schema": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
        "object": {"type": "json_object"},
    }[form]
    for seed in range(2):
        asked: dict[str, Any] = {
            "model": "tiny", "messages": user("who"), "seed": seed, "temperature": 1, "max_tokens": 300, "response_format": wanted,
            "logit_bias": letters,
        }  # fmt: skip
        plain = ask.chat.completions.create(**asked)
        text = plain.choices[0].message.content or ""
        assert said(ask.chat.completions.create(**asked, stream=True)) == text
        if form == "schema":
            assert json.loads(text).keys() == {"name", "old"}
        elif plain.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert text.lstrip().startswith("{")


@pytest.mark.requirement("S6")
def test_mistakes_are_typed_exceptions(ask: openai.OpenAI) -> None:
    chat: dict[str, Any] = {"model": "tiny", "messages": user("who"), "max_tokens": 4}
    wrong: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
        ({"model": "large"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"messages": user("hello " * LONG)}, openai.BadRequestError, "context_length_exceeded"),
        ({"extra_body": {"functions": []}}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"n": 9}, openai.BadRequestError, "invalid_value"),
    ]
    for change, kind, code in wrong:
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                ask.chat.completions.create(**{**chat, **change}, stream=stream)
            assert (caught.value.code, caught.value.body is not None) == (code, True), change
            assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError):
        ask.completions.create(model="tiny", prompt=[20, 21, 22000], max_tokens=1)
    assert {model.id for model in ask.models.list()} == {"tiny", "learnt"}


@pytest.mark.requirement("S6")
def test_what_llama_cpp_would_leave_out_in_silence_is_refused(direct: Both, gateway: Both) -> None:
    chat: dict[str, Any] = {"model": "learnt", "messages": user("hello"), "temperature": 0}
    tools = [{"type": "function", "function": {"name": "f"}}]
    calls = [{"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said = [*user("hello"), {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "1", "tool_call_id": "i"}]
    for more, param in (
        ({"tools": tools}, "tools"), ({"tools": tools, "tool_choice": "required"}, "tools"), ({"logit_bias": {"279": 1}}, "logit_bias"),
        ({"messages": said}, "messages[1].tool_calls"),
    ):  # fmt: skip
        errors = [where.post("/v1/chat/completions", **(chat | more)) for where in (direct, gateway)]
        assert [error.status_code for error in errors] == [400, 400]
        assert errors[0].json() == errors[1].json()
        assert errors[1].json()["error"]["param"] == param
    for more in ({"tools": tools, "tool_choice": "none"}, {"logit_bias": {"278": 0}}):
        for where in (direct, gateway):
            found = where.post("/v1/chat/completions", **chat, **more)
            assert (found.status_code, found.json()["choices"][0]["message"]["content"]) == (200, ANSWER), found.text
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text("utf-8")
    assert direct.post("/v1/chat/completions", **chat, max_tokens=1000).status_code == 400
    assert gateway.post("/v1/chat/completions", **chat, max_tokens=1000).status_code == 200
    assert "ends with `length`" in guide


@pytest.mark.requirement("S6")
def test_a_parameter_beyond_openais_is_followed_or_refused_by_its_name(direct: Both, gateway: Both) -> None:
    def text(where: Both, **more: Any) -> str:
        body: dict[str, Any] = {"model": "tiny", "messages": user("who"), "max_tokens": 12, "temperature": 0, "repetition_penalty": 1}
        found = where.post("/v1/chat/completions", **{**body, **more}).raise_for_status()
        return whole(found.json()["choices"][0]["message"]["content"])

    greedy = text(direct)
    assert text(gateway) == greedy
    assert text(gateway, temperature=2, top_k=1) == greedy
    assert text(gateway, temperature=2, top_k=0, min_p=0.999) == greedy
    penalised = text(direct, repetition_penalty=2.0)
    assert text(gateway, repetition_penalty=2.0) == penalised != greedy, "it has another name there"
    assert text(gateway, min_tokens=0, no_repeat_ngram=0, regex=None) == greedy, "these values change nothing"
    for name, value in (("regex", "(red|green)"), ("min_tokens", 5), ("no_repeat_ngram", 2)):
        for stream in (False, True):
            body = {"model": "tiny", "messages": user("who"), "max_tokens": 4, "stream": stream, name: value}
            found = gateway.post("/v1/chat/completions", **body)
            assert (found.status_code, found.json()["error"]["param"]) == (400, name)
            assert "is not known to follow it" in found.json()["error"]["message"]


def test_what_is_beyond_openais_is_listed_whole() -> None:
    known = {
        name for create in (OpenAIChat.create, OpenAITexts.create) for name in inspect.signature(create).parameters
    }  # fmt: skip
    ours = (ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()) - known
    assert ours == BEYOND.keys()


@pytest.mark.requirement("S3", "I18")
@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_no_longer_decoded_for_behind_us(gateway: Both, llama: dict[str, str], keys: KeyFile, stream: bool) -> None:
    key = keys.create(f"figures-{stream}", ("metrics",))
    far = {"base_url": llama["tiny"], "headers": {"authorization": f"Bearer {SECRET}"}, "timeout": 30, "trust_env": False}
    counted = 'chattune_tokens_total{kind="completion",model="tiny"}'
    with httpx2.Client(**far) as line:

        def figure(name: str) -> float:
            found = re.search(rf"^llamacpp:{name} (\S+)$", line.get("/metrics").raise_for_status().text, re.MULTILINE)
            assert found
            return float(found[1])

        before, charged = figure("tokens_predicted_total"), gateway.figures(key)[counted]
        body = {"model": "tiny", "messages": user("who"), "temperature": 1.5, "max_tokens": LONG - 8, "stream": stream}
        body["logit_bias"] = {"2": -100, "3": -100}  # it does not end by itself
        with client(gateway.url, headers={"authorization": f"Bearer {gateway.key}"}) as mine:
            if stream:
                with mine.stream("POST", "/v1/chat/completions", json=body) as answer:
                    heard = [event for event, _ in zip(answer.iter_lines(), range(20), strict=False) if event]
                assert len(heard) >= 5
            else:
                with pytest.raises(httpx2.TimeoutException):
                    mine.post("/v1/chat/completions", json=body, timeout=0.3)
        went = time.monotonic()
        while figure("requests_processing"):
            assert time.monotonic() - went < 2, "its slot stays taken"
            time.sleep(0.01)
        assert 0 < figure("tokens_predicted_total") - before < (LONG - 8) * 0.9, "it was stopped before its end"
    end = time.monotonic() + 5
    while stream and gateway.figures(key)[counted] < charged + 5:
        assert time.monotonic() < end, "what was said before the cut is charged"
        time.sleep(0.02)


@pytest.mark.requirement("S6", "I10")
def test_keys_and_limits_stand_in_front(gateway: Both, keys: KeyFile) -> None:
    def once(key: str, **more: Any) -> Any:
        with gateway.ask(key) as ask:
            return ask.chat.completions.create(**{"model": "tiny", "messages": user("who"), "max_tokens": 2, **more})

    with pytest.raises(openai.AuthenticationError):
        once("ct-wrong")
    with pytest.raises(openai.AuthenticationError):
        once(SECRET)  # the far server's key opens nothing here
    with pytest.raises(openai.PermissionDeniedError, match="scope 'chat'"):
        once(keys.create("reader", ("embeddings",)))
    few = keys.create("few", requests=2)
    assert once(few).choices and once(few).choices
    with pytest.raises(openai.RateLimitError, match="2 requests a minute") as caught:
        once(few)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    small = keys.create("small", tokens=400)
    with pytest.raises(openai.BadRequestError, match="400 a minute"):
        once(small, max_tokens=200, n=3)
    known = {"model": "learnt", "messages": user("hello"), "temperature": 0, "max_tokens": 290}  # ends after 40
    assert once(small, **known).choices
    assert once(small, **known).choices, "what was reserved and not used is given back"
    with pytest.raises(openai.RateLimitError, match="400 tokens a minute"):
        [once(small, **known) for _ in range(8)]
    large = gateway.post("/v1/chat/completions", model="tiny", messages=user("x" * (3 << 20)))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


def test_a_key_that_the_far_server_refuses_is_our_matter(llama: dict[str, str]) -> None:
    wrong = Upstream("wrong", f"{llama['tiny']}/v1", LIMITS, key="not-the-key")
    with listening(server(wrong, limits=LIMITS)) as url, client(url) as line:
        failed = line.post("/v1/chat/completions", json={"model": "wrong", "messages": user("who")})
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_error")
    assert "not-the-key" not in failed.text and "127.0.0.1" not in failed.text


class StandIn(BaseHTTPRequestHandler):
    """A server of an unknown kind; `script` says what it answers and keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    script: dict[str, Any] = {}

    def setup(self) -> None:
        super().setup()
        self.script["connections"] = self.script.get("connections", 0) + 1

    def do_GET(self) -> None:
        if self.path == "/props":
            self._say(json.dumps(self.script.get("props")).encode(), 200 if "props" in self.script else 404)
        else:
            model = {"id": "x", "owned_by": self.script["owner"], "meta": self.script.get("meta")}
            self._say(json.dumps({"data": [model]}).encode())

    def do_POST(self) -> None:
        self.script["asked"] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "held" in self.script:
            self.script["held"].wait(20)
        plain = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
        self._say(self.script.get("answer") or (DONE if self.script["asked"].get("stream") else plain))

    def _say(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def stand_in() -> Iterator[tuple[str, dict[str, Any]]]:
    StandIn.script.clear()
    StandIn.script["owner"] = "somebody"
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as other:
        other.daemon_threads = True
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{other.server_port}/v1", StandIn.script
        other.shutdown()
        thread.join()


@pytest.mark.requirement("S2")
def test_the_queue_stands_in_front(stand_in: tuple[str, dict[str, Any]]) -> None:
    address, script = stand_in
    script["held"] = held = threading.Event()
    limits = Limits(queue=1, queue_seconds=20)
    behind = Upstream("far", address, limits, places=1)
    statuses: list[int] = []
    with listening(server(behind, limits=limits)) as url, client(url) as line:

        def once() -> None:
            statuses.append(line.post("/v1/chat/completions", json={"model": "far", "messages": user("a")}).status_code)

        threads = [threading.Thread(target=once) for _ in range(2)]
        for number, thread in enumerate(threads):
            thread.start()
            while (behind.admission.used, behind.admission.waiting) != (1, number):
                time.sleep(0.005)
        refused = line.post("/v1/chat/completions", json={"model": "far", "messages": user("a")})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        held.set()
        for thread in threads:
            thread.join(20)
    assert statuses == [200, 200], "who waited has its turn"


@pytest.mark.requirement("S6")
@pytest.mark.parametrize(
    ("owner", "goes_on"),
    [
        ("somebody", {}),
        ("native", {"top_k": 3, "min_tokens": 2, "regex": "a+", "repetition_penalty": 1.5}),
        ("llamacpp", {"top_k": 3, "repeat_penalty": 1.5}),
        ("vllm", {"top_k": 3, "min_tokens": 2, "repetition_penalty": 1.5}),
    ],
)
def test_only_a_server_known_to_follow_a_parameter_is_asked_to(
    stand_in: tuple[str, dict[str, Any]], owner: str, goes_on: dict[str, Any]
) -> None:
    address, script = stand_in
    script["owner"] = owner
    with listening(server(Upstream("far", address, LIMITS))) as url, client(url) as line:
        followed: dict[str, Any] = {}
        given = {"top_k": 3, "min_tokens": 2, "regex": "a+", "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1}
        for name, value in given.items():
            script.pop("asked", None)
            found = line.post("/v1/chat/completions", json={"model": "far", "messages": user("a"), "seed": 5, name: value})
            if found.status_code == 200:
                usual = ("model", "messages", "seed", "stream", "stream_options", "repeat_last_n")
                counted = script["asked"].get("repeat_last_n") == 1 << 17
                assert counted == (owner == "llamacpp" and name.endswith("_penalty")), "not the last 64 tokens alone"
                followed |= {key: kept for key, kept in script["asked"].items() if key not in usual}
                assert (script["asked"]["model"], script["asked"]["seed"]) == ("x", 5)
            else:
                assert (found.status_code, found.json()["error"]["param"], "asked" in script) == (400, name, False)
    assert followed == goes_on | {"presence_penalty": 1, "frequency_penalty": 1}, "which are OpenAI's"


@pytest.mark.parametrize(
    ("props", "meta", "tools", "bias"),
    [
        ({"chat_template_caps": {"supports_tools": False}}, {"n_vocab": 10}, 400, 400),
        ({"chat_template_caps": {"supports_tools": True}}, {"n_vocab": 11}, 200, 200),
        ({"chat_template_caps": {"supports_tools": "no"}}, {"n_vocab": "10"}, 200, 200),
        ({"chat_template_caps": []}, [10], 200, 200),
        (None, None, 200, 200),
    ],
)
def test_what_a_model_there_cannot_follow_is_refused_as_far_as_its_server_tells(
    stand_in: tuple[str, dict[str, Any]], props: Any, meta: Any, tools: int, bias: int
) -> None:
    address, script = stand_in
    script |= {"owner": "llamacpp", "meta": meta} | ({} if props is None else {"props": props})
    asked = {"model": "far", "messages": user("a")}
    function = [{"type": "function", "function": {"name": "f"}}]
    with listening(server(Upstream("far", address, LIMITS))) as url, client(url) as line:
        assert line.post("/v1/chat/completions", json=asked | {"tools": function}).status_code == tools
        assert line.post("/v1/chat/completions", json=asked | {"logit_bias": {"10": 1}}).status_code == bias
        assert line.post("/v1/chat/completions", json=asked).status_code == 200


def test_odd_chunks_are_told_in_openais_order_and_odd_figures_are_not_believed(stand_in: tuple[str, dict[str, Any]]) -> None:
    address, script = stand_in
    events: list[Any] = [
        None, {"id": "c", "choices": [{"index": 1, "delta": {"content": "b"}}], "usage": "many"}, {"id": "c", "choices": "none"},
        {"id": "c", "choices": [7, {"index": [], "delta": {"content": "?"}}]}, {"id": "c", "choices": [], "usage": [1]},
        {"id": "c", "choices": [{"index": 1, "delta": {"content": "c", "role": None}}], "usage": {"completion_tokens": -3}},
    ]  # fmt: skip
    script["answer"] = b"".join(map(sse, events)) + DONE
    with listening(server(Upstream("far", address, LIMITS))) as url, client(url) as line:
        asked = {"model": "far", "messages": user("a"), "stream": True, "stream_options": {"include_usage": True}}
        found = line.post("/v1/chat/completions", json=asked).text
        told = [json.loads(event.removeprefix("data: ")) for event in found.strip().split("\n\n")[:-1]]
        assert found.endswith("data: [DONE]\n\n")
        assert told[0]["choices"] == [{"index": 1, "delta": {"content": "b", "role": "assistant"}}] and "usage" not in told[0]
        assert told[-1]["choices"] == [] and told[-1]["usage"] == {"completion_tokens": -3} and told[-1]["model"] == "far"
        assert 'chattune_tokens_total{kind="completion",model="far"} 0.0' in line.get("/metrics").text
        script["answer"] = b'{"choices":[],"usage":"many"}'
        assert line.post("/v1/chat/completions", json={"model": "far", "messages": user("a")}).status_code == 200


def test_a_plain_answer_is_put_together_from_a_stream(stand_in: tuple[str, dict[str, Any]]) -> None:
    """llama.cpp goes on with a plain answer that nobody waits for, and so is asked for streams."""
    address, script = stand_in
    script["owner"] = "llamacpp"

    def event(index: int, finish: str | None = None, **delta: Any) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": {"content": [{"token": "x"}]} if delta else None}
        return sse({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})

    def call(number: int, arguments: str, **more: Any) -> dict[str, Any]:
        return {"index": number, "function": {"arguments": arguments, **({"name": "f"} if more else {})}, **more}

    pieces = [event(index, content=text) for text in ("a", "b") for index in (10, 9, 1)]
    pieces += [event(0, role="assistant", content=None), event(0, tool_calls=[call(0, '{"x"', id="i", type="function")])]
    pieces += [event(0, tool_calls=[call(1, "{}", id="j", type="function")]), event(0, tool_calls=[call(0, ":1}")])]
    pieces += [event(0, "tool_calls"), event(1, "stop"), event(9, "length"), event(10, "stop"), event(3, "stop")]
    pieces += [sse({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}})] * 2
    asked = {"model": "far", "messages": user("a"), "n": 2}
    with listening(server(Upstream("far", address, LIMITS))) as url, client(url) as line:
        script["answer"] = b"".join(pieces) + DONE
        found = line.post("/v1/chat/completions", json=asked).raise_for_status().json()
        assert (found["object"], found["model"], found["id"]) == ("chat.completion", "far", "c")
        assert [choice["index"] for choice in found["choices"]] == [0, 1, 3, 9, 10]
        assert [choice["message"]["content"] for choice in found["choices"]] == [None, "ab", "", "ab", "ab"]
        assert [choice["finish_reason"] for choice in found["choices"]] == ["tool_calls", "stop", "stop", "length", "stop"]
        assert found["choices"][1]["logprobs"] == {"content": [{"token": "x", "top_logprobs": []}] * 2}
        assert {choice["message"]["role"] for choice in found["choices"]} == {"assistant"}
        assert found["choices"][0]["message"]["tool_calls"] == [
            {"function": {"arguments": '{"x":1}', "name": "f"}, "id": "i", "type": "function"},
            {"function": {"arguments": "{}", "name": "f"}, "id": "j", "type": "function"},
        ]
        assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}, "of two choices, each tells its own"
        for broken in (b"".join(pieces), pieces[0] + sse({"error": {"message": SECRET}}) + DONE, pieces[0] + b"data: {\n\n"):
            script["answer"] = broken
            failed = line.post("/v1/chat/completions", json=asked)
            assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_error")
            assert SECRET not in failed.text


def test_an_idle_connection_is_given_up_before_the_other_server_does(
    stand_in: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upstream.KEPT <= 4, "uvicorn and llama.cpp close theirs after 5 seconds"
    monkeypatch.setattr(upstream, "KEPT", 0.3)
    address, script = stand_in
    with listening(server(Upstream("far", address, LIMITS))) as url, client(url) as line:
        for pause, connections in ((0.0, 1), (0.0, 1), (0.4, 2)):
            time.sleep(pause)
            assert line.post("/v1/chat/completions", json={"model": "far", "messages": user("a")}).status_code == 200
            assert script["connections"] == connections


def _serve(key: str, paths: list[str]) -> None:
    """Be llama.cpp's servers of these files until standard input ends; the addresses are the first lines of standard output."""
    import xllamacpp

    servers = []
    for path in paths:
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_parallel, settings.port, settings.api_keys = path, 4, 0, [key]
        settings.n_ctx, settings.endpoint_metrics = 4 * (LONG if "tiny" in Path(path).name else 128), True
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        if "tiny" in Path(path).name:
            settings.embedding, settings.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        servers.append(xllamacpp.Server(settings))
        print(servers[-1].listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
