"""The languages that dialogs are in."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import field_validator

from chattune.core.errors import did_you_mean
from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, dropped
from chattune.dialogs.cleaners._text import HAN, URL, without_code, words
from chattune.dialogs.dialog import Dialog, Drop

# ISO 639-1 names of the languages that py3langid's model knows.
KNOWN = frozenset(
    words(
        "af am an ar as az be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr ga gl gu he hi hr ht hu hy id is it ja "
        "jv ka kk "
        "km kn ko ku ky la lb lo lt lv mg mk ml mn mr ms mt nb ne nl nn no oc or pa pl ps pt qu ro ru rw se si sk sl sq sr sv sw "
        "ta te th "
        "tl tr ug uk ur vi vo wa xh zh zu"
    )
)
USUAL = words("en zh ja ko de fr es pt it nl ru uk pl cs sv tr ar fa hi id vi th")
_LETTER = re.compile(r"[^\W\d_]")
_KANA, _HANGUL = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]"), re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_LOOKED_AT = 20_000  # characters of a dialog that decide


class Language(Cleaner):
    """Keep dialogs in the languages asked for; a dialog that is too short to tell, or not surely in another one, stays.

    Scripts are counted first: mostly Chinese characters means Chinese, with kana Japanese, Hangul Korean. What is left is told by
    letter sequences among the candidates. A dialog is judged as a whole, without its code and links.
    Helps when: a dump mixes languages that you do not train.   Hurts when: dialogs switch languages on purpose (translation).
    Cost: 0.1 ms a dialog.   Start with: the languages of your users.
    Source: py3langid (Barbaresi), the method of Lui and Baldwin 2012, langid.py.
    """

    keep: tuple[str, ...] = setting(("en", "zh"), "languages to keep, by their ISO 639-1 names")
    candidates: tuple[str, ...] = setting(USUAL, "languages between which the model decides, beside those of `keep`")
    letters: int = setting(10, "letters that a dialog needs before its language is told; shorter ones stay", low=1)
    certainty: float = setting(0.9, "probability from which another language is believed", low=0.0, high=1.0)
    han_share: float = setting(0.3, "share of Chinese characters among letters that makes a dialog Chinese", above=0.0, high=1.0)

    @field_validator("keep", "candidates")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in KNOWN:
                raise ValueError(f"names '{name}', which is no language that can be told. {did_you_mean(name, KNOWN)}".strip())
        if not value:
            raise ValueError("names no language")
        return value

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        found = self.tell("\n".join(message.content for message in dialog.messages))
        if found is None or found in self.keep:
            return dialog
        return dropped(dialog, "language", found)

    def tell(self, text: str) -> str | None:
        """The language of `text`; nothing where it is too short or not sure."""
        text = URL.sub(" ", without_code(text[:_LOOKED_AT]))
        letters = len(_LETTER.findall(text))
        if letters < self.letters:
            return None
        if len(_HANGUL.findall(text)) > self.han_share * letters:
            return "ko"
        han, kana = len(HAN.findall(text)), len(_KANA.findall(text))
        if han + kana > self.han_share * letters:
            return "ja" if kana > 0.1 * (han + kana) else "zh"
        name, probability = _identifier(tuple(sorted({*self.candidates, *self.keep} - {"zh", "ja", "ko"}))).classify(text)
        return str(name) if probability >= self.certainty else None


@functools.cache
def _identifier(candidates: Sequence[str]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(candidates))
    return identifier
