"""One form for characters that Unicode can write in several ways."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import outside_code, settled
from chattune.dialogs.dialog import Dialog, Drop

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WIDE = {ord(letter): chr(ord(letter) + 0xFEE0) for letter in _LETTERS}
_NARROW = {ord(wide): chr(letter) for letter, wide in _WIDE.items()}
_MARKS = dict(zip("，。！？：；（）", ",.!?:;()", strict=True))
_CHINESE_MARK = re.compile("[！（），：；？～…]")  # what NFKC would make ASCII of
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_AFTER_HAN = re.compile(rf"(?<=[{_HAN}])(?:[,!?:;](?![/A-Za-z0-9])|\.(?![A-Za-z0-9.]))")
_AROUND_HAN = re.compile(rf"\(([^()\n]*[{_HAN}][^()\n]*)\)")
_TO_WIDE = {narrow: wide for wide, narrow in _MARKS.items()}
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_END = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
_INNER = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+(?=\n)")
_EMPTY_LINES = re.compile(r"\n{3,}")


class UnicodeForms(Cleaner):
    """One form for what Unicode writes in several ways: composed characters, full and half width, white space.

    Full-width letters and digits of Chinese text (ＡＢＣ１２３) become half-width ones, and Chinese punctuation (，。！？) stays,
    also with NFKC, which would make ASCII of it. Code in backticks keeps its white space.
    Helps when: sources write the same words with other bytes: a tokenizer sees one word.
    Hurts when: NFKC: ², ½ and ① lose their form; white space: columns that were aligned by spaces.
    Cost: 10 µs a message.   Start with: the defaults.
    Source: Unicode Standard Annex 15 (normalization forms), Annex 11 (East Asian width).
    """

    form: Literal["NFC", "NFKC"] = setting("NFC", "NFC composes characters, NFKC also takes the look from them (ﬁ → fi, ² → 2)")
    letters: Literal["half", "full", "keep"] = setting("half", "the width that Latin letters and digits get")
    punctuation: Literal["keep", "full", "half"] = setting(
        "keep", "full: ASCII marks after Chinese become Chinese ones; half: Chinese marks become ASCII ones"
    )
    white_space: bool = setting(True, "one kind of space and of line end, no runs of spaces in a line, one empty line at the most")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return rewritten(dialog, lambda text: settled(self._rewritten, text))

    def _rewritten(self, text: str) -> str:
        if self.letters == "full" or not text.isascii():
            text = self._formed(text)
        return outside_code(_LINE_END.sub("\n", text), _spaced) if self.white_space else text

    def _formed(self, text: str) -> str:
        if self.letters == "half":
            text = text.translate(_NARROW)
        if self.form == "NFC":
            text = unicodedata.normalize("NFC", text)
        else:
            pieces = zip(_CHINESE_MARK.split(text), [*_CHINESE_MARK.findall(text), ""], strict=True)
            text = "".join(unicodedata.normalize("NFKC", piece) + mark for piece, mark in pieces)
        if self.letters == "full":
            text = text.translate(_WIDE)
        if self.punctuation == "half":
            text = re.sub(f"([{''.join(_MARKS)}])(?=([\\s，。！？：；）]|$)?)", _narrow, text)
        elif self.punctuation == "full":
            text = outside_code(text, _wide)
        return text


def _spaced(text: str) -> str:
    text = _TRAILING.sub("", _SPACE.sub(" ", text))
    return _EMPTY_LINES.sub("\n\n", _INNER.sub(" ", text))


def _narrow(found: re.Match[str]) -> str:
    # Chinese marks hold their own space; ASCII ones need one, but before an opening bracket and not behind it.
    mark = _MARKS[found[1]]
    if mark == "(":
        return mark
    return mark if found[2] is not None or mark == ")" else f"{mark} "


def _wide(text: str) -> str:
    text = _AFTER_HAN.sub(lambda found: _TO_WIDE[found[0]], text)
    return _AROUND_HAN.sub(r"（\1）", text)
