"""The command that talks to what was made: a conversation, or one reply; drawn, searched for, or by several models together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from chattune import story
from chattune.cli.answer import USUAL, Answer, Common, plain, short, table
from chattune.cli.decoding import SpeculateOption, by_option, mapping, speculation_of
from chattune.core.artifact import Home
from chattune.core.config import validate
from chattune.core.errors import UsageError
from chattune.core.part import Settings
from chattune.core.progress import talk
from chattune.generate.decoders import Decoder

if TYPE_CHECKING:
    from chattune.generate.reply import ChatModel, Messages, Sampling


def chat(
    run: str, /, *, prompt: Annotated[str | None, Parameter(help="answer this and end")] = None,
    system: Annotated[str | None, Parameter(help="a system message before the conversation")] = None,
    seed: Annotated[int | None, Parameter(help="the same seed gives the same replies; without one: 0")] = None,
    temperature: Annotated[float | None, Parameter(help="0: always the likeliest token")] = None,
    top_k: Annotated[int | None, Parameter(help="draw from the k likeliest tokens")] = None,
    top_p: Annotated[float | None, Parameter(help="draw from the likeliest tokens that hold this share")] = None,
    min_p: Annotated[float | None, Parameter(help="leave out tokens below this share of the likeliest")] = None,
    repetition_penalty: Annotated[float | None, Parameter(help="above 1: what was said becomes less likely")] = None,
    max_tokens: Annotated[int | None, Parameter(help="end a reply after so many tokens")] = None,
    decoder: Annotated[str | None, Parameter(help="search instead of drawing: a name of `chattune list decoders`")] = None,
    together: Annotated[list[str] | None, Parameter(negative="", help="a run that answers together with RUN; repeatable")] = None,
    shares: Annotated[str | None, Parameter(help="their weights: 0.6,0.4 or fitted (on validation dialogs); else equal")] = None,
    weights: Annotated[
        Literal["own", "auto", "float32", "bfloat16", "int8", "int4"],
        Parameter(help="how weights are held; own: as they are, by PyTorch; auto: in int8 where the compiled step can run the model"),
    ] = "own",
    speculate: SpeculateOption = None,
    draft: Annotated[str | None, Parameter(help="a run with the same tokenizer, smaller and faster, that proposes tokens")] = None,
    common: Common = USUAL,
) -> Answer:
    """Talk to a model: streaming, with history; /help says what else. Reads a pipe too, one message a line.

    Parameters
    ----------
    run
        an import, train or evaluate run: a path, a name, or the beginning of a digest
    """
    if prompt is None and common.json:
        raise UsageError("needs --prompt.", path="--json", rule="one prompt, one object", hint="Add --prompt TEXT.")
    drawing = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    options = {**drawing, "max_tokens": max_tokens, "seed": seed}
    runs = [run, *(together or ())]
    home = Home(common.home)
    address, *_ = [story.checkpoint_of(home.find(each)) for each in [*runs, *([draft] if draft else [])]]  # before torch is imported
    computing = {"weights": None if weights == "own" else weights, "speculate": speculate, "draft": draft}
    searching = _decoder(decoder, [name for name, value in {**drawing, **computing}.items() if value is not None], seed)
    mixture, speculation = _shares(shares, len(runs)), speculation_of(speculate)
    from chattune.generate.reply import Sampling

    asked = {key: value for key, value in options.items() if value is not None}
    validate(Sampling, asked, prefix="--")
    sampling = validate(Sampling, {**story.usual_sampling(address).model_dump(exclude={"rules"}), **asked}, prefix="--")
    if searching is None and sampling.temperature == 0:
        _say_idle([name for name in ("seed", "top_k", "top_p", "min_p") if name in asked])
    with by_option():
        how = story.decoding(weights, speculation, draft, common.home)
        model = (story.ensemble(runs, mixture, common.home) if together else story.load(run, common.home)).decoded_by(how)
    if prompt is None:
        from chattune.generate.speaker import Searching
        from chattune.generate.terminal import chat as talk_to

        talk_to(model if searching is None else Searching(model, searching), sampling, system=system)
        return Answer()
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
    if searching is not None:
        return _searched(model, messages, searching, sampling)
    reply = model.replies([messages], sampling)[0]
    data = {"reply": reply.text, "tokens": len(reply.tokens), "finish_reason": reply.finish_reason, "ids": [*reply.tokens]}
    return Answer(plain(reply.text), {**data, **_proposed(model)})


def _proposed(model: ChatModel) -> dict[str, Any]:
    """How many tokens speculation proposed, how many of them were taken, and the steps that were made."""
    decoding, found = model.decoding, model.figures()
    if found is None or decoding is None or (decoding.speculation is None and decoding.draft is None):
        return {}
    return {"speculation": {"proposed": found.proposed_total, "accepted": found.accepted_total, "steps": found.steps_total}}


class _Searching(Settings):
    """What ``--decoder`` says."""

    decoder: Decoder


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _say_idle(drawing: Sequence[str]) -> None:
    """Say which settings of drawing change nothing at temperature 0; ``/set temperature`` may still give them something to do."""
    if drawing:
        talk().print(f"note  {', '.join(map(_option, drawing))}: no effect at temperature 0, where nothing is drawn", markup=False)


def _decoder(said: str | None, drawing: Sequence[str], seed: int | None) -> Decoder | None:
    """The decoder of ``--decoder``: a name, or a mapping with one; none where none is asked for. Settings that cannot act beside it
    are refused: those of `drawing`, and a seed where nothing is left to chance."""
    if said is None:
        return None
    if drawing:
        name = _option(drawing[0])
        raise UsageError(
            f"{name} acts on drawing, and a decoder searches.", path=name, rule="one of the two",
            hint="Leave it out; `chattune list decoders` shows what can be set instead.",
        )
    meant = mapping(said, "--decoder", "{name: beam_search, width: 4}")
    decoder = validate(_Searching, {"decoder": meant}, prefix="--").decoder
    if seed is not None and not decoder.draws:
        raise UsageError(
            f"{decoder.name} draws nothing, so no seed acts.", path="--seed", value=seed, rule="a decoder that draws, such as best_of",
            hint="Leave it out: the reply is the same each time.",
        )
    return decoder


def _shares(said: str | None, count: int) -> Any:
    """The weights of ``--shares``: numbers, the word fitted, or none."""
    if said is not None and count < 2:
        raise UsageError(
            "weights need several models.", path="--shares", value=said, rule="with --together",
            hint="Name another run: --together RUN.",
        )
    if said is None or said == "fitted":
        return said
    try:
        return [float(number) for number in said.split(",")]
    except ValueError:
        raise UsageError(
            f"'{said}' says no weights.", path="--shares", value=said, rule=f"{count} numbers with the sum 1, or fitted",
            hint="Write it like --shares 0.6,0.4.",
        ) from None


def _searched(model: ChatModel, messages: Messages, decoder: Decoder, sampling: Sampling) -> Answer:
    """All candidates, the best first."""
    from chattune.generate.speaker import candidates

    found = candidates(model, messages, decoder, sampling.max_tokens, sampling.seed)
    rows: list[dict[str, Any]] = [
        {
            "reply": each.reply.text, "tokens": len(each.reply.tokens), "finish_reason": each.reply.finish_reason,
            "ids": [*each.reply.tokens], "score": each.candidate.score, "logprob": sum(each.candidate.logprobs),
            **({"entropy": [*each.candidate.entropy], "information": [*each.candidate.information]} if each.candidate.entropy else {}),
        }
        for each in found
    ]  # fmt: skip
    shown = [(f"{row['score']:.3f}", f"{row['logprob']:.2f}", plain(short(row["reply"]))) for row in rows]
    text = table(shown, ("score", "log-probability", "reply"), right=(0, 1))
    if information := rows[0].get("information"):
        unknown, doubt = (sum(values) / len(values) for values in (information, rows[0]["entropy"]))
        text += f"\n\nIts doubt is {doubt:.3f} nats a token, {unknown:.3f} of them because the model does not know better."
    return Answer(text, {**rows[0], "candidates": rows})
