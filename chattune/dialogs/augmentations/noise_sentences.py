"""Phrases that say nothing put around messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit, Working, rewritten
from chattune.dialogs.dialog import Dialog

_BEFORE = (
    "Hi there!", "Sorry to bother you.", "Good to see you again.", "Hope this is the right place to ask.", "Hey, me again.",
    "I tried to call but nobody picked up.", "Bear with me, I am typing on my phone.", "Long day today…",
)  # fmt: skip
_AFTER = (
    "Sent from my phone.", "Thanks in advance!", "lol", "No rush.", "Cheers!", "Sorry for the typos.", "Anyway.",
    "My cat just walked over the keyboard.", "That is all for now.",
)  # fmt: skip
_BEFORE_ZH = ("你好呀！", "打扰一下。", "又是我。", "不好意思问一下。", "我用手机打字，慢慢来。", "今天好累啊。")
_AFTER_ZH = ("谢谢啦！", "不着急。", "哈哈。", "打字有点乱，见谅。", "就这样吧。", "先谢谢了。", "发自我的手机。")


class NoiseSentences(Augmentation):
    """Put a phrase that asks nothing and tells nothing before or behind a message: a greeting, an excuse, a signature.

    Helps when: training data were cleaned of what users write all the same.
    Hurts when: the model should answer a greeting, or thanks, in some way of its own.
    Cost: none.   Start with: 0.2; phrases from your own logs are better than these.
    Source: Wang & Bansal 2018, arXiv:1804.06473 (AddSent noise), with phrases that change no answer.
    """

    unit: ClassVar[Unit] = "message"
    rate: float = setting(0.2, "share of the messages that get a phrase", low=0.0, high=1.0, search=(0.05, 0.5))
    phrases: str | None = setting(None, "a file of phrases, one a line, to put behind messages; none: a few of chattune")

    def files(self) -> Iterable[Path]:
        from chattune.core.errors import DataError

        if self.phrases is None:
            return ()
        path = Path(self.phrases).expanduser()
        if not path.is_file():
            raise DataError("does not exist.", path=str(path), rule="a file with one phrase a line")
        return (path,)

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.core.errors import DataError

        phrases: tuple[str, ...] = ()
        for path in self.files():
            phrases = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
            if not phrases:
                raise DataError("holds no phrase.", path=str(path), rule="one phrase a line")
        return _Noisy(self, phrases)


@dataclass(frozen=True)
class _Noisy(Working):
    part: NoiseSentences
    phrases: tuple[str, ...]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import chinese, joined

        def noisy(text: str) -> str:
            if random.random() >= self.part.rate:
                return text
            before, after = ((), self.phrases) if self.phrases else (_BEFORE_ZH, _AFTER_ZH) if chinese(text) else (_BEFORE, _AFTER)
            place = int(random.integers(len(before) + len(after)))
            return joined([before[place], text] if place < len(before) else [text, after[place - len(before)]], text)

        return rewritten(dialog, self.part.roles, noisy)
