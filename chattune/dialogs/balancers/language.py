"""As much of each language as is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog

_READ = 2000  # characters of a dialog that decide


class Language(Balancer):
    """Mix languages, each by its size to the power of 1/temperature.

    A dialog's language is what its metadata say; else what the cleaner `language` tells of its text; where that is too short or not
    sure, the commonest language among those in the same writing (Latin, Han, Cyrillic …).
    Helps when: one language outnumbers the others and all are to be spoken.
    Hurts when: the rare language is repeated so often that it is learnt by heart; `balance.repeat` bounds that.
    Cost: 0.2 ms a dialog.   Start with: temperature 2 to 3.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019; XLM-R (Conneau et al. 2020) takes 3.3.
    """

    key: str = setting("language", "which entry of a dialog's metadata names its language, where there is one")
    temperature: float = setting(2.0, "1: as it is; large: each equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.dialogs.balancing import shares
        from chattune.dialogs.cleaners.language import Language as Telling

        tell, known = Telling().tell, dict[str, Counter[str]]()
        told: list[str | None] = []
        writings: list[str] = []
        for dialog in dialogs:
            text = "\n".join(message.content for message in dialog.messages)[:_READ]
            own = str(dialog.metadata[self.key]) if self.key in dialog.metadata else tell(text)
            told.append(own)
            writings.append(_writing(text))
            if own is not None:
                known.setdefault(writings[-1], Counter())[own] += 1
        usual = {writing: max(count, key=lambda name: (count[name], name)) for writing, count in known.items()}
        kinds = [own or usual.get(writing, writing) for own, writing in zip(told, writings, strict=True)]
        return Weights(shares(kinds, self.temperature), kinds)


def _writing(text: str) -> str:
    from chattune.dialogs.description import script

    count = Counter(found for character in text if (found := script(character)))
    return max(count, key=lambda name: (count[name], name)) if count else "none"
