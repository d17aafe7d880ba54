"""The contract of every augmentation, over whatever stands in the folder: seeded, as often as asked, and nothing else touched."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.core.part import kind
from chattune.core.seeds import generator
from chattune.dialogs.augmentations import Augmentation
from chattune.dialogs.augmentations._text import PROTECTED, sentences
from chattune.dialogs.dialog import Dialog, Message

NAMES = kind("augmentations").names()
ASKING = {"paraphrase", "back_translation"}
USERS = ("Anna", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo", "Irma", "Jonas", "Katja", "Leo")
KEPT = ("<|end|>", "<|assistant|>", "[NAME]", "{city}", "`x = 1`", "https://example.org/a?b=1", "me@example.org", "<b>")


def kind_of(name: str) -> type[Augmentation]:
    part = kind("augmentations").load(name)
    assert issubclass(part, Augmentation)
    return part


class _Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"choices": [{"message": {"role": "assistant", "content": f"Well {asked['messages'][-1]['content']}"}}]}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that answers as an OpenAI-compatible one does, on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def made(endpoint: str, tmp_path: Path) -> Callable[..., Augmentation]:
    """An augmentation by name; those that ask a model ask the one above."""

    def make(name: str, **own: Any) -> Augmentation:
        elsewhere = {"endpoint": endpoint, "keep": str(tmp_path / "answers.jsonl")} if name in ASKING else {}
        easily = {"least": -1.0} if name == "embedding_neighbours" else {}  # a few talks have no near words
        return kind_of(name)(**{**elsewhere, **easily, **own})

    return make


def talk(number: int, *contents: str) -> Dialog:
    messages = [Message("user" if place % 2 == 0 else "assistant", content) for place, content in enumerate(contents)]
    messages[-1] = Message(messages[-1].role, messages[-1].content, 0.5)
    return Dialog(f"talk {number}", (Message("system", "Be kind to the big dog."), *messages), "made", "made.jsonl", number)


def talks() -> list[Dialog]:
    """Chats in English and Chinese that hold something for every augmentation, and what none may touch."""
    found = []
    for number, word in enumerate(USERS, 3):
        found.append(talk(
            number,
            f"Hello there <|end|>! I bought {number} big apples in Rome on Monday. They were quick for {word}. Is he happy [NAME]?",
            f"Great, {number} apples in Rome on Monday, {{city}}!",
            "My friend is angry about `x = 1` at https://example.org/a?b=1 and met me@example.org. We saw Rome. Can you help me?",
            "Of course I can.",
        ))  # fmt: skip
        found.append(talk(
            100 + number,
            f"你好<|assistant|>，我很高兴认识你。我买了{number}个苹果，味道很好吃。{word}也喜欢吃这种苹果。现在几点了？",
            f"{number}个苹果，好的。",
            "谢谢，我的朋友在北京，他喜欢旅行。<b>怎么去</b>？",
            "坐火车去。",
        ))  # fmt: skip
    return found


def rewritten(part: Augmentation, dialogs: Sequence[Dialog], seed: int = 0) -> list[Dialog]:
    working = part.begin(dialogs)
    return [working.rewrite(dialog, generator(seed, dialog.id)) for dialog in dialogs]


def protected(text: str) -> list[str]:
    return sorted(found[0] for found in PROTECTED.finditer(text))


@pytest.mark.requirement("R135", "R018", "must-7")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_variants_in_any_order_and_another_seed_others(
    name: str, made: Callable[..., Augmentation]
) -> None:
    part, dialogs = made(name, rate=0.5), talks()
    first = rewritten(part, dialogs)
    assert rewritten(part, dialogs) == first
    working = part.begin(dialogs)
    again = {dialog.id: working.rewrite(dialog, generator(0, dialog.id)) for dialog in reversed(dialogs)}
    assert [again[dialog.id] for dialog in dialogs] == first
    assert rewritten(part, dialogs, seed=1) != first
    assert first != dialogs and dialogs == talks()


@pytest.mark.requirement("must-7", "R140")
@pytest.mark.parametrize("name", NAMES)
def test_roles_weights_replies_and_control_tokens_stay(name: str, made: Callable[..., Augmentation]) -> None:
    part, dialogs = made(name, rate=1.0), talks()
    changed = 0
    for before, after in zip(dialogs, rewritten(part, dialogs), strict=True):
        assert (after.id, after.source, after.file, after.line, after.metadata) == (
            before.id, before.source, before.file, before.line, before.metadata
        )  # fmt: skip
        assert all(message.content and message.content == message.content.strip() for message in after.messages)
        changed += after.messages != before.messages
        if part.reorders:
            assert len(after.messages) <= len(before.messages)
            assert "assistant" in {message.role for message in after.messages}
            spoken = [message.role for message in after.messages if message.role != "system"]
            assert all(a != b for a, b in pairwise(spoken)), "turns still alternate"
            continue
        for old, new in zip(before.messages, after.messages, strict=True):
            assert (new.role, new.weight) == (old.role, old.weight)
            if part.answers:  # mail addresses are values too, and may be swapped
                assert [t for t in protected(new.content) if "@" not in t] == [t for t in protected(old.content) if "@" not in t]
            else:
                assert protected(new.content) == protected(old.content)
                assert old.role in part.roles or new == old
    assert changed >= len(dialogs) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_changes_nothing(name: str, made: Callable[..., Augmentation]) -> None:
    dialogs = talks()
    assert all(new is old for new, old in zip(rewritten(made(name, rate=0.0), dialogs), dialogs, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if not (kind_of(name).reorders or kind_of(name).answers)])
def test_only_the_messages_of_the_roles_asked_for_are_rewritten(name: str, made: Callable[..., Augmentation]) -> None:
    part, dialogs = made(name, rate=1.0, roles=("system",)), talks()
    for before, after in zip(dialogs, rewritten(part, dialogs), strict=True):
        assert after.messages[1:] == before.messages[1:]


PIECE = st.sampled_from([
    *KEPT, "the", "is", "big", "not", "3.5", "Rome", "on Monday", "你好", "的", "高兴", "不", "?", ".", "。", "\n", "  ", "I'm", "A",
    "é", "🙂", "I", ",", "12/05/2021", "10:30", "5月12日", "@anna", "```", "`", "<", ">",
])  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ASKING])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECE, min_size=1, max_size=25), rate=st.sampled_from([0.3, 1.0]))
def test_any_text_comes_out_as_a_text_with_its_control_tokens(
    name: str, pieces: list[str], rate: float, made: Callable[..., Augmentation]
) -> None:
    text = "".join(f"{piece} " if number % 3 else piece for number, piece in enumerate(pieces)).strip() or "x"
    part = made(name, rate=rate)
    before = [talk(0, text, text[::-1].strip() or "y", text, "end"), talk(1, "I was in Rome and Rome is big.", "ok")]
    for old, new in zip(before, rewritten(part, before), strict=True):
        for message in new.messages:
            assert message.content and message.content == message.content.strip()
        if not part.reorders:
            for a, b in zip(old.messages, new.messages, strict=True):
                assert sorted(re.findall(r"<\|\w+\|>", a.content)) == sorted(re.findall(r"<\|\w+\|>", b.content))


# ----------------------------------------------------------------------------------------------------------- as often as asked


@dataclass
class Measured:
    """Material in which every unit can be rewritten, and how many units there are and were, counted here and not by the part."""

    dialogs: list[Dialog]
    count: Callable[[Dialog, Dialog], tuple[int, int]]
    settings: dict[str, Any] = field(default_factory=dict)


def contents(dialog: Dialog, role: str = "user") -> list[list[str]]:
    return [message.content.split() for message in dialog.messages if message.role == role]


def in_place(before: Dialog, after: Dialog) -> tuple[int, int]:
    """Words that are others now."""
    pairs = [pair for a, b in zip(contents(before), contents(after), strict=True) for pair in zip(a, b, strict=True)]
    return sum(a != b for a, b in pairs), len(pairs)


def missing(before: Dialog, after: Dialog) -> tuple[int, int]:
    a, b = (sum(map(len, contents(dialog))) for dialog in (before, after))
    return abs(a - b), a


def fewer_words(before: Dialog, after: Dialog) -> tuple[int, int]:
    gone, count = missing(before, after)
    return gone, count - 1  # one stays in any case


def elsewhere(before: Dialog, after: Dialog) -> tuple[int, int]:
    """Pairs that changed places: an odd number of words gives the same number of pairs whichever word they begin with."""
    return in_place(before, after)[0] // 2, sum((len(words) - 1) // 2 for words in contents(before))


def sentences_of(dialog: Dialog) -> list[str]:
    return [piece.strip() for message in dialog.messages if message.role == "user" for piece in sentences(message.content)]


def fewer_sentences(before: Dialog, after: Dialog) -> tuple[int, int]:
    return len(sentences_of(before)) - len(sentences_of(after)), len(sentences_of(before)) - 1  # one stays in any case


def more_sentences(before: Dialog, after: Dialog) -> tuple[int, int]:
    return len(sentences_of(after)) - len(sentences_of(before)), len(sentences_of(before))


def moved_sentences(before: Dialog, after: Dialog) -> tuple[int, int]:
    a, b = sentences_of(before), sentences_of(after)
    assert sorted(a) == sorted(b)
    return sum(x != y for x, y in zip(a, b, strict=True)) // 2, (len(a) - 1) // 2


def messages_changed(before: Dialog, after: Dialog) -> tuple[int, int]:
    pairs = [(a, b) for a, b in zip(before.messages, after.messages, strict=True) if a.role == "user"]
    return sum(a != b for a, b in pairs), len(pairs)


def dialogs_changed(before: Dialog, after: Dialog) -> tuple[int, int]:
    return int(before.messages != after.messages), 1


def letters(number: int, length: int = 5) -> str:
    return "".join(np.random.default_rng(number).choice(list("bcdfgklmnprstvz"), length))


def material(name: str, folder: Path) -> Measured:
    own = [letters(number) for number in range(60)]
    long = [talk(number, " ".join(own[(number * 7 + place) % 60] for place in range(41)), "ok") for number in range(40)]
    if name == "synonyms":
        lines = folder / "words.tsv"
        lines.write_text("".join(f"{word}\t{word}ish\n" for word in own), "utf-8")
        return Measured(long, in_place, {"thesaurus": str(lines)})
    if name == "embedding_neighbours":
        random = np.random.default_rng(0)
        pairs = [f"{random.choice(own[:4])} {random.choice(own[4:8])}" for _ in range(400)]
        return Measured([talk(number, text, "ok") for number, text in enumerate(pairs)], in_place, {"least": 0.3})
    if name == "grammar_noise":
        return Measured([talk(number, " ".join(["in"] * 41), "ok") for number in range(40)], in_place)
    if name in ("word_insertion", "word_deletion"):
        return Measured(long, missing if name == "word_insertion" else fewer_words)
    if name == "word_swap":
        return Measured(long, elsewhere)
    if name.startswith("sentence_"):
        count = {"sentence_deletion": fewer_sentences, "sentence_insertion": more_sentences, "sentence_swap": moved_sentences}[name]
        telling = [[f"{letters(100 * k + n)} {letters(7000 + 100 * k + n)} ran home." for n in range(21)] for k in range(40)]
        return Measured([talk(number, " ".join(own), "ok") for number, own in enumerate(telling)], count)
    if name == "entity_swap":
        def values(dialog: Dialog) -> set[str]:
            return set(re.findall(r"\d+", dialog.messages[1].content))

        numbers = [[f"{200 + 20 * row + n}" for n in range(16)] for row in range(40)]
        lists = [talk(row, "I need " + " and ".join(own) + " of them", "ok") for row, own in enumerate(numbers)]
        return Measured(lists, lambda a, b: (len(values(a) - values(b)), len(values(a))))
    if name in ("paraphrase", "back_translation", "noise_sentences"):
        return Measured([talk(number, *[f"{letters(number)} now" if n % 2 == 0 else "ok" for n in range(10)]) for number in range(40)],
                        messages_changed)  # fmt: skip
    if name == "counterfactual":
        asked = [(f"My father has {n + 20} {letters(n)}s", f"He has {n + 20}, your 爸爸") for n in range(400)]
        return Measured([talk(n, *turns) for n, turns in enumerate(asked)], dialogs_changed)
    if kind_of(name).unit == "dialog":
        return Measured(
            [talk(number, f"I want {number + 20} {letters(number)}s", f"Yes, {number + 20}", "thanks", "bye") for number in range(400)],
            dialogs_changed,
        )
    return Measured(long, in_place)


@pytest.mark.requirement("must-7")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_measured_share_is_the_rate(name: str, rate: float, made: Callable[..., Augmentation], tmp_path: Path) -> None:
    given = material(name, tmp_path)
    changed = total = 0
    for before, after in zip(given.dialogs, rewritten(made(name, rate=rate, **given.settings), given.dialogs), strict=True):
        more, of = given.count(before, after)
        changed, total = changed + more, total + of
    assert total >= 150
    # Each unit is chosen by itself: four standard deviations of a binomial share.
    assert abs(changed / total - rate) <= 4 * np.sqrt(rate * (1 - rate) / total), f"{changed} of {total}"
