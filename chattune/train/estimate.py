"""What a run would cost, before it starts: parameters, operations, tokens, steps, time, memory, disk; and whether its size suits.

Time and memory are not modelled: a child process does a few real updates (`measure`) and tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core.errors import SettingError
from chattune.core.files import size
from chattune.core.progress import duration
from chattune.train.config import TrainConfig
from chattune.train.measure import measured

if TYPE_CHECKING:
    from chattune.tokens.token_set import TokenSet

BYTES_PER_TOKEN = 3.5  # of a byte-level BPE of a few thousand tokens on English chat; measured 3.2 to 3.8 (vocabulary 2048 to 8192)
BACKWARD = 3  # a training step's operations over those of its forward pass: one for the loss, two for the gradients
SUITED = 20  # tokens a parameter
REPEATED = 4  # passes over the same text


def estimate(
    sections: Mapping[str, Any], tokens: int | None = None, *, vocabulary: int = 4096, token_set: Path | None = None
) -> dict[str, Any]:
    """The cost of the recipe's training.

    `sections`: resolved settings by name; `tokens`: training tokens where they are known, else guessed from the size of the
    sources; `vocabulary`: ids of the tokenizer; `token_set`: the prepare run, where there is one: then its own batches are
    measured, else random ones. Gives

    - ``parameters`` and ``trained`` (those that change), ``vocabulary``;
    - ``operations_per_token`` (forward, floating point, `Family.operations`) and ``operations`` of the whole training;
    - ``training_tokens``, ``tokens`` (seen over the run) and ``steps``;
    - ``seconds``, ``tokens_per_second``, ``memory_bytes`` (peak of the process), ``disk_bytes`` (at the most, while it runs);
    - ``reply_tokens_per_second``, of one reply on this machine, and ``suited_parameters`` (`suited`).
    """
    model, config = sections["model"], sections["train"]
    known = tokens if tokens is not None else _guessed_tokens(sections.get("collect"))
    context = config.context or model.context_length()
    batch_tokens = config.batch_tokens or 16 * context
    found = measured(
        {
            "model": model.dump(), "train": config.model_dump(mode="json"), "seed": sections.get("seed", 0), "vocabulary": vocabulary,
            "tokens": str(token_set) if token_set else None,
        }
    )  # fmt: skip
    looks = found["seconds_a_look"] * (config.evaluations + 1)
    if config.minutes is not None:
        seconds = config.minutes * 60
        steps = max(1, int((seconds - looks) / found["seconds_a_step"]))
        saves = _saves(config, steps, seconds)
    else:
        batches = found["batches_an_epoch"] if token_set else (known or batch_tokens) / batch_tokens
        steps = config.steps or max(1, round((config.epochs or 1.0) * batches))
        plain = steps * found["seconds_a_step"] + looks
        saves = _saves(config, steps, plain)
        seconds = plain + saves * found["seconds_a_save"]
    operations, parameters = model.operations(vocabulary, context), int(found["parameters"])
    return {
        "parameters": parameters,
        "trained": int(found["trained"]),
        "vocabulary": vocabulary,
        "operations_per_token": operations,
        "operations": BACKWARD * operations * steps * batch_tokens,
        "training_tokens": known,
        "tokens": steps * batch_tokens,
        "steps": steps,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(batch_tokens / found["seconds_a_step"]),
        "memory_bytes": int(found["memory_bytes"]),
        # An old checkpoint goes only when the new one stands; the weights come last. Prepared tokens take 3 bytes each.
        "disk_bytes": int(found["snapshot_bytes"]) * min(saves, config.keep_last + 1) + parameters * 4
        + (0 if token_set else 3 * (known or 0)),
        "reply_tokens_per_second": round(found["reply_tokens_per_second"], 1),
        "suited_parameters": suited(steps * batch_tokens),
    }


def _saves(config: TrainConfig, steps: int, seconds: float) -> int:
    return steps // config.save_steps if config.save_steps else int(seconds / max(config.save_seconds, seconds / steps))


def estimate_on(tokens: TokenSet, sections: Mapping[str, Any]) -> dict[str, Any]:
    """`estimate` of a training on tokens that are there."""
    counted = int(tokens.manifest["metrics"]["token_set"]["train"]["tokens"])
    return estimate(sections, counted, vocabulary=tokens.tokenizer.vocabulary, token_set=tokens.path)


def suited(tokens: int) -> int:
    """Parameters that suit so many tokens seen: a twentieth, which is where large models get most out of their computation.

    Source: Hoffmann et al. 2022, arXiv:2203.15556. Small models on chat are best with more parameters than that (RESULTS.md), so it is
    where to begin, not where to end: `chattune compare` on three sizes measures it.
    """
    return max(1, tokens // SUITED)


def advice(found: Mapping[str, Any]) -> list[str]:
    """What the numbers of `estimate` say about the size of the model, in sentences."""
    a_parameter = found["tokens"] / found["parameters"]
    lines = [
        f"{a_parameter:.3g} tokens seen a parameter; {SUITED} suit large models (here {found['suited_parameters']:,} parameters), "
        "fewer suit small ones: `chattune compare` of three sizes tells"
    ]
    if found["training_tokens"] and (passes := found["tokens"] / found["training_tokens"]) > REPEATED:
        # Muennighoff et al. 2023, arXiv:2305.16264: up to four passes are nearly as good as new text, then their worth falls.
        lines.append(f"{passes:.3g} passes over one text: beyond {REPEATED} they teach ever less, and a larger model overfits sooner")
    return lines


def refuse_over_limits(found: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise `SettingError` for the first of ``train.limits`` that the estimate breaks."""
    limits = config.limits
    checks: tuple[tuple[str, float | None, float, str], ...] = (
        ("memory", limits.memory and limits.memory * 2**30, found["memory_bytes"], "{} of memory"),
        ("minutes", limits.minutes and limits.minutes * 60, found["seconds"], "{}"),
        ("disk", limits.disk and limits.disk * 2**30, found["disk_bytes"], "{} of disk"),
    )
    for name, most, needed, words in checks:
        if most is not None and needed > most:
            shown = [duration(value) if name == "minutes" else size(value) for value in (needed, most)]
            raise SettingError(
                f"training would take {words.format(shown[0])}, more than the {shown[1]} that are allowed.",
                path=f"train.limits.{name}", value=getattr(limits, name), rule=f"at most {shown[1]}", hint=_WAYS_OUT[name],
            )
    speed = found["reply_tokens_per_second"]
    if limits.reply_speed is not None and speed < limits.reply_speed:
        raise SettingError(
            f"a reply would come at {speed:g} tokens a second, slower than the {limits.reply_speed:g} that are asked for.",
            path="train.limits.reply_speed", value=limits.reply_speed, rule=f"at least {limits.reply_speed:g} tokens a second",
            hint="Take a smaller model.size.",
        )


_WAYS_OUT = {
    "memory": "Take a smaller model.size or train.batch_tokens, or raise train.accumulate.",
    "minutes": "Set train.minutes, take fewer train.steps or a smaller model.size.",
    "disk": "Lower train.keep_last or take a smaller model.size.",
}


def _guessed_tokens(collect: Any) -> int | None:
    if collect is None:
        return None
    sizes = [source["bytes"] for source in collect.fingerprint().values() if isinstance(source, Mapping) and "bytes" in source]
    share = 0.8
    return int(sum(sizes) * share / BYTES_PER_TOKEN) if sizes else None
