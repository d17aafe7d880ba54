"""`chattune chat`: replies that are drawn, searched for, or given by several models together."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from material import TINY

import chattune
from chattune import story
from chattune.cli import main
from chattune.core.config import parse
from chattune.core.errors import ArtifactError, SettingError, UsageError
from chattune.core.part import choose, kind
from chattune.evaluate.loss import split_loss
from chattune.generate.decoders import Candidate, Decoder
from chattune.generate.reply import ReplyEvent, Sampling
from chattune.generate.speaker import Searching, Speaker, candidates
from chattune.generate.terminal import _Conversation, readable
from chattune.generate.terminal import chat as talk_to
from chattune.story import Result
from chattune.tokens.token_set import TokenSet

ASKED = ["--prompt", "do you like apples?", "--max-tokens", "8"]
GREEDY = ["--temperature", "0", "--repetition-penalty", "1"]


@pytest.fixture(scope="module")
def pair(told: Result, raw_logs: Path) -> tuple[Path, Path]:
    """Two models from one token set."""
    recipe = {"collect": {"sources": str(raw_logs)}, "train": {"prompts": ["hello"]}}
    other = chattune.run(recipe, [*TINY, "model.layers=2"], home=told.run.parent, until="train")
    return told.run, other.run


def chat(run: Path, *words: str) -> list[str]:
    asked = [word for name, value in zip(ASKED[::2], ASKED[1::2], strict=True) if name not in words for word in (name, value)]
    return ["chat", run.name, *asked, "--home", str(run.parent), *words]


def answered(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> dict[str, object]:
    assert main(chat(run, *words, "--json")) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def validate_decoder(said: str) -> Decoder:
    found: Decoder = choose(Decoder, parse(said))
    return found


@pytest.fixture(scope="module")
def recurrent(told: Result, raw_logs: Path) -> Path:
    """A model that cannot go back, from the same token set."""
    settings = [setting for setting in TINY if not setting.startswith("model.")]
    recipe = {"collect": {"sources": str(raw_logs)}, "train": {"prompts": ["hello"]}}
    model = "model={name: gru, layers: 1, width: 32, context: 64}"
    return chattune.run(recipe, [*settings, model], home=told.run.parent, until="train").run


@pytest.mark.requirement("R200")
def test_proposals_change_no_reply_and_their_figures_are_told(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    greedy = [*GREEDY, "--max-tokens", "40", "--prompt", "I never met any kites. See you! I never met any"]  # to be said again
    plain = answered(capsys, pair[0], *greedy)
    assert "speculation" not in plain, "off, unless it is asked for"
    looked = answered(capsys, pair[0], *greedy, "--speculate", "{lookup: 4, match: 1}")
    drafted = answered(capsys, pair[0], *greedy, "--speculate", "{lookup: 0, draft: 3}", "--draft", pair[1].name)
    both = answered(capsys, pair[0], *greedy, "--draft", pair[0].name)
    for found in (looked, drafted, both):
        figures = found["speculation"]
        assert isinstance(figures, dict)
        assert 0 <= figures["accepted"] <= figures["proposed"]
        assert {key: value for key, value in found.items() if key != "speculation"} == plain
        assert figures["proposed"] > 0
    figures = both["speculation"]
    assert figures["steps"] + figures["accepted"] >= plain["tokens"], "each step gives one token beside those taken"  # type: ignore[index]
    assert figures["steps"] < plain["tokens"]  # type: ignore[index, operator]
    drawn = ["--seed", "3", "--temperature", "0.9"]
    assert answered(capsys, pair[0], *drawn, "--speculate", "lookup")["ids"] == answered(capsys, pair[0], *drawn)["ids"]
    assert main(["explain", "speculation"]) == main(["explain", "speculation.lookup"]) == 0
    assert "tokens proposed by a draft model" in capsys.readouterr().out
    assert main(["explain", "speculation.lokup"]) == 2
    assert "Did you mean 'lookup'?" in capsys.readouterr().err


def test_the_benchmark_of_speculation_times_the_same_replies(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import speculation

    ways: dict[str, dict[str, Any]] = {"plain": {}, "lookup": {"speculation": {"match": 1}}, "both": {"draft": pair[1]}}
    sides = {name: chattune.load(pair[0], **way) for name, way in ways.items()}
    lines = speculation.measure(sides, pair[0], rounds=1, count=2, as_json=True)
    assert [line.bench for line in lines] == ["chat, lookup", "chat, both", "again, lookup", "again, both"]
    assert all(line.ours > 0 and line.theirs > 0 for line in lines)
    assert capsys.readouterr().err.count("2 of 2 replies equal") == 4


def test_what_cannot_propose_is_refused_with_the_reason(
    pair: tuple[Path, Path], recurrent: Path, raw_logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = chattune.run(
        {"collect": {"sources": str(raw_logs)}}, [*TINY[:-1], "prepare.vocabulary=300", "seed=7"], home=pair[0].parent, until="train"
    ).run
    for run, words, says in (
        (pair[0], ["--draft", other.name], ["--draft: the draft model has another tokenizer", "one prepared token set"]),
        (pair[0], ["--draft", recurrent.name], ["--draft: a draft model of the gru family cannot take back"]),
        (recurrent, ["--speculate", "lookup"], ["--speculate: a model of the gru family cannot take back"]),
        (recurrent, ["--draft", pair[0].name], ["--draft: a model of the gru family cannot take back"]),
        (pair[0], ["--draft", pair[1].name, "--speculate", "{draft: 0}"], ["--draft: the draft model is to propose 0 tokens"]),
        (recurrent, ["--weights", "int8"], ["--weights: the gru family has no weights in int8"]),
    ):
        assert main(chat(run, *words)) == 2, words
        err = capsys.readouterr().err
        assert all(text in err for text in says), err
    with pytest.raises(UsageError, match="another tokenizer"):
        chattune.load(pair[0], draft=other)
    with pytest.raises(SettingError, match="Did you mean 'match'"):
        chattune.load(pair[0], speculation={"mach": 1})
    with pytest.raises(UsageError, match="weights cannot be kept in 'int3'"):
        chattune.load(pair[0], weights="int3")


@pytest.mark.parametrize("weights", ["auto", "float32", "bfloat16", "int8", "int4"])
def test_weights_are_chosen_where_a_model_is_loaded(pair: tuple[Path, Path], weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = chattune.load(pair[0])
    with chattune.load(pair[0], weights=weights) as model:
        asked = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 6}
        said, wanted = (each.replies([[{"role": "user", "content": ASKED[1]}]], each.sampled(asked))[0] for each in (model, own))
        assert said.tokens
        if weights == "float32":
            assert said == wanted
    found = answered(capsys, pair[0], "--weights", weights, *GREEDY)
    assert found["tokens"]
    words = ["--together", pair[1].name, "--weights", weights]
    assert answered(capsys, pair[0], *words)["tokens"]


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


def test_settings_that_act_in_a_search_can_be_set_and_those_of_drawing_are_refused_by_name(
    told: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_model = chattune.load(told.run)
    beams = Searching(chat_model, validate_decoder("{name: beam_search, width: 4}"))

    def said(*lines: str) -> list[str]:
        out = io.StringIO()
        talk_to(beams, Sampling(max_tokens=8), None, [f"{line}\n" for line in lines], out)
        return out.getvalue().splitlines()

    plain, short, wide = said(
        ASKED[1], "/reset", "/set max_tokens=2", ASKED[1], "/reset", "/set max_tokens=8 width=1", ASKED[1]
    )
    assert capsys.readouterr().err == ""
    assert plain == answered(capsys, told.run, "--decoder", "{name: beam_search, width: 4}")["reply"]
    assert wide == answered(capsys, told.run, "--decoder", "{name: beam_search, width: 1}")["reply"]
    assert plain.startswith(short) and short != plain
    capsys.readouterr()
    assert said("/set temperature=2", "/set width=0", "/set widht=2", "/set top_k=3 max_tokens=2", ASKED[1]) == [plain]
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("temperature: acts on drawing, and beam_search searches.")
    assert "max_tokens, width, length_penalty, n_best" in errors[0], "what does act is told"
    assert errors[1].startswith("width: ") and "Did you mean 'width'?" in errors[2] and errors[3].startswith("top_k: acts on drawing")
    drawn = Searching(chat_model, validate_decoder("best_of"))
    assert drawn.changed({"temperature": 0.5}).decoder.model_dump() == {"samples": 8, "temperature": 0.5}, "a decoder's own acts"


class Remembering(Searching):
    """Keeps the messages that it was given."""

    given: ClassVar[list[list[tuple[str, str]]]] = []

    def stream(self, messages: Any, sampling: Sampling) -> Iterator[ReplyEvent]:
        self.given.append([(message.role, message.content) for message in messages])
        yield from super().stream(messages, sampling)


@pytest.mark.parametrize("name", kind("decoders").names())
def test_every_command_of_a_conversation_acts_with_every_decoder(told: Result, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, decoder = chattune.load(told.run), validate_decoder(name)
    first = next(iter(decoder.model_dump()))  # a number of each of ours: beams, candidates, groups or samples
    changed = validate_decoder(f"{{name: {name}, {first}: 2}}")
    assert decoder.model_dump()[first] > 2
    Remembering.given.clear()
    out = io.StringIO()
    lines = [
        ASKED[1], "/help", "/reset", "/system be kind", ASKED[1], "/system", ASKED[1], "/reset", "/set max_tokens=3", ASKED[1],
        "/reset", f"/set {first}=2", ASKED[1], "/sett seed=1", "/set", "/quit", ASKED[1],
    ]  # fmt: skip
    talk_to(Remembering(model, decoder), Sampling(max_tokens=8), None, [f"{line}\n" for line in lines], out)
    assert capsys.readouterr().err.count("\n") == 1, "what does not exist is told, in one line"

    plain, kind_one = [("user", ASKED[1])], [("system", "be kind"), ("user", ASKED[1])]
    assert Remembering.given == [plain, kind_one, plain, plain, plain]
    limits = (8, 8, 8, 3, 3)
    searched = (decoder, decoder, decoder, decoder, changed)
    wanted = [
        candidates(model, [{"role": role, "content": content} for role, content in messages], how, limit)[0].reply.text
        for messages, how, limit in zip(Remembering.given, searched, limits, strict=True)
    ]
    assert out.getvalue().splitlines() == [readable(text).replace("\n", " ") for text in wanted]
    capsys.readouterr()

    out = io.StringIO()
    conversation = _Conversation(Searching(model, decoder), Sampling(max_tokens=8), None, out, talkative=True)
    seed = "  seed=0" if decoder.draws else ""
    conversation.command("/set")
    assert out.getvalue() == f"max_tokens=8{seed}  " + "  ".join(f"{key}={value}" for key, value in decoder.model_dump().items()) + "\n"
    for setting in Sampling.model_fields:
        acts = setting in ("max_tokens", *decoder.model_dump(), *(["seed"] if decoder.draws else []))
        begin = len(out.getvalue())
        conversation.command(f"/set {setting}={Sampling.model_fields[setting].default if setting != 'rules' else '[]'}")
        said = out.getvalue()[begin:]
        assert said.startswith("max_tokens=") if acts else said.startswith(f"{setting}: acts on drawing, and {name} searches."), said


def test_a_search_forgets_what_does_not_fit_and_can_be_stopped(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped(Decoder):
        """Ctrl-C."""

        def decode(self, speaker: Speaker, prompt: Sequence[int]) -> list[Candidate]:
            raise KeyboardInterrupt

    model = chattune.load(told.run)
    out = io.StringIO()
    conversation = _Conversation(Searching(model, validate_decoder("beam_search")), Sampling(max_tokens=8), None, out, talkative=True)
    for _ in range(12):
        conversation.answer(ASKED[1])
    assert "older messages forgotten)" in out.getvalue()
    assert len(model.prompt_ids(conversation.turns)) <= model.context + 8
    conversation.model = Searching(model, Stopped())
    conversation.answer(ASKED[1])
    assert out.getvalue().endswith("(stopped)\n\n")
    conversation.model = Searching(model, validate_decoder("beam_search"))
    begin = len(out.getvalue())
    conversation.command("/reset")
    conversation.answer(ASKED[1])
    wanted = answered(capsys, told.run, "--decoder", "beam_search")["reply"]
    assert out.getvalue()[begin:] == f"(a new conversation)\n{readable(str(wanted))}\n"


def test_a_seed_acts_where_a_decoder_draws(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [answered(capsys, told.run, "--decoder", "{name: best_of, samples: 1}", "--seed", seed)["ids"] for seed in "0123"]
    assert len({tuple(ids) for ids in drawn}) > 1  # type: ignore[arg-type]
    assert answered(capsys, told.run, "--decoder", "{name: best_of, samples: 1}")["ids"] == drawn[0], "without a seed it is 0"


def test_settings_of_drawing_are_said_to_be_idle_where_nothing_is_drawn(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    note = "note  --seed, --top-k: no effect at temperature 0, where nothing is drawn\n"
    for temperature, words, said in (
        ("0", ["--seed", "3", "--top-k", "5"], note), ("0", [], ""), ("0.5", ["--seed", "3", "--top-k", "5"], ""),
        ("0", ["--seed", "3", "--top-k", "5", "--quiet"], ""),
    ):  # fmt: skip
        assert main(chat(told.run, "--temperature", temperature, *words)) == 0
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--decoder", "beam_serch"], 2, ["--decoder", "Did you mean 'beam_search'?"]),
        (["--decoder", "{name: beam_search, widht: 3}"], 2, ["--decoder.widht", "Did you mean 'width'?"]),
        (["--decoder", "beam_search", "--top-k", "3"], 2, ["--top-k", "a decoder searches"]),
        (["--decoder", "beam_search", "--weights", "int8"], 2, ["--weights", "a decoder searches"]),
        (["--decoder", "beam_search", "--seed", "0"], 2, ["--seed: beam_search draws nothing", "Leave it out"]),
        (["--decoder", "{name: contrastive_search}", "--seed", "3"], 2, ["--seed: contrastive_search draws nothing"]),
        (["--decoder", "beam_search", "--speculate", "lookup"], 2, ["--speculate", "a decoder searches"]),
        (["--decoder", "{name: beam_search"], 2, ["--decoder", "{name: beam_search, width: 4}"]),
        (["--speculate", "lookpu"], 2, ["--speculate: 'lookpu' proposes nothing", "lookup, match, draft"]),
        (["--speculate", "{lokup: 3}"], 2, ["--speculate.lokup", "Did you mean 'lookup'?"]),
        (["--speculate", "{lookup: 99}"], 2, ["--speculate.lookup", "99"]),
        (["--speculate", "{lookup: 0, draft: 4}"], 2, ["--speculate: nothing is proposed", "--speculate", "a draft model"]),
        (["--speculate", "{lookup"], 2, ["--speculate", "{lookup: 8, match: 2}"]),
        (["--draft", "nobody"], 2, ["nobody"]),
        (["--weights", "int3"], 2, ["--weights", "int8"]),
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
