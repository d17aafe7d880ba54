"""How the replies of a chat model are computed: the numbers of its weights, and what proposes tokens to it. The door to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.core.errors import UsageError

if TYPE_CHECKING:
    from chattune.generate.engine import Engine
    from chattune.generate.reply import ChatModel, Speculation
    from chattune.generate.runner import Runner
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.tokenizer import Tokenizer

_REWINDING = "a family that attends to what it keeps, such as gpt, encoder_decoder or memory_network"


@dataclass(frozen=True)
class Decoding:
    """`weights`: as `runner_for` takes them; `speculation`: what is proposed ahead; `draft`: a smaller chat model with the same
    tokenizer, which proposes (with the usual `speculation` where none is given)."""

    weights: str = "own"
    speculation: Speculation | None = None
    draft: ChatModel | None = None

    def check(self, chat: ChatModel) -> None:
        """Refuse (`UsageError`) what cannot be followed, with the reason."""
        from chattune.generate.runner import check_weights

        members = _alone(chat.model)
        proposing = [] if self.draft is None else _alone(self.draft.model)
        for model in (*members, *proposing):
            check_weights(model, self.weights)
        if self.speculation is None and self.draft is None:
            return
        for model in members:
            if not _rewinds(model):
                raise UsageError(
                    f"a model of the {model.family.name} family cannot take back a token that it has read.",
                    path="draft" if self.speculation is None else "speculation", value=model.family.name, rule=_REWINDING,
                    hint="Leave it out.",
                )  # fmt: skip
        self._check_that_it_proposes()
        if self.draft is None:
            return
        for model in proposing:
            if not _rewinds(model):
                raise UsageError(
                    f"a draft model of the {model.family.name} family cannot take back a token that was not taken.",
                    path="draft", value=model.family.name, rule=_REWINDING,
                    hint="Train a smaller model of another family on the same token set.",
                )  # fmt: skip
        if not same_tokens(chat.tokenizer, self.draft.tokenizer):
            raise UsageError(
                "the draft model has another tokenizer: an id means another token to it.", path="draft",
                value=self.draft.model.vocabulary, rule="one tokenizer", hint="Train both from one prepared token set.",
            )  # fmt: skip
        if chat.model.vocabulary != self.draft.model.vocabulary:
            raise UsageError(
                f"the draft model counts {self.draft.model.vocabulary} ids, the model {chat.model.vocabulary}.", path="draft",
                value=self.draft.model.vocabulary, rule="as many ids", hint="Take one whose table of tokens is as long.",
            )  # fmt: skip

    def _check_that_it_proposes(self) -> None:
        proposes = self.speculation
        if proposes is None:
            return
        if self.draft is None and not proposes.lookup:
            raise UsageError(
                "nothing is proposed: nothing is looked up, and there is no draft model.", path="speculation", value=0,
                rule="lookup above 0, or a draft model", hint="Raise lookup, name a draft model, or leave speculation out.",
            )  # fmt: skip
        if self.draft is not None and not proposes.draft:
            raise UsageError(
                "the draft model is to propose 0 tokens.", path="draft", value=0, rule="speculation with draft above 0",
                hint="Raise draft in the settings of speculation, or leave the draft model out.",
            )  # fmt: skip

    def engine(self, chat: ChatModel, *, slots: int, length: int | None = None, chunk: int = 256) -> Engine:
        """An engine for this model, checked before; `length`: tokens of prompt and reply, the model's context by default."""
        from chattune.generate.engine import Engine

        length = min(length or chat.context, chat.context)
        runner, draft = _runner(chat.model, self.weights, slots, length), None
        if self.draft is not None:
            draft = _runner(self.draft.model, self.weights, slots, min(length, self.draft.context))
        return Engine(
            chat.model, chat.tokenizer, slots=slots, length=length, runner=runner, chunk=chunk, speculation=self.speculation,
            draft=draft,
        )  # fmt: skip


def same_tokens(one: Tokenizer, two: Tokenizer) -> bool:
    """Whether an id means the same to both."""
    return list(one.pieces) == list(two.pieces) and one.control == two.control and one.ends == two.ends and one.never == two.never


def _rewinds(model: LanguageModel) -> bool:
    import torch

    with torch.inference_mode():
        return model.new_cache(1, 1).rewinds


def _runner(model: LanguageModel, weights: str, slots: int, length: int) -> Runner:
    """The fastest one; models that answer together have one each."""
    from chattune.generate.ensemble import EnsembleModel, EnsembleRunner
    from chattune.generate.runner import runner_for

    runners = [runner_for(each, slots=slots, length=length, weights=weights) for each in _alone(model)]
    return EnsembleRunner(runners, model.shares) if isinstance(model, EnsembleModel) else runners[0]


def _alone(model: LanguageModel) -> list[LanguageModel]:
    """The models that answer together; one is itself."""
    from chattune.generate.ensemble import EnsembleModel

    return [*model.members] if isinstance(model, EnsembleModel) else [model]
