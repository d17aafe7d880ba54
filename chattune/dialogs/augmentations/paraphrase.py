"""Messages said in other words by a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit
from chattune.dialogs.dialog import Dialog

_ASK = (
    "Rewrite the user's message in other words and another sentence structure, in the same language, with the same meaning and the "
    "same tone. Keep every number, name, address, code and mark in angle brackets as it is. Answer with the rewritten message alone."
)


class Paraphrase(Augmentation):
    """Let a model that you name say messages in other words: any endpoint that speaks OpenAI's language, such as your own server.

    An answer is taken only if it keeps every number and every protected piece; failures are counted and leave the message as it is.
    Answers are kept in a file, so that runs repeat; what the model says is not ours to seed.
    Helps when: other sentence structures are wanted, which word lists cannot give.
    Hurts when: the model drifts from the meaning; the data must not leave this machine (name a server on it).
    Cost: one request a message, one after the other: hours for 10,000 messages at a second each.   Start with: 0.2.
    Source: paraphrasing for augmentation, Kumar et al. 2019, "Submodular optimization-based diverse paraphrasing"; by chat models
    Dai et al. 2023, arXiv:2302.13007.
    """

    unit: ClassVar[Unit] = "message"
    rate: float = setting(0.2, "share of the messages that are said anew", low=0.0, high=1.0, search=(0.05, 0.5))
    endpoint: str = setting("", "address of the endpoint up to and with /v1; must be set")
    model: str = setting("default", "what the model is called there")
    key: str | None = setting(None, "where its key is: env:VARIABLE or file:PATH; none: no key")
    temperature: float = setting(0.8, "of its answers", low=0.0, high=2.0)
    instruction: str = setting(_ASK, "what it is told to do with a message")
    seconds: float = setting(60.0, "seconds to wait for an answer", above=0.0, high=3600.0)
    keep: str = setting("runs/answers.jsonl", "file in which answers are kept")

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._asking import Asking, plain
        from chattune.dialogs.augmentations._endpoint import Endpoint, Place

        place = Place(self.endpoint, self.model, self.key, self.seconds)
        endpoint = Endpoint(place, f"augment.augmentations.{self.name}", Path(self.keep).expanduser())

        def say(text: str, seed: int) -> str | None:
            messages = [{"role": "system", "content": self.instruction}, {"role": "user", "content": text}]
            answer = endpoint.ask(messages, self.temperature, seed)
            return None if answer is None else plain(answer)

        return Asking(endpoint, self.roles, self.rate, say)
