"""Repair of text that was decoded wrongly."""

from __future__ import annotations

import re
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import settled
from chattune.dialogs.dialog import Dialog, Drop

# UTF-8 that was read as GBK gives rare characters; GBK that was read as Latin-1 gives runs of accented letters and signs.
_READ_AS_GBK = re.compile("[\u3400-\u9fff\uff00-\uffef\u3000-\u30ff\ue000-\uf8ff\u20ac]{3,}")
_READ_AS_LATIN = re.compile("[\u00a1-\u00fe]{4,}")
_CHINESE = re.compile("[\u4e00-\u9fff，。！？、；：“”‘’（）《》…]+")


class TextRepair(Cleaner):
    """Repair text that was decoded wrongly: UTF-8 read as Windows-1252 or GBK, GBK read as Latin-1, ligatures, odd line ends.

    Left alone: HTML entities (`html`), control codes (`control_codes`), the width of characters (`unicode_forms`).
    Helps when: logs went through several systems ("donâ€™t", "浣犲ソ").   Hurts when: texts talk about such accidents.
    Cost: 15 µs a message.   Start with: the defaults, as the first cleaner.
    Source: ftfy 6, Speer 2019, doi:10.5281/zenodo.2591652; the Chinese repairs are ours.
    """

    straight_quotes: bool = setting(False, "whether curled quotation marks become straight ones")
    ligatures: bool = setting(True, "whether one-character ligatures such as ﬁ become letters")
    chinese: bool = setting(True, "whether Chinese that was decoded wrongly is repaired, too")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return rewritten(dialog, lambda text: settled(self._repaired, text))

    def _repaired(self, text: str) -> str:
        import ftfy

        if text.isascii() and "\r" not in text:
            return text
        if self.chinese:
            text = _READ_AS_LATIN.sub(_again("latin-1", "gb2312"), _READ_AS_GBK.sub(_again("gbk", "utf-8"), text))
        return ftfy.fix_text(
            text, unescape_html=False, remove_terminal_escapes=False, remove_control_chars=False, fix_character_width=False,
            normalization=None, uncurl_quotes=self.straight_quotes, fix_latin_ligatures=self.ligatures,
        )  # fmt: skip


def _again(wrong: str, right: str) -> Any:
    """What replaces a stretch by the same bytes read rightly, if that gives nothing but Chinese."""

    def replace(found: re.Match[str]) -> str:
        for end in range(len(found[0]), max(2, len(found[0]) - 3), -1):  # the last byte is often lost, and what holds it cannot be read
            try:
                better = found[0][:end].encode(wrong).decode(right)
            except UnicodeError:
                continue
            return better + found[0][end:] if _CHINESE.fullmatch(better) else found[0]
        return found[0]

    return replace
