"""`chattune chat`: replies that are drawn, searched for, or given by several models together."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from material import TINY

import chattune
from chattune import story
from chattune.cli import main
from chattune.core.errors import ArtifactError, SettingError, UsageError
from chattune.evaluate.loss import split_loss
from chattune.story import Result
from chattune.tokens.token_set import TokenSet

ASKED = ["--prompt", "do you like apples?", "--max-tokens", "8"]


@pytest.fixture(scope="module")
def pair(told: Result, raw_logs: Path) -> tuple[Path, Path]:
    """Two models from one token set."""
    recipe = {"collect": {"sources": str(raw_logs)}, "train": {"prompts": ["hello"]}}
    other = chattune.run(recipe, [*TINY, "model.layers=2"], home=told.run.parent, until="train")
    return told.run, other.run


def chat(run: Path, *words: str) -> list[str]:
    return ["chat", run.name, *ASKED, "--home", str(run.parent), *words]


def answered(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> dict[str, object]:
    assert main(chat(run, *words, "--json")) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.requirement("R200")
def test_a_decoder_is_named_and_gives_its_candidates_the_best_first(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, told.run, "--decoder", "{name: beam_search, width: 4, n_best: 3}")
    rows = found["candidates"]
    assert isinstance(rows, list) and len(rows) == 3
    assert found["reply"] == rows[0]["reply"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["tokens"] <= 8 for row in rows)
    assert answered(capsys, told.run, "--decoder", "{name: beam_search, width: 4, n_best: 3}") == found
    assert main(chat(told.run, "--decoder", "beam_search")) == 0
    assert "log-probability" in capsys.readouterr().out


def test_doubt_is_told_where_the_decoder_measures_it(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, told.run, "--decoder", "monte_carlo_dropout")
    entropy, information = found["entropy"], found["information"]
    assert isinstance(entropy, list) and isinstance(information, list)
    assert len(entropy) == len(information) > 0
    assert all(0 <= known <= all_of_it + 1e-9 for known, all_of_it in zip(information, entropy, strict=True))
    assert main(chat(told.run, "--decoder", "monte_carlo_dropout")) == 0
    assert "does not know better" in capsys.readouterr().out


def test_a_conversation_through_a_pipe_is_searched_too(
    told: Result, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = answered(capsys, told.run, "--decoder", "beam_search")["reply"]
    lines = io.TextIOWrapper(io.BytesIO(f"{ASKED[1]}\nand you?\n".encode()))
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", told.run.name, "--max-tokens", "8", "--decoder", "beam_search", "--home", str(told.run.parent)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert out.splitlines()[0] == str(wanted).replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--decoder", "beam_serch"], 2, ["--decoder", "Did you mean 'beam_search'?"]),
        (["--decoder", "{name: beam_search, widht: 3}"], 2, ["--decoder.widht", "Did you mean 'width'?"]),
        (["--decoder", "beam_search", "--top-k", "3"], 2, ["--top-k", "a decoder searches"]),
        (["--together", "nobody"], 2, ["nobody"]),
        (["--shares", "fitted"], 2, ["--shares", "--together RUN"]),
        (["--temperature", "-1"], 2, ["--temperature: "]),
        (["--repetition-penalty", "0"], 2, ["--repetition-penalty: "]),
    ],
)
def test_what_cannot_be_meant_is_told_by_the_option(
    told: Result, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: list[str]
) -> None:
    assert main(chat(told.run, *words)) == code
    err = capsys.readouterr().err
    assert all(text in err for text in says), err
    assert "Traceback" not in err


@pytest.mark.requirement("R189", "R190")
def test_models_answer_together_and_weights_fitted_on_validation_dialogs_are_no_worse(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = pair[0].parent
    tokens = TokenSet.open(home / story.question_of(pair[0])["inputs"]["tokens"]["run"])
    split, lengths = tokens.split("validation"), tokens.tokenizer.byte_lengths

    def loss(chat_model: object) -> float:
        return split_loss(chat_model.model, split, lengths, context=chat_model.context).loss  # type: ignore[attr-defined]

    alone = [loss(story.load(run, home)) for run in pair]
    equal, fitted = (loss(story.ensemble([run.name for run in pair], shares, home)) for shares in (None, "fitted"))
    assert equal <= sum(alone) / 2 + 1e-6, "Jensen"
    assert fitted <= min(*alone, equal) + 1e-4, "float32 sums over the split in another order"
    capsys.readouterr()
    words = ["--together", pair[1].name]
    assert answered(capsys, pair[0], *words, "--shares", "1,0")["ids"] == answered(capsys, pair[0])["ids"]
    assert answered(capsys, pair[0], *words, "--shares", "fitted")["tokens"]


def test_weights_that_do_not_fit_the_models_are_refused(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    runs, home = [run.name for run in pair], pair[0].parent
    with pytest.raises(SettingError, match="weights"):
        story.ensemble(runs, [0.7, 0.7], home)
    assert main(chat(pair[0], "--together", pair[1].name, "--shares", "much")) == 2
    assert "--shares 0.6,0.4" in capsys.readouterr().err


def test_models_of_other_tokens_do_not_answer_together(told: Result, raw_logs: Path, tmp_path: Path) -> None:
    other = chattune.run({"collect": {"sources": str(raw_logs)}}, [*TINY, "seed=5"], home=told.run.parent, until="train")
    with pytest.raises(UsageError, match="another tokenizer"):
        story.ensemble([told.run.name, other.run.name], None, told.run.parent)


def test_weights_are_fitted_only_where_there_are_validation_dialogs(told: Result, tmp_path: Path) -> None:
    from chattune.story import _validation

    collected = told.runs["collect"]
    with pytest.raises(ArtifactError, match="not trained here"):
        _validation(collected, 32)
