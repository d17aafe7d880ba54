"""Characters that steer a terminal or a layout and say nothing."""

from __future__ import annotations

import re

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import PICTURES, settled
from chattune.dialogs.dialog import Dialog, Drop

_ESCAPES = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # control sequences: colours, cursor
    r"|\x9b[0-?]{0,64}[ -/]{0,8}[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # titles, links and other strings for the terminal
    r"|\x1b[ -/]{0,4}[0-~]"
    r"|\x03(?:\d{1,2}(?:,\d{1,2})?)?"  # colours of IRC
)
_OVERSTRUCK = re.compile(r"[^\x08\n]\x08")  # how old printers made letters bold
_LINE_END = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Zero-width and soft-hyphen characters, marks of direction, interlinear notes, object place, noncharacters.
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc"
    "\ufdd0-\ufdef\ufffe\uffff\U0001d173-\U0001d17a]"
)
# Scripts whose letters change their form by joiners: Arabic, Syriac, N'Ko, those of India and South-East Asia, Mongolian.
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u0e80-\u0fff\u1000-\u109f\u1780-\u18af\ua840-\ua8ff\ufb50-\ufdcf\ufdf0-\ufeff"
_JOINER = re.compile("[\u200c\u200d]+")
_BEFORE, _AFTER = re.compile(f"[{_JOINING}]"), re.compile(f"[{_JOINING}\\s]|\\Z")
_PICTURE = re.compile(f"[{PICTURES}]")
_TAGS = re.compile("(?P<flag>\U0001f3f4[\U000e0020-\U000e007e]{1,16}\U000e007f)|[\U000e0000-\U000e007f]")


class ControlCodes(Cleaner):
    """Take out control characters, terminal and IRC colours, zero-width characters, marks of direction and hidden tags.

    Joiners stay where writing needs them: within an emoji, and between letters of Arabic and the scripts of India and their like.
    Helps when: logs come from terminals, IRC or copied web pages; hidden characters also smuggle instructions past the reader.
    Hurts when: right-to-left text relies on explicit marks of direction.   Cost: 5 µs a message.
    Start with: after `text_repair`, which makes letters of what Windows-1252 left among the controls.
    Source: ECMA-48; Unicode Standard, section 23.2; Unicode Technical Standard 51 for emoji.
    """

    hidden: bool = setting(True, "take out zero-width characters, marks of direction and noncharacters, too")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return rewritten(dialog, lambda text: settled(self._rewritten, text))

    def _rewritten(self, text: str) -> str:
        if text.isascii() and text.isprintable():
            return text
        text = _OVERSTRUCK.sub("", _ESCAPES.sub("", text))
        text = _CONTROLS.sub("", _LINE_END.sub("\n", text))
        if self.hidden and not text.isascii():
            text = _TAGS.sub(lambda found: found["flag"] or "", _HIDDEN.sub("", text))
            text = _JOINER.sub(_needed, text)
        return text


def _needed(found: re.Match[str]) -> str:
    """One joiner where it joins something, else nothing."""
    text, begin, end = found.string, found.start(), found.end()
    before, after = text[begin - 1 : begin], text[end : end + 1]
    if _BEFORE.match(before) and _AFTER.match(after):
        return found[0][0]
    of_emoji = "\u200d" in found[0] and _PICTURE.match(before) and _PICTURE.match(after)
    return "\u200d" if of_emoji else ""
