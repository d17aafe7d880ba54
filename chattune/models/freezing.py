"""Which parameters learn: freezing by pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.errors import SettingError
from chattune.models.patterns import meant, refuse_unused

if TYPE_CHECKING:
    from torch import nn

    from chattune.models.language_model import LanguageModel


def freeze(model: LanguageModel, patterns: tuple[str, ...]) -> list[str]:
    """Freeze every parameter that a pattern means, by its own name or by those of transformers; the names of what is frozen.

    `SettingError` where a pattern means nothing, means only a part of what is stored as one matrix, or nothing is left to learn.
    """
    if patterns:
        every = [name for own, parameter in model.named_parameters() for name in (own, *_public(model, own, parameter))]
        refuse_unused(patterns, every, "train.freeze")
    for own, parameter in model.named_parameters():
        public = _public(model, own, parameter)
        left = [name for name in public if not any(meant(pattern, name) for pattern in patterns)]
        if any(meant(pattern, own) for pattern in patterns) or not left:
            parameter.requires_grad_(False)
        elif len(left) < len(public):
            raise SettingError(
                f"{next(name for name in public if name not in left)} is stored as one matrix with {', '.join(left)}.",
                path="train.freeze", value=", ".join(patterns), rule="whole matrices", hint=f"Freeze all of them: {own}.",
            )
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not model.trainable():
        raise SettingError(
            "nothing is left to learn.", path="train.freeze", value=", ".join(patterns),
            rule="at least one parameter that is not frozen", hint="Take out a pattern.",
        )
    return frozen



def _public(model: LanguageModel, own: str, parameter: nn.Parameter) -> tuple[str, ...]:
    """Names in other libraries. An adapter's new weights (``down.0``) have none, and it has frozen all that had."""
    learns = parameter.requires_grad and own.rpartition(".")[2] in ("weight", "bias")
    return model.public_names(own) if learns else (own,)
