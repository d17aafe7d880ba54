"""The contract of every baseline, over whatever stands in the folder, on one tiny corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chattune.core.part import kind
from chattune.dialogs.dialog import Dialog, Message
from chattune.evaluate.baselines import Baseline, Learned
from chattune.evaluate.exchanges import Exchange, exchanges
from chattune.tokens.split_writer import SplitWriter
from chattune.tokens.template import Template
from chattune.tokens.token_set import TokenSet
from chattune.tokens.tokenizer import Tokenizer

NAMES = kind("baselines").names()
ASKED = ["do you like dogs", "what is your name", "where do you live", "你喜欢吃什么", "🙂🙂", "how are you", "how was your day"]
SAID = ["yes, a lot", "Ada", "in a small town", "我喜欢吃饺子", "🙂", "fine thanks", "fine thanks"]


def dialogs(start: int, count: int) -> list[Dialog]:
    found = []
    for number in range(start, start + count):
        turns = [(ASKED[n % 7], SAID[n % 7]) for n in range(number, number + 1 + number % 3)]
        messages = [message for asked, said in turns for message in (Message("user", asked), Message("assistant", said))]
        found.append(Dialog(f"d{number}", tuple(messages)))
    return found


def token_set(folder: Path, **splits: list[Dialog]) -> TokenSet:
    template = Template(Tokenizer.train_at_most([*ASKED, *SAID] * 3, 300))
    template.save(folder)
    (folder / "summary.json").write_text('{"token_set": {"targets": "all"}}')
    for name, held in splits.items():
        with SplitWriter(folder / name, template.tokenizer.vocabulary) as writer:
            writer.append(template.render_many([dialog.messages for dialog in held]))
    return TokenSet(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return token_set(tmp_path_factory.mktemp("tokens"), train=dialogs(0, 40), test=dialogs(100, 9))


@pytest.fixture(scope="module")
def prompts() -> list[Exchange]:
    return list(exchanges(dialogs(100, 9)))


def learned(name: str, tokens: TokenSet) -> Learned:
    part = kind("baselines").load(name)()
    assert isinstance(part, Baseline)
    return part.learn(list(exchanges(dialogs(0, 40))), tokens)


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_gets_a_reply_that_the_seed_repeats(name: str, tokens: TokenSet, prompts: list[Exchange]) -> None:
    model = learned(name, tokens)
    replies = model.replies(prompts, seed=3)
    if replies is not None:
        assert len(replies) == len(prompts)
        assert all(isinstance(reply, str) for reply in replies)
        assert learned(name, tokens).replies(prompts, seed=3) == replies
        assert model.replies([], seed=3) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_is_not_looked_at(name: str, tokens: TokenSet, prompts: list[Exchange]) -> None:
    hidden = [
        replace(prompt, messages=(*prompt.history, Message("assistant", "something else"))) for prompt in prompts
    ]
    model = learned(name, tokens)
    assert model.replies(hidden, seed=0) == model.replies(prompts, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_counts_the_models_targets(name: str, tokens: TokenSet) -> None:
    split = tokens.split("test")
    loss = learned(name, tokens).loss(split)
    if loss is not None:
        scored = np.asarray(split.weights) > 0
        assert loss.tokens.sum() == scored.sum()
        assert len(loss.nll) == len(split)
        assert (loss.nll[loss.tokens > 0] > 0).all()
        assert loss.bytes.sum() == sum(len(m.content.encode()) for d in dialogs(100, 9) for m in d.messages)


@pytest.mark.parametrize("name", NAMES)
def test_learning_from_nothing_raises_nothing(name: str, prompts: list[Exchange], tmp_path: Path) -> None:
    model = kind("baselines").load(name)().learn([], token_set(tmp_path, train=[]))
    replies = model.replies(prompts[:2], seed=0)
    assert replies is None or len(replies) == 2


def test_retrieval_finds_the_same_question_in_any_script(tokens: TokenSet) -> None:
    model = learned("retrieval", tokens)
    asked = [Exchange("x", (Message("user", text), Message("assistant", "?")), 1) for text in ASKED[:5]]
    assert model.replies(asked, seed=0) == SAID[:5]


def test_retrieval_without_any_known_word_gives_the_commonest_reply(tokens: TokenSet) -> None:
    asked = Exchange("x", (Message("user", "xyzzy plugh"), Message("assistant", "?")), 1)
    assert learned("retrieval", tokens).replies([asked], seed=0) == ["fine thanks"]


def test_the_most_frequent_reply_ignores_case_and_keeps_the_usual_spelling() -> None:
    from chattune.evaluate.baselines.most_frequent import most_frequent

    assert most_frequent(["ok", "Yes", " yes", "yes", "no", "ok"]) == "yes"
    assert most_frequent(["b", "a"]) == "b"
    assert most_frequent([]) == ""


def test_the_n_gram_model_talks_like_its_training_split(tokens: TokenSet, prompts: list[Exchange]) -> None:
    replies = learned("ngram", tokens).replies(prompts, seed=0)
    assert replies is not None
    assert sum(reply in SAID for reply in replies) > len(replies) / 2
