"""Offensive text, English and Chinese."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

from chattune.core.errors import SettingError
from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning
from chattune.dialogs.dialog import Dialog, Drop


class OffensiveText(Cleaner):
    """Leave out dialogs with offensive messages, by word lists, and by a classifier that learns from labelled examples.

    A word counts as a whole word (in Chinese: wherever it stands). With examples, a message is offensive where the classifier says so:
    it has seen which of the words are harmless in which company, and what offends without any of them. Without, the words decide.
    Helps when: logs hold abuse that replies must not learn.   Hurts when: the lists name what people ask about in earnest (health,
    history, law): look at the counts and examples before it is trusted; lists alone block too much and miss half.
    Cost: 50 µs a message.   Start with: examples of your own domain, 500 of each label; then raise or lower `threshold`.
    Source: over-blocking as XSTest measures it, Röttger et al. 2024, arXiv:2308.01263; Chinese examples: COLD, Deng et al. 2022,
    arXiv:2201.06025. No word list comes with chattune.
    """

    looks_at_all: ClassVar[bool] = True
    private: ClassVar[bool] = True

    words: tuple[str, ...] = setting((), "files of words or phrases, one a line")
    examples: tuple[str, ...] = setting((), "tables (CSV, TSV, JSON Lines) with a column of texts and one of labels")
    text_column: str = setting("text", "the column of texts; letter case does not matter")
    label_column: str = setting("label", "the column of labels; letter case does not matter")
    offensive_labels: tuple[str, ...] = setting(("1", "offensive", "toxic", "unsafe", "true"), "labels that mean offensive")
    threshold: float = setting(0.5, "probability from which a message is offensive", above=0.0, below=1.0, search=(0.2, 0.9))
    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(
        ("assistant",), "whose messages must not be offensive; users' abuse stands in context and is not learned with targets=assistant"
    )

    def files(self) -> tuple[Path, ...]:
        return tuple(map(Path, (*self.words, *self.examples)))

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        from chattune.dialogs._offensive import judge

        if not self.words and not self.examples:
            raise SettingError(
                "names neither words nor examples.", path="clean.cleaners.offensive_text", rule="files in words or in examples",
                hint="No word list comes with chattune: name one, as offensive_text.words=[words.txt].",
            )
        return judge(self)

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return self.begin(()).clean(dialog)
