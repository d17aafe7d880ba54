"""The engine: the same replies however they are decoded, for every family; joining, leaving, failing, streaming and counting."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from chattune.core.errors import SettingError, UsageError
from chattune.core.part import kind
from chattune.generate.engine import Ask, Engine
from chattune.generate.reply import Reply, ReplyEvent, Sampling
from chattune.generate.runner import Piece, TorchRunner, runner_for
from chattune.generate.text import Stops
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.tokenizer import Tokenizer

FAMILIES = kind("families").names()
# Settings that make a model small, and its fresh outputs other than zero, wherever a family has them.
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 96, "init": {"name": "normal", "std": 0.2}, "init_outputs": "same",
}  # fmt: skip
VOCABULARY = 300
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=14)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_at_most(["hello there, who are you? 你好"] * 3, 280)


def build(name: str, **settings: Any) -> LanguageModel:
    part = kind("families").load(name)
    family = part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})
    return family.build(VOCABULARY, seed=0).eval()


@pytest.fixture(scope="module")
def gpt() -> LanguageModel:
    return build("gpt")


def prompts(count: int = 7) -> list[list[int]]:
    """Of many lengths, some with a beginning in common, with ends of turns among their tokens."""
    random = torch.Generator().manual_seed(0)
    system = torch.randint(0, 280, (24,), generator=random).tolist()
    lengths = [3, 17, 40, 1, 9, 33, 5, 12, 28, 2, 21, 8]
    own = [torch.randint(0, 280, (lengths[number % 12],), generator=random).tolist() for number in range(count)]
    return [[*(system if number % 2 else []), *ids] for number, ids in enumerate(own)]


def asks(sampling: Sampling, count: int = 7, **more: Any) -> list[Ask]:
    return [Ask(tuple(prompt), sampling, **more) for prompt in prompts(count)]


def walked(model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens by whole passes, without a cache."""
    never, ids = [*tokenizer.never, *range(tokenizer.vocabulary, VOCABULARY)], list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1].float()
        logits[never] = -torch.inf
        if (token := int(logits.argmax())) in tokenizer.ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.requirement("R200")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_tokens_however_they_are_decoded(name: str, tokenizer: Tokenizer) -> None:
    model = build(name)
    expected = [walked(model, tokenizer, prompt, 14) for prompt in prompts()]

    def tokens(replies: Sequence[Reply]) -> list[list[int]]:
        return [list(reply.tokens) for reply in replies]

    single = Engine(model, tokenizer, slots=1)
    assert tokens([single.run([ask])[0] for ask in asks(GREEDY)]) == expected, "one after the other, in a slot that is used again"
    assert tokens(Engine(model, tokenizer, slots=7).run(asks(GREEDY))) == expected, "side by side"
    chunked = Engine(model, tokenizer, slots=3, chunk=5)
    assert tokens(chunked.run(asks(GREEDY))) == expected, "in chunks, joining while others go on"
    assert tokens(chunked.run(asks(GREEDY))) == expected, "once more, from what slots hold"
    load = chunked.load()
    assert (load.waiting, load.running, load.tokens_waiting) == (0, 0, 0)
    assert load.generated_total == 2 * sum(map(len, expected))
    assert load.prompt_total == 2 * sum(map(len, prompts()))
    assert (load.prefix_hits_total > 0) == chunked.runner.rewinds


@pytest.mark.requirement("R200")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_goes_on_from_what_its_slot_holds(name: str, tokenizer: Tokenizer) -> None:
    model = build(name)
    engine = Engine(model, tokenizer, slots=2)
    history, length = prompts()[1], 0
    for turn in range(3):
        (reply,) = engine.run([Ask(tuple(history), GREEDY)])
        assert list(reply.tokens) == walked(model, tokenizer, history, 14)
        shared = engine.load().prefix_hits_total
        assert (shared > length) == (turn > 0 and engine.runner.joins), "recurrent states go on, too"
        length = shared
        history = [*history, *reply.tokens, tokenizer.ends[0], 50 + turn, 60]
        engine.run([Ask(tuple(prompts()[2]), GREEDY)])  # another conversation in between


