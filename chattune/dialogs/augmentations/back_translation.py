"""Messages translated to another language and back by a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit
from chattune.dialogs.dialog import Dialog


class BackTranslation(Augmentation):
    """Let a model that you name translate messages to another language and back: what comes back is said a little differently.

    An answer is taken only if it keeps every number and every protected piece; failures are counted and leave the message as it is.
    Answers are kept in a file, so that runs repeat; what the model says is not ours to seed.
    Helps when: the model translates better than it paraphrases; smaller models often do.
    Hurts when: names, jokes and forms of address do not survive the way; the data must not leave this machine.
    Cost: two requests a message.   Start with: 0.2.
    Source: Sennrich et al. 2016, arXiv:1511.06709; for augmentation Yu et al. 2018, arXiv:1804.09541 (QANet).
    """

    unit: ClassVar[Unit] = "message"
    rate: float = setting(0.2, "share of the messages that are translated", low=0.0, high=1.0, search=(0.05, 0.5))
    language: str = setting("English", "the language of the messages, by its English name; what is in Han characters is Chinese anyway")
    through: str = setting("German", "the language between, by its English name")
    endpoint: str = setting("", "address of the endpoint up to and with /v1; must be set")
    model: str = setting("default", "what the model is called there")
    key: str | None = setting(None, "where its key is: env:VARIABLE or file:PATH; none: no key")
    temperature: float = setting(0.3, "of its answers", low=0.0, high=2.0)
    seconds: float = setting(60.0, "seconds to wait for an answer", above=0.0, high=3600.0)
    keep: str = setting("runs/answers.jsonl", "file in which answers are kept")

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._asking import Asking, plain
        from chattune.dialogs.augmentations._endpoint import Endpoint, Place
        from chattune.dialogs.augmentations._text import chinese

        place = Place(self.endpoint, self.model, self.key, self.seconds)
        endpoint = Endpoint(place, f"augment.augmentations.{self.name}", Path(self.keep).expanduser())

        def translated(text: str, language: str, seed: int) -> str | None:
            ask = (
                f"Translate the user's message to {language}. Keep every number, name, address, code and mark in angle brackets "
                "as it is. Answer with the translation alone."
            )
            answer = endpoint.ask([{"role": "system", "content": ask}, {"role": "user", "content": text}], self.temperature, seed)
            return None if answer is None else plain(answer)

        def say(text: str, seed: int) -> str | None:
            there = translated(text, self.through, seed)
            return None if there is None else translated(there, "Chinese" if chinese(text) else self.language, seed)

        return Asking(endpoint, self.roles, self.rate, say)
