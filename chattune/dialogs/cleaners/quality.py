"""Dialogs that are too poor to learn from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning, dropped
from chattune.dialogs.dialog import Dialog, Drop

if TYPE_CHECKING:
    from chattune.dialogs.quality import Usual


class Quality(Cleaner):
    """Leave out dialogs whose replies score low: lengths, repetition, share of letters, variety of words, unlikely characters.

    Each part is a number from 0 to 1, the score is the least of them, and the drop says which it was. What is usual is learnt from
    the dialogs themselves, whatever their language.
    Helps when: a dump holds rubbish: keyboard noise, tables, boilerplate loops, another alphabet.
    Hurts when: replies are rightly code, numbers or single words; look at the counts in the report first.
    Cost: 0.2 ms a dialog.   Start with: 0.5; the data report shows the distribution of the score.
    Source: the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1) as graded scores; perplexity as in CCNet (Wenzek 2020).
    """

    looks_at_all: ClassVar[bool] = True

    least: float = setting(0.5, "score below which a dialog is left out", low=0.0, high=1.0, search=(0.3, 0.8))

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        from chattune.dialogs.quality import Usual

        said = ("\n".join(message.content for message in dialog.messages if message.role == "assistant") for dialog in dialogs)
        return _Judging(self.least, Usual(said))


@dataclass(frozen=True)
class _Judging:
    least: float
    usual: Usual

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        from chattune.dialogs.quality import quality

        found = quality(dialog, self.usual)
        if found.score >= self.least:
            return dialog
        return dropped(dialog, "low_quality", f"{found.score:.2f}, worst in {found.worst} ({found.parts[found.worst]:.2f})")
