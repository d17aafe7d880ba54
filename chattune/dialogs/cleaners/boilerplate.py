"""What mail programs, help desks and companies put around a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import settled
from chattune.dialogs.dialog import Dialog, Drop

_SENT_FROM = re.compile(
    r"(?:sent|written|posted) (?:from|via|by|with|using) (?:my |the )?(?:iphone|ipad|ipod|android|blackberry|galaxy|samsung|"
    r"huawei|xiaomi|"
    r"pixel|nokia|phone|mobile|smartphone|tablet|windows|mac|outlook|yahoo|gmail|mail|proton ?mail|thunderbird|aol|airmail)"
    r"[\w ,.'’™®()-]{0,60}"
    r"|get outlook for (?:ios|android).{0,60}|sent from .{0,30}(?:iphone|ipad|android|blackberry|smartphone|mobile "
    r"device)[^.!?\n]{0,30}"
    r"|(?:发自|来自|发送自)我的\s?[\w -]{1,20}|(?:发自|来自|从)[\w \u00ae-]{0,16}(?:手机|客户端|邮箱|邮件|iphone|ipad|android)"
    r"(?:版)?[\w -]{0,10}(?:发送|发出)?|从我的[\w -]{1,16}发送",
    re.I,
)
_QUOTE_HEADER = re.compile(
    r"(?:on|am|le|el) (?=[^\n]{0,160}\d)[^\n]{6,160}\b(?:wrote|schrieb[^\n]{0,60}|a écrit|escribió)\s?:"
    r"|(?=[^\n]{0,120}\d)[^\n]{0,120}(?:于|在)[^\n]{4,80}写道\s?[:：]"
    r"|\d{4}年\d{1,2}月\d{1,2}日[^\n]{0,80}写道\s?[:：]",
    re.I,
)
_QUOTE_RULE = re.compile(
    r"[-_=]{2,}\s?(?:original message|original appointment|forwarded message|forwarded by [^\n]{0,60}|原始邮件|原始信息|转发邮件|"
    r"转发的邮件|"
    r"回复的原邮件|邮件原件)\s?[-_=]{2,}[^\n]{0,10}",
    re.I,
)
_HEADER_LINE = re.compile(
    r"\*?(?:from|sent|date|to|cc|subject|发件人|发送时间|日期|收件人|抄送|主题)\*?\s?[:：]\*?\s?[^\n]{0,200}",
    re.I,
)
_FIRST_HEADER = re.compile(r"\*?(?:from|发件人)\*?\s?[:：]", re.I)
_ABOVE = re.compile(
    r"[#\s-]*(?:please )?(?:type|write|reply)[^\n]{0,40}above this line[#\s-]*|[#\s-]*请在此行(?:上方|以上)回复[#\s-]*",
    re.I,
)
_DELIMITER = re.compile(r"--\s?")
_SIGN_OFF = re.compile(
    r"(?:(?:with |many )?(?:(?:best|kind|warm|kindest|warmest) )?(?:regards|wishes)|sincerely(?: yours)?|yours (?:truly|"
    r"sincerely|"
    r"faithfully)|respectfully(?: yours)?|此致|敬礼|祝好|顺颂商祺|谨致问候|顺祝商祺|此致敬礼)[,.!，。！ ]{0,2}"
    r"|(?:best|cheers|thanks(?: and regards| in advance| again)?|many thanks|thank you|"
    r"take care)\s?,",  # without the comma: said, not signed
    re.I,
)
_DISCLAIMER = re.compile(
    r"\W{0,4}(?:(?:confidentiality|legal|privacy) (?:notice|disclaimer)\b|(?:e-?mail )?disclaimer ?:"
    r"|(?:this|the information (?:contained )?in this) (?:e-?mail|message|communication|transmission)\b[^\n]{0,200}"
    r"(?:confidential|privileged|intended (?:solely |only )?for|intended recipient)"
    r"|if you (?:are not the intended recipient|have received this (?:e-?mail|message) in error)"
    r"|please consider the environment before printing|免责声明|保密(?:声明|提示)"
    r"|(?:本|此|该)(?:电子)?(?:邮件|信息)(?:及其?(?:任何)?附件)?[^\n]{0,60}(?:保密|机密|收件人|仅供))",
    re.I,
)
_GREETING = re.compile(
    r"(?:dear (?:sir|madam|sir or madam|sirs|customer|user|team|all|valued customer)|hello (?:dear )?(?:customer|user)|to whom "
    r"it may concern"
    r"|thank you for (?:contacting|reaching out to|writing to|choosing) [^\n.!,]{2,60}|thanks for (?:contacting|reaching out to) "
    r"[^\n.!,]{2,60}"
    r"|(?:亲|您好|你好)[，,~～ ]{0,2}(?:欢迎光临|很高兴为您服务|请问有什么(?:可以|能)?(?:帮(?:助|到)?您|"
    r"为您服务)的?吗?)[^\n，。！？]{0,20}"
    r"|欢迎光临[^\n，。！？]{0,20}|感谢您的(?:来信|来电|咨询)|尊敬的(?:客户|用户|顾客))[,.!:，。！：~～ ]{0,3}",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?。！？]\s*$")
_SIGNATURE_LINES, _SIGNATURE_WIDTH = 8, 72


class Boilerplate(Cleaner):
    """Take away what programs and companies put around a message: signatures, "Sent from my …", quoted replies, disclaimers.

    English and Chinese; quoted replies also as German, French and Spanish mail programs head them. What stands in the middle of a
    sentence is left alone: only whole lines and paragraphs go.
    Helps when: conversations come from mail or a help desk.
    Hurts when: people talk about such lines, or quote in order to answer below.
    Cost: 20 µs a message.   Start with: the defaults; add your company's own lines as `phrases`.
    Source: RFC 3676, section 4.3 ("-- "); the headers that Outlook, Gmail, Apple Mail, QQ Mail and Zendesk write.
    """

    signatures: bool = setting(True, 'the lines after "-- ", and a name with a few short lines after "Best regards" and its like')
    sent_from: bool = setting(True, '"Sent from my iPhone", "发自我的 iPhone" and their like')
    quotes: bool = setting(True, 'quoted replies with their headers ("On … wrote:", "-----Original Message-----", "发件人：")')
    disclaimers: bool = setting(True, "paragraphs that call a message confidential")
    greetings: bool = setting(False, 'lines that greet as a company does ("Thank you for contacting …", "尊敬的客户，")')
    phrases: tuple[str, ...] = setting((), "lines of your own that are to go where they stand as a whole line, whatever their case")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        steps = self._steps()

        def rewrite(text: str) -> str:
            for step in steps:
                text = step(text)
            return text

        return rewritten(dialog, lambda text: settled(rewrite, text))

    def _steps(self) -> Sequence[Callable[[str], str]]:
        own = {_plain(phrase) for phrase in self.phrases}
        wanted: list[tuple[bool, Callable[[str], str]]] = [
            (self.quotes, _without_quotes),
            (bool(own), lambda text: _without_lines(text, lambda line: _plain(line) in own)),
            (self.disclaimers, _without_disclaimers),
            (self.sent_from, lambda text: _without_lines(text, lambda line: bool(_SENT_FROM.fullmatch(line.strip(" .。"))))),
            (self.signatures, _without_signature),
            (self.greetings, lambda text: _without_lines(text, lambda line: _GREETING.fullmatch(line.strip()) is not None)),
        ]
        return [step for on, step in wanted if on]


def _plain(line: str) -> str:
    return " ".join(line.split()).casefold()


def _without_lines(text: str, goes: Callable[[str], bool]) -> str:
    lines = text.split("\n")
    kept = [line for line in lines if not line.strip() or not goes(line)]
    return text if len(kept) == len(lines) else "\n".join(kept).strip()


def _without_disclaimers(text: str) -> str:
    if not _DISCLAIMER.search(text):
        return text
    paragraphs = re.split(r"(\n\s*\n)", text)
    kept = ["" if place % 2 == 0 and _DISCLAIMER.match(part) else part for place, part in enumerate(paragraphs)]
    return text if kept == paragraphs else re.sub(r"\n\s*\n(?:\s*\n)+", "\n\n", "".join(kept)).strip()


def _without_quotes(text: str) -> str:
    lines = text.split("\n")
    for place, line in enumerate(lines):
        bare = line.strip()
        if _ABOVE.fullmatch(bare):
            return "\n".join(lines[:place] + lines[place + 1 :]).strip()
        two = f"{bare} {lines[place + 1].strip()}" if place + 1 < len(lines) else bare  # a long header is broken over two lines
        long = _QUOTE_HEADER.fullmatch(bare) is None
        if not long or (bare[:3].lower() in ("on ", "am ", "le ", "el ") and _QUOTE_HEADER.fullmatch(two)):
            begin = place + 1 + long
            end = _end_of_quote(lines, begin)
            return "\n".join([*lines[:place], *lines[end:]]).strip()
        if _QUOTE_RULE.fullmatch(bare) or _heads_a_mail(lines, place):
            return "\n".join(lines[:place]).strip()
    return text


def _end_of_quote(lines: list[str], begin: int) -> int:
    """Where the quotation that begins there ends: after its lines with ">", or with the text where it has none."""
    place = begin
    while place < len(lines) and not lines[place].strip():
        place += 1
    if place < len(lines) and not lines[place].lstrip().startswith(">"):
        return len(lines)
    while place < len(lines) and (not lines[place].strip() or lines[place].lstrip().startswith(">")):
        place += 1
    return place


def _heads_a_mail(lines: list[str], place: int) -> bool:
    """Whether three lines of a mail's header stand there, the first with its sender."""
    some = [line.strip() for line in lines[place : place + 4]]
    return bool(some and _FIRST_HEADER.match(some[0])) and sum(_HEADER_LINE.fullmatch(line) is not None for line in some) >= 3


def _without_signature(text: str) -> str:
    lines = text.split("\n")
    for place in range(len(lines) - 1, max(-1, len(lines) - 2 - _SIGNATURE_LINES), -1):
        line, after = lines[place], [own.strip() for own in lines[place + 1 :] if own.strip()]
        if any(len(own) > _SIGNATURE_WIDTH for own in after):
            return text
        if _DELIMITER.fullmatch(line) and after:
            return "\n".join(lines[:place]).strip()
        if _SIGN_OFF.fullmatch(line.strip()) and any(own.strip() for own in lines[:place]) and len(after) <= 5:
            if any(_SENTENCE_END.search(own) or len(own) > 60 for own in after):
                continue
            if after or place == len(lines) - 1:
                return "\n".join(lines[:place]).strip()
    return text
