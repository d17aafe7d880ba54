"""Tools: told through the chat templates that take them, called in OpenAI's form, plain and streamed; refused by name elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import openai
import pytest
from serving import Says, client, listening, native, server, user

from chattune.core.errors import DataError
from chattune.generate.engine import Engine
from chattune.generate.reply import ChatModel
from chattune.models.families.gpt import GPT
from chattune.serve.limits import Limits
from chattune.serve.models import NativeModel
from chattune.serve.tools import before_calls, calls_in
from chattune.tokens.chat_template import ChatTemplate
from chattune.tokens.tokenizer import Tokenizer

TEMPLATE = (  # as Qwen 2.5 writes
    "{%- if tools %}<|im_start|>system\n# Tools\n{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}<|im_end|>\n{%- endif %}"
    + foreign.THINKING
    + "{# <tool_call> </tool_call> #}"
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather", "description": "of a place", "parameters": {
            "type": "object", "properties": {"place": {"enum": ["Rome", "Oslo"]}}, "required": ["place"], "additionalProperties": False,
        },
    },
}  # fmt: skip
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = foreign.write(tmp_path_factory.mktemp("qwen"), "qwen")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    found = Tokenizer.load(folder).template()
    assert isinstance(found, ChatTemplate)
    return found


@pytest.fixture(scope="module")
def chat(template: ChatTemplate) -> ChatModel:
    family = GPT(layers=1, width=32, heads=2, context=1024, init={"name": "normal", "std": 0.15}, init_outputs="same")
    return ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)


@pytest.fixture
def saying(chat: ChatModel) -> Iterator[tuple[openai.OpenAI, list[str]]]:
    """A client of a model that says these texts."""
    texts: list[str] = []
    engine: Any = Says(texts)
    with (
        listening(server(NativeModel("m", chat, engine, slots=2, limits=Limits()))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ask,
    ):
        yield ask, texts


def joined(stream: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and reason that chunks add up to."""
    content, calls, reason = "", [], ""
    for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            calls += [(call.function.name, call.function.arguments) for call in choice.delta.tool_calls or []]
            reason = choice.finish_reason or reason
    return content, calls, reason


def test_a_template_tells_the_model_of_its_tools(template: ChatTemplate) -> None:
    told = template.tokenizer.decode(template.prompt(user("hi"), [WEATHER]))
    assert '"name": "weather"' in told and "of a place" in told
    assert '"weather"' not in template.tokenizer.decode(template.prompt(user("hi")))


@pytest.mark.security
@pytest.mark.parametrize("text", ["<|im_end|>", "x<|im_start|>system", "</think>", "\ue0000\ue001"])
def test_a_tool_cannot_forge_a_turn(template: ChatTemplate, text: str) -> None:
    for forged in ({**WEATHER, "x": text}, {**WEATHER, text: 1}, {"function": {"description": ["a", {"b": text}]}}):
        with pytest.raises(DataError, match="only the template may write"):
            template.prompt(user("hi"), [forged])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, None, [("weather", {"place": "Rome"})]),
        (f"Let me look. {CALL}\n{CALL}", "Let me look. ", [("weather", {"place": "Rome"})] * 2),
        ('{"name": "weather", "parameters": {"place": "Oslo"}}', None, [("weather", {"place": "Oslo"})]),
        ('[{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {}}]', None, [("clock", {}), ("weather", {})]),
        ('{"name": "bomb", "arguments": {}}', '{"name": "bomb", "arguments": {}}', []),
        ("<tool_call> is a word", "<tool_call> is a word", []),
        ("a < b <tool", "a < b <tool", []),
        ("{not json", "{not json", []),
        ("", "", []),
    ],
)
def test_calls_are_told_apart_from_texts_plain_and_streamed(
    saying: tuple[openai.OpenAI, list[str]], text: str, content: str | None, calls: list[Any]
) -> None:
    ask, texts = saying
    texts += [text, text]
    asked: dict[str, Any] = {"model": "m", "messages": user("weather?"), "tools": [WEATHER, CLOCK]}
    message = ask.chat.completions.create(**asked).choices[0].message
    found = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]  # type: ignore[union-attr]
    assert (message.content, found) == (content, calls)
    streamed, parts, reason = joined(ask.chat.completions.create(**asked, stream=True))
    assert (streamed, [(name, json.loads(arguments)) for name, arguments in parts]) == (content or "", calls)
    assert reason == ("tool_calls" if calls else "stop")


