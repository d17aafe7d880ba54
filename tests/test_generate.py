"""Replies: seeds, limits, streaming, forgetting, batches, and the conversation in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.core.errors import SettingError, UsageError
from chattune.core.part import kind
from chattune.dialogs.dialog import Message
from chattune.generate.reply import ChatModel, Reply, Sampling, drawn_at
from chattune.generate.rules import Rule
from chattune.generate.terminal import chat, readable
from chattune.models.checkpoint import save_model
from chattune.models.families.gpt import GPT
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

ANSWER = "你好 👩‍👩‍👧 naïve ok\nend"
LEARNT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": ANSWER}]
CONTEXT = 96


def build(**settings: Any) -> tuple[GPT, Template]:
    # Few merges, so that most characters of the answer are made of several tokens.
    template = Template(Tokenizer.train_at_most(["hello there, who are you? "] * 3, 280))
    loud = {"init": {"name": "normal", "std": 0.15}, "init_outputs": "same"}
    shape = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "context": CONTEXT, **loud}
    return GPT(**{**shape, **settings}), template


@pytest.fixture(scope="module")
def wild() -> ChatModel:
    """Random weights: replies of all kinds."""
    family, template = build()
    return ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)


@pytest.fixture(scope="module")
def trained() -> ChatModel:
    """A model that has learnt one exchange by heart."""
    family, template = build(init="fan_in", init_outputs="zero")
    model = family.build(template.tokenizer.vocabulary, seed=0)
    ids, weights = template.render(LEARNT)
    inputs, targets = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        nll = torch.nn.functional.cross_entropy(model(inputs)[0], targets, reduction="none")
        (nll * torch.tensor(weights[1:])).mean().backward()
        optimizer.step()
    return ChatModel(model, template)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_learnt_answer_is_given_streamed_and_ended(trained: ChatModel) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=1)
    events = list(trained.stream(user("hello"), sampling))
    assert "".join(event.text for event in events) == ANSWER
    assert events[-1].finish_reason == "stop"
    assert events[-1].token is None
    assert all(event.finish_reason is None and event.token is not None for event in events[:-1])
    (reply,) = trained.replies([user("hello")], sampling)
    assert (reply.text, reply.finish_reason, reply.forgotten) == (ANSWER, "stop", 0)
    assert list(reply.tokens) == trained.tokenizer.encode(ANSWER)
    assert trained.reply("hello", temperature=0, repetition_penalty=1) == ANSWER
    assert trained.reply([Message("user", "hello")], temperature=0, repetition_penalty=1) == ANSWER


@pytest.mark.requirement("S5")
def test_streaming_never_splits_a_character(trained: ChatModel) -> None:
    events = list(trained.stream(user("hello"), Sampling(temperature=0, repetition_penalty=1)))
    pieces = [event.text for event in events]
    assert "\ufffd" not in "".join(pieces)
    assert pieces.count("") > 5, "tokens that are parts of characters give no text yet"
    assert "".join(pieces) == ANSWER


@pytest.mark.requirement("S5")
@pytest.mark.parametrize("seed", range(25))
def test_streaming_and_batches_give_the_same_replies(wild: ChatModel, seed: int) -> None:
    sampling = Sampling(seed=seed, temperature=1.0, max_tokens=12)
    many = [user("who " * n) for n in (1, 9, 3, 1, 14, 2, 30)]
    replies = wild.replies(many, sampling)
    for messages, reply in zip(many, replies, strict=True):
        events = list(wild.stream(messages, sampling))
        assert "".join(event.text for event in events) == reply.text
        assert tuple(event.token for event in events[:-1]) == reply.tokens
        assert events[-1].finish_reason == reply.finish_reason
        assert events[-1].forgotten == reply.forgotten
    assert replies[0] == replies[3], "the same prompt has the same reply, wherever it stands"


def test_more_replies_than_stand_side_by_side_come_in_their_order(wild: ChatModel) -> None:
    many = [user(f"who are you, number {n}?" + " hello" * (n % 7)) for n in range(70)]
    sampling = Sampling(temperature=1.2, max_tokens=10, top_p=1.0)
    replies = wild.replies(many, sampling)
    assert [reply.text for reply in replies[::-1]] == [reply.text for reply in wild.replies(many[::-1], sampling)]
    assert len({reply.tokens for reply in replies}) > 60
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    assert wild.replies([], sampling) == []


def test_the_same_seed_gives_the_same_reply_and_another_one_another(wild: ChatModel) -> None:
    hot = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 30}
    assert wild.reply("hello", seed=1, **hot) == wild.reply("hello", seed=1, **hot)
    assert len({wild.reply("hello", seed=seed, **hot) for seed in range(8)}) == 8
    state = torch.random.get_rng_state()
    wild.reply("hello", seed=1, **hot)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"


@pytest.mark.requirement("R201")
def test_temperature_zero_is_greedy_whatever_the_seed(wild: ChatModel) -> None:
    greedy = {wild.reply("hello", temperature=0, seed=seed, max_tokens=20) for seed in range(5)}
    assert len(greedy) == 1
    ids = wild.prompt_ids(user("hello"))
    (reply,) = wild.replies([user("hello")], Sampling(temperature=0, repetition_penalty=1, max_tokens=20))
    for token in reply.tokens:
        logits = wild.logits(ids)[-1]
        logits[[t for name, t in wild.tokenizer.control.items() if name != "end"]] = -torch.inf
        assert int(logits.argmax()) == token
        ids.append(token)


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, -torch.inf, 2.0]])
    chance = torch.from_numpy(np.random.default_rng(0).random(100_000))
    drawn = torch.bincount(drawn_at(logits.expand(100_000, 5), chance), minlength=5) / 100_000
    assert drawn[3] == 0
    torch.testing.assert_close(drawn, logits[0].softmax(-1), atol=0.008, rtol=0)  # five standard errors of a share near a half
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert drawn_at(torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2), edges).tolist() == [1, 1]


def test_control_tokens_other_than_the_end_are_never_drawn(wild: ChatModel) -> None:
    never = {token for name, token in wild.tokenizer.control.items() if name != "end"}
    anything = Sampling(temperature=50.0, top_p=1.0, repetition_penalty=1, max_tokens=32)
    replies = wild.replies([user(f"hello {n}") for n in range(64)], anything)
    said = [token for reply in replies for token in reply.tokens]
    assert len(said) > 1000
    assert not never & set(said)
    assert not wild.ends & set(said)
    assert len(set(said)) > 200, "the positive control: at this temperature everything else is drawn"


def test_a_model_with_more_ids_than_its_tokenizer_never_draws_them() -> None:
    family, template = build()
    padded = ChatModel(family.build(template.tokenizer.vocabulary + 40, seed=0), template)
    (reply,) = padded.replies([user("hello")], Sampling(temperature=50.0, top_p=1.0, max_tokens=60))
    assert max(reply.tokens) < template.tokenizer.vocabulary


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_a_reply_ends_at_its_limit_or_where_the_context_does(wild: ChatModel, limit: int) -> None:
    for messages in (user("hello"), user("who are you? " * 6)):
        (reply,) = wild.replies([messages], Sampling(temperature=0.5, max_tokens=limit, seed=3))
        room = min(limit, CONTEXT - len(wild.prompt_ids(messages)))
        assert len(reply.tokens) <= room
        assert (reply.finish_reason == "length") == (len(reply.tokens) == room)


@pytest.mark.requirement("R203")
def test_what_does_not_fit_is_forgotten_from_the_front_and_said(wild: ChatModel) -> None:
    system = {"role": "system", "content": "hello there"}
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"number {n}"} for n in range(31)]
    sampling = Sampling(max_tokens=24)
    prompt, forgotten = wild.fitted([system, *turns], sampling)
    assert 0 < forgotten < 31
    assert prompt == wild.prompt_ids([system, *turns[forgotten:]])
    assert len(prompt) <= CONTEXT - 24 < len(wild.prompt_ids([system, *turns[forgotten - 1 :]])), "as much as fits is kept"
    assert wild.replies([[system, *turns]], sampling)[0].forgotten == forgotten
    assert next(iter(wild.stream([system, *turns], sampling))).forgotten == forgotten
    assert wild.replies([turns[:3]], sampling)[0].forgotten == 0
    assert wild.tokenizer.decode(prompt).startswith("hello there"), "the system message stays"


@pytest.mark.parametrize("text", ["hello " * 300, "你好吗" * 300, "👩‍👩‍👧" * 100, "\x00" * 500])
def test_a_message_longer_than_the_context_keeps_its_end(wild: ChatModel, text: str) -> None:
    (reply,) = wild.replies([[{"role": "system", "content": "hi"}, *user("before"), *user(text + "!last")]], Sampling(max_tokens=8))
    assert reply.forgotten == 2, "the message before, and the beginning of this one"
    prompt, _ = wild.fitted(user(text + "!last"), Sampling(max_tokens=8))
    assert len(prompt) <= CONTEXT - 8
    assert len(prompt) > CONTEXT - 8 - 12, "at most a few ids are lost where a character was cut"
    kept = wild.tokenizer.decode(prompt)
    assert (text + "!last").endswith(kept)


def test_a_system_message_that_fills_the_context_is_refused(wild: ChatModel) -> None:
    system = {"role": "system", "content": "hello " * 300}
    for messages in ([system, *user("hi" * 90)], [system]):
        with pytest.raises(UsageError, match="leaves no room") as caught:
            wild.replies([messages])
        assert caught.value.path == "messages[0]"


@pytest.mark.requirement("E23")
def test_sampling_settings_are_checked_by_name(wild: ChatModel) -> None:
    with pytest.raises(SettingError, match="Did you mean 'temperature'"):
        wild.reply("hello", temprature=1)
    for wrong in ({"temperature": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}, {"repetition_penalty": 0.5}, {"min_p": 2}):
        with pytest.raises(SettingError):
            wild.reply("hello", **wrong)


def test_a_stream_can_be_left_and_another_one_taken_up_at_once(wild: ChatModel) -> None:
    sampling = Sampling(temperature=1.0, min_tokens=20, max_tokens=20)
    (whole,) = wild.replies([user("hello")], sampling)
    left, between = wild.stream(user("hello"), sampling), wild.stream(user("who"), sampling)
    for stream in (left, between, left):
        next(stream)
    del left
    assert "".join(event.text for event in wild.stream(user("hello"), sampling)) == whole.text
    assert len(list(between)) == 20, "the one that was not left goes on"


# The engine that is kept


@pytest.fixture
def kept() -> ChatModel:
    """A model of its own, which nothing was asked yet."""
    family, template = build()
    return ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)


def test_a_conversation_goes_on_from_what_was_read_before(kept: ChatModel) -> None:
    assert kept.figures() is None, "nothing is made before it is needed"
    sampling = Sampling(temperature=0.8, max_tokens=8, min_tokens=8)
    turns = user("who are you, who are you? hello there")
    for turn in range(3):
        (reply,) = kept.replies([turns], sampling)
        fresh = ChatModel(kept.model, kept.template)
        assert fresh.replies([turns], sampling) == [reply]
        found = kept.figures()
        assert found is not None and (found.prefix_hits_total > 0) == (turn > 0)
        turns = [*turns, {"role": "assistant", "content": reply.text}, *user(f"and {turn}?")]
    assert found.prefix_hits_total > found.prompt_total / 3
    kept.close()
    assert kept.figures() is None
    assert kept.replies([turns], sampling) == ChatModel(kept.model, kept.template).replies([turns], sampling), "it begins anew"


def test_threads_share_one_engine_and_have_the_replies_that_each_has_alone(kept: ChatModel) -> None:
    asked = [(user("hello " * (1 + number % 5)), Sampling(seed=number, temperature=1.0, max_tokens=16)) for number in range(12)]
    alone = [ChatModel(kept.model, kept.template).replies([messages], sampling)[0] for messages, sampling in asked]
    found: list[Any] = [None] * len(asked)
    together = threading.Barrier(4)

    def ask(worker: int) -> None:
        together.wait()
        for number in range(worker, len(asked), 4):
            messages, sampling = asked[number]
            if number % 2:
                (found[number],) = kept.replies([messages], sampling)
            else:
                events = list(kept.stream(messages, sampling))
                ids = tuple(event.token for event in events[:-1])
                found[number] = Reply("".join(event.text for event in events), ids, events[-1].finish_reason)  # type: ignore[arg-type]

    workers = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(60)
    assert found == alone
    figures = kept.figures()
    assert figures is not None and (figures.running, figures.waiting) == (0, 0)
    assert figures.generated_total == sum(len(reply.tokens) for reply in alone), "all of them by one engine"


def test_a_thread_is_not_kept_from_its_tokens_by_another_that_computes(kept: ChatModel) -> None:
    """Who makes the steps hands the others what is theirs: none waits until another has ended."""
    long, short = Sampling(temperature=1.0, min_tokens=60, max_tokens=60), Sampling(temperature=1.0, min_tokens=4, max_tokens=4)
    first = kept.stream(user("hello"), long)
    next(first)
    began, ended = threading.Event(), threading.Event()

    def other() -> None:
        began.set()
        kept.replies([user("who")], short)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    began.wait(10)
    count = 1
    for _ in first:
        count += 1
        if ended.is_set():
            break
    assert count < 61, "it had ended before the longer one"
    first.close()
    thread.join(10)


def test_weights_that_have_changed_are_seen_by_the_next_reply() -> None:
    family, template = build()
    model = ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)
    other = family.build(template.tokenizer.vocabulary, seed=1)
    sampling = Sampling(temperature=0, max_tokens=12)
    before = model.replies([user("hello")], sampling)
    model.model.load_state_dict(other.state_dict())
    after = model.replies([user("hello")], sampling)
    assert after == ChatModel(other, template).replies([user("hello")], sampling) != before


def test_an_interrupted_step_is_not_gone_on_from(kept: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=20, min_tokens=20)
    (whole,) = ChatModel(kept.model, kept.template).replies([user("hello")], sampling)
    stream = kept.stream(user("hello"), sampling)
    next(stream)
    hidden, passes = type(kept.model).hidden, 0

    def interrupted(*given: Any, **named: Any) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyboardInterrupt
        return hidden(*given, **named)

    monkeypatch.setattr(type(kept.model), "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    monkeypatch.undo()
    assert kept.figures() is None
    assert kept.replies([user("hello")], sampling) == [whole]


@pytest.mark.parametrize("name", ["gru", "encoder_decoder", "convolution", "mlp"])
def test_every_kind_of_memory_serves_one_reply_after_the_other(name: str) -> None:
    _, template = build()
    part = kind("families").load(name)
    shape = {"layers": 1, "width": 32, "heads": 2, "context": 64, "init": {"name": "normal", "std": 0.2}, "init_outputs": "same"}
    family = part(**{key: value for key, value in shape.items() if key in part.model_fields})
    network = family.build(template.tokenizer.vocabulary, seed=0)  # type: ignore[attr-defined]
    model, sampling = ChatModel(network, template), Sampling(temperature=1.0, max_tokens=9)
    many = [user("hello " * n) for n in (1, 4, 2)]
    for _ in range(3):
        assert model.replies(many, sampling) == ChatModel(network, template).replies(many, sampling)
        assert [model.replies([messages], sampling)[0] for messages in many] == model.replies(many, sampling)


@pytest.mark.requirement("S5")
def test_stop_texts_end_replies_streamed_and_in_batches(trained: ChatModel) -> None:
    greedy = {"temperature": 0, "repetition_penalty": 1}
    cases = {
        ("naïve",): "你好 👩‍👩‍👧 ", ("👩‍👩‍👧",): "你好 ", ("你",): "", ("\nend", "ok"): "你好 👩‍👩‍👧 naïve ", ("endless",): ANSWER,
    }  # fmt: skip
    for stop, said in cases.items():
        assert trained.reply("hello", stop=stop, **greedy) == said
        events = list(trained.stream(user("hello"), Sampling(stop=stop, **greedy)))  # type: ignore[arg-type]
        assert "".join(event.text for event in events) == said
        assert events[-1].finish_reason == "stop"


class OnlyOne(Rule):
    """Allow one token."""

    token: int = 50

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor([self.token]), 0.0)


def test_a_rule_from_outside_takes_part(wild: ChatModel) -> None:
    (reply,) = wild.replies([user("hello")], Sampling(rules=[OnlyOne(token=60)], max_tokens=4))
    assert reply.tokens == (60,) * 4
    (reply,) = wild.replies([user("hello")], Sampling(rules=[{"name": "top_k", "k": 1}], temperature=3.0, max_tokens=9))
    assert reply.tokens == wild.replies([user("hello")], Sampling(temperature=0, max_tokens=9))[0].tokens


def test_hundreds_of_replies_take_seconds(trained: ChatModel) -> None:
    family, template = build(size="tiny", layers=4, width=256, heads=4, kv_heads=4, context=256)
    model = ChatModel(family.build(4096, seed=0), template)
    many = [user("hello there " * (1 + n % 12)) for n in range(64)]
    began = time.process_time()
    replies = model.replies(many, Sampling(max_tokens=48))
    seconds = time.process_time() - began
    assert sum(len(reply.tokens) for reply in replies) > 64 * 20
    assert seconds * 300 / 64 < 60, f"300 replies would take {seconds * 300 / 64:.0f} s of one core; the bar is 20 s on two idle ones"


# The terminal


def said(model: ChatModel, *lines: str, **settings: Any) -> list[str]:
    out = io.StringIO()
    chat(model, Sampling(**{"temperature": 0, "repetition_penalty": 1, **settings}), None, [line + "\n" for line in lines], out)
    return out.getvalue().splitlines()


def test_a_pipe_gets_one_line_an_answer_and_nothing_else(trained: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ANSWER.replace("\n", " ")
    assert said(trained, "hello", "", "/help", "/reset", "hello", "/quit", "hello") == [answer, answer]
    assert said(trained, "/set temperature=0 seed=4", "hello") == [answer]
    assert capsys.readouterr() == ("", "")
    assert said(trained, "/sett seed=1", "/set temprature=1", "/set top_p=7", "/set seed", "/set seed=[", "hello") == [answer]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "Did you mean '/set'?" in errors[0]
    assert "Did you mean 'temperature'?" in errors[1]


class Remembers(ChatModel):
    """Keeps the messages that it was given."""

    def stream(self, messages: Any, sampling: Any = None) -> Iterator[Any]:
        self.__dict__.setdefault("given", []).append([(m.role, m.content) for m in messages])
        yield from super().stream(messages, sampling)


def test_history_system_and_reset_are_kept(trained: ChatModel) -> None:
    model = Remembers(trained.model, trained.template)
    said(model, "hello", "/system be kind", "hello", "/reset", "hello", "/system", "hello", max_tokens=3)
    first, kind, again, plain = model.given
    assert first == plain == [("user", "hello")]
    assert kind == again == [("system", "be kind"), ("user", "hello")]
    said(model, "hello", "hello", max_tokens=3)
    assert [role for role, _ in model.given[-1]] == ["user", "assistant", "user"]


class Interrupts(ChatModel):
    """Ctrl-C after four tokens of the first answer."""

    asked = 0

    def stream(self, messages: Any, sampling: Any = None) -> Iterator[Any]:
        self.asked += 1
        for number, event in enumerate(super().stream(messages, sampling)):
            if self.asked == 1 and number == 4:
                raise KeyboardInterrupt
            yield event


def test_ctrl_c_stops_the_answer_and_not_the_program(trained: ChatModel) -> None:
    model = Interrupts(trained.model, trained.template)
    cut, whole = said(model, "hello", "/reset", "hello")
    assert ANSWER.startswith(cut) and cut != ANSWER
    assert whole == ANSWER.replace("\n", " ")


@pytest.mark.security
@pytest.mark.requirement("I23")
def test_a_reply_can_not_steer_the_terminal() -> None:
    hostile = "a\x1b]52;c;ZXZpbA==\x07b\x1b[2Jc\rd\x9b31me\u202ef\u2066g\x00\u2028"
    shown = readable(hostile)
    assert re.sub("\ufffd", "", shown) == "a]52;c;ZXZpbA==b[2Jcd31mefg"
    kept = "tab\there\nnext 你好\u3000全角 👩\u200d👩\u200d👧 👍🏽 ❤\ufe0f \U0001f3f4\U000e0067\U000e0062\U000e007f café e\u0301 \u00a0"
    assert readable(kept) == kept


def test_a_real_terminal_has_prompts_notes_and_streams(trained: ChatModel, tmp_path: Path) -> None:
    trained.template.save(tmp_path)
    save_model(trained.model, tmp_path, tmp_path, "# It knows one answer\n")
    program = (
        "import sys; from pathlib import Path; from chattune.generate.terminal import chat; from chattune.generate.reply import *;"
        "from chattune.models.checkpoint import load_model; from chattune.tokens.tokenizer import Tokenizer;"
        "from chattune.tokens.template import Template; p = Path(sys.argv[1]);"
        "chat(ChatModel(load_model(p), Template(Tokenizer.load(p))), Sampling(temperature=0, repetition_penalty=1))"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""

    def until(text: str) -> None:
        nonlocal seen
        while text.encode() not in seen:
            assert select.select([ours], [], [], 120)[0], seen  # seconds; importing takes a few, more on a busy machine
            seen += os.read(ours, 4096)
        seen = seen.split(text.encode(), 1)[1]

    try:
        until("/help shows the commands")
        until("› ")
        for _ in range(20):  # Ctrl-C at the prompt; one that comes just before the read begins is seen only by the next
            process.send_signal(signal.SIGINT)
            if select.select([ours], [], [], 3)[0]:
                break
        until("/quit or Ctrl-D leaves")
        os.write(ours, b"hello\n")
        until("naïve ok")
        until("end")
        os.write(ours, b"/help\n")
        until("/system TEXT")
        os.write(ours, b"/set seed=3\n")
        until("seed=3")
        os.write(ours, b"/quit\n")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