@pytest.mark.requirement("R200", "R201")
@pytest.mark.parametrize("seed", range(5))
def test_draws_do_not_depend_on_what_is_decoded_beside_them(gpt: LanguageModel, tokenizer: Tokenizer, seed: int) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed, max_tokens=20)
    alone = [Engine(gpt, tokenizer, slots=1).run([ask])[0] for ask in asks(sampling, 12)]
    assert Engine(gpt, tokenizer, slots=12).run(asks(sampling, 12)) == alone
    assert Engine(gpt, tokenizer, slots=5, chunk=7).run(asks(sampling, 12)) == alone
    mixed = [Ask(ask.prompt, Sampling(temperature=0.3 * (number % 4), seed=seed)) for number, ask in enumerate(asks(sampling, 12))]
    together = Engine(gpt, tokenizer, slots=24).run([ask for pair in zip(asks(sampling, 12), mixed, strict=True) for ask in pair])
    assert together[::2] == alone, "requests with other settings stand beside"


def test_each_of_several_replies_has_a_stream_of_its_own(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    sampling = Sampling(temperature=1.5, top_p=1.0, max_tokens=20)
    prompt = tuple(prompts()[2])
    engine = Engine(gpt, tokenizer, slots=4)
    replies = engine.run([Ask(prompt, sampling, number=number) for number in range(6)])
    assert len({reply.tokens for reply in replies}) == 6
    assert engine.load().prefix_hits_total == 5 * (len(prompt) - 1), "the prompt was read once"
    assert engine.run([Ask(prompt, sampling, number=4)]) == replies[4:5]
    assert engine.run([Ask(prompt, sampling)]) == replies[:1]


def test_runners_give_the_logits_of_whole_passes_for_pieces_of_any_cut(gpt: LanguageModel) -> None:
    runner = TorchRunner(gpt, slots=4, length=40)
    rows = torch.randint(0, VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = gpt(rows)
    ids = rows.tolist()
    close = {"atol": 1e-4, "rtol": 1e-4}  # float32 sums of some dozens of terms of order 10, taken in another order
    first = runner.forward([Piece(2, 0, ids[2][:5]), Piece(0, 0, ids[0][:20], True), Piece(3, 0, ids[3][:1])])
    torch.testing.assert_close(first, torch.cat([whole[2, 4:5], whole[0, :20], whole[3, :1]]), **close)
    again = runner.forward([Piece(0, 11, ids[0][11:14]), Piece(3, 1, ids[3][1:30], True)])
    torch.testing.assert_close(again, torch.cat([whole[0, 13:14], whole[3, 1:]]), **close)
    runner.copy(3, 1, 12)
    mixed = [*ids[3][:12], *ids[1][12:20]]
    with torch.no_grad():
        expected = gpt(torch.tensor([mixed]))[0, 12:]
    torch.testing.assert_close(runner.forward([Piece(1, 12, mixed[12:], True)]), expected, **close)


def test_a_runner_says_what_it_is_and_what_none_can_do_is_refused(gpt: LanguageModel) -> None:
    place: dict[str, Any] = {"slots": 1, "length": 20, "native": False}
    assert runner_for(gpt, **place).why == "PyTorch, with weights in float32: native=False was asked for"
    short = runner_for(gpt, weights="bfloat16", **place)
    assert "bfloat16" in short.why
    exact = runner_for(gpt, **place).forward([Piece(0, 0, [5, 6, 7])])
    assert 0 < float((short.forward([Piece(0, 0, [5, 6, 7])]) - exact).abs().max()) < 0.3  # 8 bits of logits of order 10
    assert gpt.dtype == torch.float32, "the model itself stays"
    with pytest.raises(UsageError, match="weights cannot be kept in 'int3'"):
        runner_for(gpt, weights="int3", **place)
    with pytest.raises(UsageError, match="gru family has no weights in int8"):
        runner_for(build("gru"), weights="int8", **place)


def test_a_cache_takes_memory_for_what_it_holds_only(tokenizer: Tokenizer) -> None:
    """Slots × context would be 16 GB."""
    import resource

    model = build("gpt", layers=2, width=64, context=1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = Engine(model, tokenizer, slots=16)
    engine.run(asks(GREEDY))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


# Settings


def test_stop_texts_end_a_reply_and_never_leak(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    hot = {"temperature": 1.5, "top_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 60}
    engine = Engine(gpt, tokenizer, slots=8)
    for seed in range(8):
        ask = Ask(tuple(prompts()[4]), Sampling(seed=seed, **hot))
        (plain,) = engine.run([ask])
        text = plain.text
        for start, length in ((0, 1), (len(text) // 2, 3), (len(text) - 2, 2), (len(text) // 3, 5)):
            stop = text[start : start + length]
            stops = (stop, "never said by anybody", stop + "x")
            events = list(engine.stream(Ask(ask.prompt, Sampling(seed=seed, stop=stops, **hot))))
            said = "".join(event.text for event in events)
            assert said == text[: text.index(stop)]
            assert events[-1].finish_reason == "stop"
            assert all(event.token is not None for event in events[:-1])
        (other,) = engine.run([Ask(ask.prompt, Sampling(seed=seed, stop="never said by anybody", **hot))])
        assert other == plain, "a stop text that does not come changes nothing"


@pytest.mark.parametrize("text", ["", "aab", "你好👩‍👩‍👧 ok\n", "ababababc", "xxxyx", "The end. The"])
def test_text_is_held_back_only_while_it_may_become_a_stop_text(text: str) -> None:
    for stops in (("b",), ("abc", "bab"), ("👩‍👩‍👧",), ("The end", "end."), ("xxy",)):
        for cut in (1, 2, 3):
            found, given = Stops(stops), ""
            for start in range(0, len(text), cut):
                piece, stopped = found.push(text[start : start + cut])
                given += piece
                seen = text[: start + cut]
                assert not any(stop in given for stop in stops)
                if stopped:
                    break
                held = seen[len(given) :]
                assert seen.startswith(given)
                assert held == "" or any(stop.startswith(held) for stop in stops)
            first = min((text.index(stop) for stop in stops if stop in text), default=None)
            assert given + found.finish() == (text if first is None else text[:first])


def test_nothing_ends_before_the_least_number_of_tokens(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    engine = Engine(gpt, tokenizer, slots=4)
    ends = {"logit_bias": {tokenizer.ends[0]: 100.0}, "max_tokens": 20, "temperature": 1.0, "top_p": 1.0}
    (at_once,) = engine.run([Ask(tuple(prompts()[1]), Sampling(**ends))])
    assert (at_once.tokens, at_once.finish_reason) == ((), "stop")
    (later,) = engine.run([Ask(tuple(prompts()[1]), Sampling(min_tokens=9, **ends))])
    assert (len(later.tokens), later.finish_reason) == (9, "stop")
    hot = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 40}
    (plain,) = engine.run([Ask(tuple(prompts()[1]), Sampling(**hot))])
    stop = plain.text[:1]
    (stopped,) = engine.run([Ask(tuple(prompts()[1]), Sampling(min_tokens=30, stop=stop, **hot))])
    assert len(stopped.tokens) >= 30
    assert stopped.text.startswith(stop)


def test_penalties_count_the_reply_and_not_the_prompt(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    prompt = prompts()[1]
    first = walked(gpt, tokenizer, prompt, 1)[0]
    alone = [*prompt, first] * 2
    plain = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 12}
    for name in ("presence_penalty", "frequency_penalty"):
        (reply,) = Engine(gpt, tokenizer, slots=1).run([Ask(tuple(alone), Sampling(**plain, **{name: 2.0}))])
        assert reply.tokens[0] == walked(gpt, tokenizer, alone, 1)[0], "what only the prompt holds is not made less likely"
        ids = list(alone)
        for token in reply.tokens:
            with torch.no_grad():
                logits = gpt(torch.tensor([ids]))[0, -1]
            logits[[*tokenizer.never, *range(tokenizer.vocabulary, VOCABULARY)]] = -torch.inf
            counts = torch.bincount(torch.tensor(ids[len(alone) :], dtype=torch.long), minlength=VOCABULARY)
            logits -= 2.0 * (counts > 0 if name == "presence_penalty" else counts)
            assert int(logits.argmax()) == token
            ids.append(token)


def test_log_probabilities_are_those_of_the_model_before_any_rule(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    sampling = Sampling(temperature=0.4, top_k=5, logit_bias={70: 5.0}, min_tokens=8, max_tokens=8)
    (told, silent) = asks(sampling, 2)
    events: dict[int, list[ReplyEvent]] = {0: [], 1: []}
    engine = Engine(gpt, tokenizer, slots=2)
    tickets = [
        engine.submit(Ask(told.prompt, sampling, logprobs=3), events[0].append), engine.submit(silent, events[1].append),
    ]  # fmt: skip
    while not all(ticket.ended for ticket in tickets):
        engine._step()
    assert all(event.logprob is None and event.alternatives == () for event in events[1])
    ids = list(told.prompt)
    for event in events[0][:-1]:
        assert event.token is not None
        with torch.no_grad():
            logits = gpt(torch.tensor([ids]))[0, -1]
        logits[[*tokenizer.never, *range(tokenizer.vocabulary, VOCABULARY)]] = -torch.inf
        expected = logits.log_softmax(-1)
        assert event.logprob == pytest.approx(float(expected[event.token]), abs=1e-4)
        assert [token for token, _ in event.alternatives] == expected.topk(3).indices.tolist()
        assert [value for _, value in event.alternatives] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
        ids.append(event.token)
    assert engine.run([Ask(told.prompt, sampling, logprobs=0)]) == engine.run([told])


# Bad input


@pytest.mark.requirement("I20")
@pytest.mark.security
def test_what_can_never_fit_is_refused_before_it_waits(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    engine = Engine(gpt, tokenizer, slots=1, length=50)
    for prompt in ((), (5,) * 50, (5,) * 1000, (5, VOCABULARY), (-1,)):
        with pytest.raises(UsageError) as caught:
            engine.submit(Ask(prompt, GREEDY), lambda event: None)
        assert caught.value.path == "prompt"
    with pytest.raises(SettingError) as caught:
        engine.submit(Ask((5,) * 45, Sampling(min_tokens=6)), lambda event: None)
    assert caught.value.path == "min_tokens"
    with pytest.raises(SettingError, match="no token has the id"):
        engine.submit(Ask((5,), Sampling(logit_bias={VOCABULARY: 1.0})), lambda event: None)
    assert engine.load().waiting == 0
    (fits,) = engine.run([Ask((5,) * 49, GREEDY)])  # the positive control
    assert fits.finish_reason in ("length", "stop")
    assert len(fits.tokens) <= 1


@pytest.mark.requirement("I16")
def test_settings_outside_their_limits_are_refused_by_name() -> None:
    from chattune.core.config import validate

    for name, wrong in {
        "typical_p": 0.0, "presence_penalty": 2.1, "frequency_penalty": -2.1, "no_repeat_ngram": -1, "logit_bias": {5: 101},
        "stop": [""], "min_tokens": -1, "logprobs": 3,
    }.items():  # fmt: skip
        with pytest.raises(SettingError) as caught:
            validate(Sampling, {name: wrong})
        assert caught.value.path is not None
        assert caught.value.path.startswith(name)
    with pytest.raises(SettingError, match="min_tokens 9 lies above max_tokens 8"):
        validate(Sampling, {"min_tokens": 9, "max_tokens": 8})
    assert validate(Sampling, {"stop": "end"}).stop == ("end",)


# Leaving and failing


@pytest.mark.requirement("S3", "I18")
def test_a_cancelled_request_says_at_most_one_more_token_and_frees_its_slot(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    engine = Engine(gpt, tokenizer, slots=1)
    heard: list[ReplyEvent] = []
    ticket = engine.submit(Ask(tuple(prompts()[1]), Sampling(max_tokens=50, min_tokens=50)), heard.append)
    waits: list[ReplyEvent] = []
    waiting = engine.submit(Ask(tuple(prompts()[3]), GREEDY), waits.append)
    for _ in range(5):
        engine._step()
    assert (engine.load().running, engine.load().waiting, len(heard)) == (1, 1, 5)
    engine.cancel(waiting)
    assert waits[-1].finish_reason == "cancelled"
    engine.cancel(ticket)
    engine.cancel(ticket)
    assert heard[-1].finish_reason == "cancelled"
    assert len(heard) <= 5 + 1 + 1
    load = engine.load()
    assert (load.running, load.waiting, load.cancelled_total) == (0, 0, 2)
    assert engine.run(asks(GREEDY)) == Engine(gpt, tokenizer, slots=1).run(asks(GREEDY)), "the slot is as good as new"


def test_a_stream_that_is_left_gives_its_slot_back(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    engine = Engine(gpt, tokenizer, slots=1)
    for number, _ in enumerate(stream := engine.stream(Ask(tuple(prompts()[1]), Sampling(min_tokens=50, max_tokens=50)))):
        if number == 3:
            stream.close()  # type: ignore[attr-defined]
            break
    assert engine.load().running == 0
    assert engine.load().cancelled_total == 1


class Breaks(TorchRunner):
    """Fails in the step in which a certain token comes."""

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        if any(251 in piece.ids for piece in pieces):
            raise RuntimeError("the machine is on fire")
        return super().forward(pieces)


def test_a_failing_step_ends_whom_it_concerns_and_the_engine_goes_on(
    gpt: LanguageModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(gpt, tokenizer, runner=Breaks(gpt, slots=2, length=96))
    good = Ask(tuple(prompts()[1]), GREEDY)
    (expected,) = engine.run([good])
    with pytest.raises(RuntimeError, match="on fire"):
        engine.run([Ask((5, 251), GREEDY)])
    with pytest.raises(RuntimeError, match="on fire"):
        list(engine.stream(Ask((5, 251), GREEDY)))
    assert "on fire" in caplog.text
    engine.start()
    try:
        heard: list[ReplyEvent] = []
        ended = threading.Event()
        ticket = engine.submit(Ask((5, 251), GREEDY), lambda event: (heard.append(event), ended.set())[0])  # type: ignore[func-returns-value]
        assert ended.wait(30)
        assert [event.finish_reason for event in heard] == ["error"]
        assert str(ticket.error) == "the machine is on fire"
        assert engine.run([good]) == [expected]
    finally:
        engine.close()
    assert engine.load().failed_total == 3


def test_a_receiver_that_is_broken_loses_its_reply_and_nobody_elses(
    gpt: LanguageModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: ReplyEvent) -> None:
        raise OSError("gone")

    engine = Engine(gpt, tokenizer, slots=2)
    ticket = engine.submit(Ask(tuple(prompts()[3]), Sampling(min_tokens=60, max_tokens=60)), broken)
    assert engine.run(asks(GREEDY)) == Engine(gpt, tokenizer, slots=2).run(asks(GREEDY))
    assert ticket.ended
    assert "lost its receiver" in caplog.text


# The engine's own thread


def test_its_own_thread_answers_many_at_once_and_ends_with_the_engine(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12)
    expected = Engine(gpt, tokenizer, slots=4).run(asks(sampling, 12))
    engine = Engine(gpt, tokenizer, slots=4)
    engine.start()
    engine.start()
    found: dict[int, list[Reply]] = {}
    threads = [threading.Thread(target=lambda n=n: found.__setitem__(n, engine.run(asks(sampling, 12)[n::3]))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[n % 3][n // 3] for n in range(12)] == expected
    assert "".join(event.text for event in engine.stream(asks(sampling)[0])) == expected[0].text
    heard: list[ReplyEvent] = []
    engine.submit(Ask((5,), Sampling(min_tokens=90, max_tokens=90)), heard.append)
    engine.close()
    assert heard[-1].finish_reason in ("cancelled", "length"), "whoever waits is told"
    assert not any(thread.name == "chattune-engine" for thread in threading.enumerate())
    with pytest.raises(UsageError, match="closed"):
        engine.run(asks(sampling))


def test_many_come_and_leave_from_other_threads_and_the_sums_are_right(gpt: LanguageModel, tokenizer: Tokenizer) -> None:
    engine = Engine(gpt, tokenizer, slots=3, chunk=8)
    engine.start()
    reasons: list[str] = []
    tokens: list[int] = []

    def deliver(event: ReplyEvent) -> None:
        tokens.append(1 if event.token is not None else 0)
        if event.finish_reason is not None:
            reasons.append(event.finish_reason)

    def client(number: int) -> None:
        for ask in asks(Sampling(temperature=1.0, seed=number, max_tokens=15), 6, owner=str(number % 3)):
            ticket = engine.submit(ask, deliver)
            if number % 2:
                time.sleep(0.002)
                engine.cancel(ticket)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    deadline = time.monotonic() + 60
    while len(reasons) < 36 and time.monotonic() < deadline:
        time.sleep(0.01)
    load = engine.load()
    engine.close()
    assert len(reasons) == 36
    assert (load.waiting, load.running) == (0, 0)
    assert load.generated_total == sum(tokens)
    assert load.cancelled_total == reasons.count("cancelled")
    assert "error" not in reasons


@pytest.mark.requirement("S5")
def test_streaming_text_equals_plain_text_and_stop_texts_never_leak_for_200_seeds(tokenizer: Tokenizer) -> None:
    answers = "你好 👩‍👩‍👧 naïve ok 🏳️‍🌈 最后\nend"
    model = GPT(layers=1, width=32, heads=2, context=128, init={"name": "normal", "std": 0.2}).build(tokenizer.vocabulary, seed=1)  # type: ignore[arg-type]
    engine = Engine(model, tokenizer, slots=8)
    ids, prompt = tokenizer.encode(answers), tuple(tokenizer.encode("who are you?"))
    # Only tokens of the answer are drawn, so that most characters are made of several, in orders that make sense or not.
    only = {"logit_bias": {**dict.fromkeys(ids, 100.0), tokenizer.ends[0]: 100.0}, "temperature": 2.0, "top_p": 1.0, "max_tokens": 48}
    stops = ("好", "ok", "👩‍👩‍👧", "🏳️", "\n", "\ufffd")
    plain = engine.run([Ask(prompt, Sampling(seed=seed, **only)) for seed in range(200)])
    streamed: list[list[ReplyEvent]] = [[] for _ in range(400)]
    for seed in range(200):
        engine.submit(Ask(prompt, Sampling(seed=seed, **only)), streamed[seed].append)
        engine.submit(Ask(prompt, Sampling(seed=seed, stop=stops[seed % 6], **only)), streamed[200 + seed].append)
    while engine.load().running or engine.load().waiting:
        engine._step()
    cut = 0
    for seed, reply in enumerate(plain):
        assert "".join(event.text for event in streamed[seed]) == reply.text == tokenizer.decode(reply.tokens)
        said, stop = "".join(event.text for event in streamed[200 + seed]), stops[seed % 6]
        assert said == reply.text.split(stop)[0]
        assert stop not in said
        assert all("\ufffd" not in event.text for event in streamed[seed] if "\ufffd" not in reply.text)
        cut += stop in reply.text
    assert cut > 40, "the positive control: stop texts did come"