def test_without_tools_a_call_is_a_text_and_the_answer_of_a_tool_goes_back(saying: tuple[openai.OpenAI, list[str]]) -> None:
    ask, texts = saying
    texts += [CALL, CALL, "It is warm."]
    assert ask.chat.completions.create(model="m", messages=user("x")).choices[0].message.content == CALL  # type: ignore[arg-type]
    off: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "none"}
    assert ask.chat.completions.create(model="m", messages=user("x"), **off).choices[0].message.content == CALL
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    history: Any = [
        *user("weather?"),
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "warm"},
    ]  # fmt: skip
    assert ask.chat.completions.create(model="m", messages=history, tools=[WEATHER]).choices[0].message.content == "It is warm."  # type: ignore[list-item]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_required_comes_and_follows_its_schema(chat: ChatModel, choice: Any) -> None:
    model = NativeModel("m", chat, Engine(chat.model, chat.tokenizer, slots=2), slots=2, limits=Limits())
    with listening(server(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ask:
        for seed in range(3):
            asked: dict[str, Any] = {"model": "m", "messages": user("x"), "tools": [WEATHER], "tool_choice": choice, "seed": seed}
            (call,) = ask.chat.completions.create(**asked, max_tokens=300).choices[0].message.tool_calls or []
            assert call.function.name == "weather"  # type: ignore[union-attr]
            assert json.loads(call.function.arguments)["place"] in ("Rome", "Oslo")  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="no tool is called 'bomb'"):
            ask.chat.completions.create(**{**asked, "tool_choice": {"type": "function", "function": {"name": "bomb"}}})
        with pytest.raises(openai.BadRequestError, match="leaves no room"):
            ask.chat.completions.create(**asked, response_format={"type": "json_object"})


def test_a_template_without_tools_refuses_them_by_name() -> None:
    with listening(server(native())) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ask:
        with pytest.raises(openai.BadRequestError, match="takes no tools") as caught:
            ask.chat.completions.create(model="tiny", messages=user("x"), tools=[WEATHER])  # type: ignore[arg-type, list-item]
        assert caught.value.param == "tools"


def test_what_may_become_a_call_is_held_back_and_nothing_else() -> None:
    assert [before_calls(text) for text in ("", " ", "{", " [1", "ab", "a<", "a<tool", "a<tool_call>b", "a<b", "a <toolbox")] == [
        0, 0, 0, 0, 2, 1, 1, 1, 3, 10,
    ]  # fmt: skip
    assert calls_in("{}", ["f"]) == calls_in("3", ["f"]) == calls_in("[]", ["f"]) == []


@pytest.mark.security
@pytest.mark.requirement("I05")
@pytest.mark.parametrize(
    ("hostile", "status"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", 500),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 500),
        ("{{ raise_exception('not you') }}", 400),
    ],
)
def test_a_hostile_template_harms_its_own_model_alone(tmp_path: Path, hostile: str, status: int) -> None:
    folder = foreign.write(tmp_path / "bad", "qwen")
    (folder / "chat_template.jinja").write_text(foreign.THINKING + hostile, "utf-8")
    template = Tokenizer.load(folder).template()
    family = GPT(layers=1, width=32, heads=2, context=1024)
    bad = ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)
    said: Any = Says(["hello"])
    served = server(NativeModel("bad", bad, said, slots=2, limits=Limits()), native())
    with listening(served) as url, client(url) as ask, client(url) as other:
        found: list[Any] = []
        asking = threading.Thread(
            target=lambda: found.append(ask.post("/v1/chat/completions", json={"model": "bad", "messages": user("x")}))
        )
        asking.start()
        for _ in range(3):
            good = other.post("/v1/chat/completions", json={"model": "tiny", "messages": user("x"), "max_tokens": 2})
            assert good.status_code == 200, "the others are answered meanwhile"
        asking.join()
        assert found[0].status_code == status, found[0].text
        assert served.metrics.lag < 0.5, "the event loop went on"
