"""Finding personal data in a text, English and Chinese: what has a form, by its form and checksum; the rest by the words around it.

Where a form alone says little (ten digits), the nearest label decides: "phone" and "电话" speak for it, "order" and "订单号"
against it. Full-width letters and digits are seen as half-width ones; what stands in a link is left to the kinds that look there.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from chattune.dialogs.cleaners._text import words

# In the order in which one goes before another that it overlaps. What stands for each is written in capitals: <EMAIL>.
KINDS = ("account", "email", "id_number", "iban", "card", "phone", "ip", "birth_date", "address", "name")
REGIONS = ("CN", "US", "GB")  # whose national forms of telephone numbers are known by default
_HALF = {
    wide: wide - 0xFEE0 for wide in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B), 0xFF20, 0xFF0B, 0xFF0D)
}
_PLACEHOLDER = re.compile(r"<[A-Z]{2,12}(?:_[A-Z]{2,12})?(?:_\d{1,6}|:[A-Za-z0-9_-]{22,})?>")
_LINK = re.compile(r"(?:https?|ftp)://[^\s<>\"'，。；）】》]+|\bwww\.[^\s<>\"'，。；）】》]+", re.I)
_DIGIT = re.compile(r"\d")
_MANY_DIGITS = re.compile(r"\d(?:[^\w\n]{0,3}\d){6}")


@dataclass(frozen=True, slots=True)
class Found:
    """Something of a kind at ``text[begin:end]``."""

    kind: str
    begin: int
    end: int


Recogniser = Callable[[str], Iterable[tuple[int, int]]]


def find(
    text: str, kinds: Collection[str] = KINDS, regions: Sequence[str] = REGIONS, recogniser: Recogniser | None = None
) -> list[Found]:
    """Personal data of these kinds in `text`, in order and without overlaps.

    `regions`: ISO 3166 codes of countries whose telephone numbers are known without their +…; `recogniser`: finds more names.
    """
    plain = text.translate(_HALF)
    finders: dict[str, Callable[[], Iterable[tuple[int, int]]]] = {
        "account": lambda: _accounts(plain), "email": lambda: _emails(plain), "id_number": lambda: _id_numbers(plain),
        "iban": lambda: _ibans(plain), "card": lambda: _cards(plain), "phone": lambda: _phones(plain, tuple(regions)),
        "ip": lambda: _addresses_of_hosts(plain), "birth_date": lambda: _birth_dates(plain), "address": lambda: _streets(plain),
        "name": lambda: (*_names(plain), *(recogniser(text) if recogniser else ())),
    }  # fmt: skip
    taken, linked = bytearray(len(text)), bytearray(len(text))
    for pattern, mask in ((_PLACEHOLDER, taken), (_LINK, linked)):
        for own in pattern.finditer(plain):
            mask[own.start() : own.end()] = b"\1" * (own.end() - own.start())
    found: list[Found] = []
    for kind in KINDS:
        if kind in kinds:
            in_links = kind in ("account", "email", "ip")
            for begin, end in finders[kind]():
                if begin < end and taken.find(1, begin, end) < 0 and (in_links or linked.find(1, begin, end) < 0):
                    found.append(Found(kind, begin, end))
                    taken[begin:end] = b"\1" * (end - begin)
    return sorted(found, key=lambda one: one.begin)


# ------------------------------------------------------------------------------------------------------------------ labels

# What a number is called. Of several labels before it, the nearest counts.
_LABEL = re.compile(
    r"(?P<other>(?:order|invoice|tracking|reference|ref|ticket|isbn|issn|serial|sku|case|part|model|item|transaction|booking|"
    r"confirmation|flight|zip|postal|batch|lot|build|error|barcode|license|licence|registration|product|bug|issue|port|pid|uid|"
    r"revision|commit|imei|"
    r"timestamp|tax|vat|ean|upc|parcel|shipment|policy|claim|patent|doi|code|pin|id)s?\b[ .]?(?:no|nr|num|number|code|id)?\b"
    r"|订单(?:号码?|编号)?|单号|编号|运单号?|快递单?号?|流水号?|工号|学号|发票号?|货号|条形?码|序列号|型号|验证码|邮编|邮政编码|"
    r"航班|车次|"
    r"股票|代码|群号?|房间|房号|批号|批次|合同号?|专利号?|书号|产品号|设备号|案号|券码|取件码|提货码|兑换码)"
    r"|(?P<card>(?:credit|debit|bank|visa|master|amex|union ?pay)?[ -]?cards?\b(?: (?:no|number))?|visa|mastercard|amex|"
    r"银行卡号?|信用卡号?|"
    r"储蓄卡号?|借记卡号?|卡号|银行账[号户]|账[号户]|帐[号户]|account)"
    r"|(?P<id>身份证(?:号码?)?|证件号码?|公民身份号码|ssn|social security)"
    r"|(?P<phone>(?:tele)?phone|tel\b|mobile|cell|call|ring|text\b|sms|whats ?app|fax|dial|contact|reach|hotline|number|电话|"
    r"手机|热线|座机|"
    r"联系|致电|拨打|打给|打我|号码|短信|传真|客服|微信)"
    r"|(?P<ip>\bip(?:v[46])?\b|host|server|ping|ssh|router|gateway|dns|subnet|address|服务器|主机|地址|网关|路由)"
    r"|(?P<version>\bv(?:er(?:sion)?)?\b|release|upgrad\w*|updat\w*|firmware|kernel|driver|install\w*|section|chapter|clause|"
    r"版本|固件|升级|"
    r"更新|章节|条款|第)",
    re.I,
)
_CLAUSE_END = re.compile(r"[!?;。！？；，,\n]|(?<!\b[Nn]o)(?<!\b[Nn]r)(?<!\btel)\.\s")
_LABEL_REACH = 36


def _label(text: str, begin: int, *kinds: str) -> str:
    """The nearest label in the clause before `begin`; of `kinds`, if such are named."""
    before = text[max(0, begin - _LABEL_REACH) : begin]
    ends = [found.end() for found in _CLAUSE_END.finditer(before)]
    clause = before[ends[-1] :] if ends else before
    if len(clause.strip()) < 3 and len(ends) > 1:  # "phone, 415…": the label stands in the clause before
        clause = before[ends[-2] :]
    called = ""
    for found in _LABEL.finditer(clause):
        if not kinds or found.lastgroup in kinds:
            called = found.lastgroup or ""
    return called


# ------------------------------------------------------------------------------------------------------ e-mail and accounts

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9]"
    r")?\.){1,6}"
    r"(?P<top>[A-Za-z]{2,18})(?![A-Za-z0-9-]|@)"
)
_SPELT_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{1,40}(?:\s?[\[({<]\s?at\s?[\])}>]\s?|\sat\s|\s?#\s?)"
    r"[A-Za-z0-9][A-Za-z0-9-]{1,40}(?:(?:\s?[\[({<]\s?dot\s?[\])}>]\s?|\sdot\s|\.)[A-Za-z0-9-]{1,20}){0,2}"
    r"(?:\s?[\[({<]\s?dot\s?[\])}>]\s?|\sdot\s)(?:com|org|net|edu|gov|cn|de|uk|fr|io|co|info|me)(?![A-Za-z0-9])",
    re.I,
)
# Endings that name a file, and accounts that belong to a service.
_FILES = frozenset("""
    png jpg jpeg gif svg webp ico js ts css json py rb md txt xml html htm php zip gz pdf deb rpm exe dll so
""".split())  # noqa: SIM905 - readable
_RESERVED = frozenset(("localdomain", "local", "localhost", "example", "invalid", "test"))  # RFC 2606 and RFC 6762: nobody's
_SERVICES = frozenset(("git", "svn", "hg", "cvs", "anoncvs", "ssh"))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        for found in _EMAIL.finditer(text):
            local = found[0].partition("@")[0].lower()
            if found["top"].lower() not in _FILES | _RESERVED and local not in _SERVICES:
                yield found.span()
    if " dot " in (lowered := text.lower()) or "dot]" in lowered or "dot)" in lowered:
        yield from (found.span() for found in _SPELT_EMAIL.finditer(text))


_USER_OF_LINK = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}://(?P<value>(?P<user>[^\s/@:<>\"']{1,64})(?::[^\s/@<>\"']{0,128})?)@(?=[A-Za-z0-9.-]+)",
    re.I,
)
_PROFILE = re.compile(
    r"\b(?:(?:facebook|fb|twitter|instagram|vk|weibo)\.com/(?:u/|profile/|@)?|x\.com/|linkedin\.com/in/|t\.me/|tiktok\.com/@|"
    r"snapchat\.com/add/|weixin\.qq\.com/)(?P<value>[A-Za-z0-9_.-]{3,50})(?![A-Za-z0-9_-])",
    re.I,
)
_NO_PROFILE = frozenset(
    words(
        "about ads business careers download events explore games groups hashtag help home i intent jobs legal login "
        "marketplace messages pages photo photos policies privacy search settings share sharer sharer.php signup status story "
        "support terms watch"
    )
)
_LABELLED_ACCOUNT = (
    re.compile(
        r"(?:(?<![A-Za-z0-9_])QQ|企鹅)(?:号码|号|邮箱)?\s?(?:就?是|为|[:：])?\s?(?P<value>[1-9]\d{4,10})(?![\d@A-Za-z.])",
        re.I,
    ),
    re.compile(
        r"(?:微信|威信|(?<![A-Za-z0-9_])(?:wechat|weixin|vx|wx)|\+v)(?:号|\s?id)?\s?(?:就?是|为|is|"
        r"[:：])\s?(?P<value>[A-Za-z][A-Za-z0-9_-]{5,19})(?![A-Za-z0-9@])",
        re.I,
    ),
    re.compile(
        r"\b(?:skype|telegram|instagram|insta|twitter|snapchat|discord|tiktok|kik|msn|icq)(?:\s(?:id|name|handle|username|user|"
        r"account))?"
        r"(?:\s?[:：]\s?@?|\sis\s@|(?<=\sid)\sis\s|(?<=name)\sis\s|(?<=handle)\sis\s)(?P<value>[A-Za-z][\w.]{2,30}[A-Za-z0-9_])"
        r"(?![\w@])",
        re.I,
    ),
    re.compile(
        r"\b(?:insta(?:gram)?|ig|twitter|snap(?:chat)?|telegram|tik "
        r"?tok)\b[^@\n]{0,20}(?<![\w.])@(?P<value>[A-Za-z][\w.]{1,29}\w)(?![\w@])",
        re.I,
    ),
)


def _accounts(text: str) -> Iterator[tuple[int, int]]:
    if "://" in text or "/" in text:
        for found in _USER_OF_LINK.finditer(text):
            if found["user"].lower() not in _SERVICES:
                yield found.span("value")
        for found in _PROFILE.finditer(text):
            if found["value"].lower().rstrip(".") not in _NO_PROFILE:
                yield found.start("value"), found.start("value") + len(found["value"].rstrip(".-"))
    for pattern in _LABELLED_ACCOUNT:
        yield from (found.span("value") for found in pattern.finditer(text))


# ------------------------------------------------------------------------------------------------------ numbers with checksums

_RESIDENT = re.compile(r"(?<![A-Za-z0-9])[1-8]\d{5} ?(?P<born>(?:18|19|20)\d{6}) ?\d{3}[\dXx](?![A-Za-z0-9])")
_OLD_RESIDENT = re.compile(r"(?<![A-Za-z0-9])[1-8]\d{5}(?P<born>\d{6})\d{3}(?![A-Za-z0-9])")
_SOCIAL = re.compile(r"(?<![A-Za-z0-9_-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![A-Za-z0-9_-])")
_PROVINCES = frozenset("""
    11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83
""".split())  # noqa: SIM905 - readable
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def resident_checksum(first: str) -> str:
    """Last character of a Chinese resident number by its first 17 digits: ISO 7064, MOD 11-2 (GB 11643-1999)."""
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(first, _WEIGHTS, strict=True)) % 11]


def _id_numbers(text: str) -> Iterator[tuple[int, int]]:
    if not _MANY_DIGITS.search(text):
        return
    for found in _RESIDENT.finditer(text):
        number = found[0].replace(" ", "").upper()
        sound = number[:2] in _PROVINCES and _is_date(found["born"])
        if sound and (resident_checksum(number[:17]) == number[17] or _label(text, found.start()) == "id"):
            yield found.span()
    for found in _OLD_RESIDENT.finditer(text):
        if found[0][:2] in _PROVINCES and _is_date("19" + found["born"]) and _label(text, found.start()) == "id":
            yield found.span()
    for found in _SOCIAL.finditer(text):
        if _label(text, found.start()) in ("", "id"):
            yield found.span()


def _is_date(digits: str) -> bool:
    try:
        return datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) <= datetime.date(2100, 1, 1)
    except ValueError:
        return False


_CARD = re.compile(r"(?<![A-Za-z0-9_.-])\d(?:[ -]?\d){12,18}(?![A-Za-z0-9_-]|\.\d)")
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|"
    r"[68]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
)
_GROUPED = re.compile(r"\d+|(?:\d{4}[ -]){3}\d{1,4}|(?:\d{4}[ -]){4}\d{1,3}|\d{4}[ -]\d{6}[ -]\d{4,5}|\d{6}[ -]\d{10,13}")


def luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of ISO/IEC 7812-1, annex B."""
    doubled = (sum(divmod(2 * int(digit), 10)) if place % 2 else int(digit) for place, digit in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if not _MANY_DIGITS.search(text):
        return
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if not luhn(digits) or not _GROUPED.fullmatch(found[0]) or len(set(digits)) < 2:
            continue
        called = _label(text, found.start())
        if _COUNTED.match(text, found.end()):
            continue
        if called == "card" or (called not in ("other", "phone") and _ISSUERS.fullmatch(digits)):
            yield found.span()


# Lengths by country: the IBAN registry of SWIFT, release 99.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
        26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE",
        31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split(" ")
}  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?:[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,29}|[a-z]{2}\d{2}(?:[ -]?[a-z0-9]){11,29})")


def iban_checksum(compact: str) -> bool:
    """Whether ISO 13616's remainder by 97 (ISO 7064, MOD 97-10) is 1."""
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    if not _DIGIT.search(text):
        return
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2].upper(), 99)
        written = [place for place, character in enumerate(found[0]) if character.isalnum()]
        if len(written) < length:
            continue
        end = found.start() + written[length - 1] + 1
        compact = re.sub(r"[ -]", "", text[found.start() : end]).upper()
        if iban_checksum(compact) and not text[end : end + 1].isalnum():
            yield found.start(), end


# ------------------------------------------------------------------------------------------------------------------ telephone

_CALLABLE = re.compile(
    r"(?<![A-Za-z0-9_.+*#/=&-])\(?(?:\+|00)?\(?\d(?:[ \t().\u2010-\u2014/-]{0,3}\d){6,40}(?![A-Za-z0-9_]|\.\d)"
)
# A count of things, and no number that one calls or pays with.
_COUNTED = re.compile(
    r"\s?(?:个|字|行|条|次|元|块|件|人|份|bytes?\b|rows?\b|lines?\b|files?\b|items?\b|times\b|records?\b)",
    re.I,
)
_LOCAL = re.compile(r"(?<![A-Za-z0-9_.+*#/-])(?<!\d )(?:[2-8]\d{6,7}|[2-9]\d{2,3}[ -]\d{4})(?![A-Za-z0-9_-]|\.\d| \d)")
_HOTLINE = re.compile(r"[48]00-\d{3}-?\d{4}|[48]00-\d{4}-?\d{3}")
_FORMATTED = re.compile(r"\d[ ().\u2010-\u2014/-]+\d")
_DATE = re.compile(r"(?:19|20)\d{2}[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:0?[1-9]|[12]\d|3[01])(?!\d)")


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    if not _MANY_DIGITS.search(text):
        return
    for stretch in _CALLABLE.finditer(text):
        if not _DATE.search(stretch[0]):
            yield from _phones_of(text, stretch, regions)
    for found in _LOCAL.finditer(text):
        if _label(text, found.start()) == "phone":
            yield found.span()


def _phones_of(text: str, stretch: re.Match[str], regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    import phonenumbers

    for region in regions:
        for match in phonenumbers.PhoneNumberMatcher(stretch[0], region, leniency=phonenumbers.Leniency.VALID):
            begin = stretch.start() + match.start
            end = stretch.start() + match.end
            if _is_called(text, begin, match, region) and not _COUNTED.match(text, end):
                yield begin, end


def _is_called(text: str, begin: int, match: Any, region: str) -> bool:
    """Whether a valid number is one for the telephone: by its label, or by a form that other numbers seldom have."""
    import phonenumbers

    raw, number = match.raw_string, match.number
    called = _label(text, begin)
    if called in ("other", "card", "id", "version"):
        return False
    if raw.isdigit() and text[max(0, begin - 3) : begin].rstrip(" ").endswith(("#", "№", "$", "￥", "¥")):
        return False
    if called == "phone" or raw.startswith(("+", "(+", "00")):
        return True
    digits = re.sub(r"\D", "", raw)
    if number.country_code == 86:
        kind = phonenumbers.number_type(number)
        if kind == phonenumbers.PhoneNumberType.MOBILE:
            return re.fullmatch(r"(?:86[ -]?)?1\d{2}([ -]?)\d{4}\1\d{4}", raw) is not None
        area = re.fullmatch(r"\(?0\d{2,3}\)?[ -]?\d{7,8}(?:-\d{1,5})?", raw) is not None and not raw.isdigit()
        return area or _HOTLINE.fullmatch(raw) is not None
    if len(digits) < 10 or not _FORMATTED.search(raw):
        return False
    groups = phonenumbers.PhoneNumberMatcher(raw, region, leniency=phonenumbers.Leniency.STRICT_GROUPING)
    return any(one.raw_string == raw for one in groups)


# ------------------------------------------------------------------------------------------------------------------ hosts

_V4 = re.compile(r"(?<![A-Za-z0-9_.])(?<![A-Za-z]-)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_-]|\.\d)")
_V6 = re.compile(r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?![A-Za-z0-9_:])")


def _addresses_of_hosts(text: str) -> Iterator[tuple[int, int]]:
    if text.count(".") >= 3:
        for found in _V4.finditer(text):
            if _is_host(text, found):
                yield found.span()
    if text.count(":") >= 2:
        for found in _V6.finditer(text):
            groups = [group for group in found[0].split(":") if group]
            if len(groups) >= 3 and _DIGIT.search(found[0]) and sum(map(len, groups)) >= 6:
                try:
                    ipaddress.IPv6Address(found[0])
                except ValueError:
                    continue
                yield found.span()


def _is_host(text: str, found: re.Match[str]) -> bool:
    parts = found[0].split(".")
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return False
    address = ipaddress.IPv4Address(found[0])
    if address.is_loopback or address.is_unspecified or address.is_multicast or parts[0] in ("0", "255"):
        return False  # says nothing of anybody: this machine, any machine, a mask
    called = _label(text, found.start(), "ip", "version")
    if called == "version" or (text[: found.start()].endswith("/") and "://" not in text[: found.start()]):
        return False
    return called == "ip" or max(map(int, parts)) > 30 or found[0] in ("1.1.1.1", "8.8.8.8", "8.8.4.4", "10.0.0.1", "10.0.0.2")


# ------------------------------------------------------------------------------------------------------------------ birth dates

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_WRITTEN_DATE = (
    rf"(?:(?:19|20)\d{{2}}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}|{_DAY}[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:(?:19|20)\d{{2}}|\d{{2}})"
    rf"|{_MONTH}\.? {_DAY}(?:st|nd|rd|th)?(?:,? (?:of )?(?:19|20)\d{{2}})?|(?:the )?{_DAY}(?:st|nd|rd|th)?(?: of)? "
    rf"{_MONTH}\.?(?:,? (?:19|20)\d{{2}})?"
    rf"|(?:(?:19|20)?\d{{2}}|[一二三四五六七八九〇零]{{2,4}}) ?年 ?\d{{1,2}} ?月(?: ?\d{{1,2}} ?[日号])?"
    rf"|(?:19|20)\d{{6}}|(?:\d{{1,2}}|[一二三四五六七八九十]{{1,2}}) ?月 ?(?:\d{{1,2}}|[一二三四五六七八九十]{{1,3}}) ?[日号])"
    rf"(?!\d)"
)
_BORN = re.compile(
    rf"(?:\b(?:born(?: on)?|birth ?day|date of birth|birth ?date|d\.?o\.?b\.?)(?: (?:is|was|on|=))?(?: "
    rf"on)?\s?[:：]?\s?(?P<one>{_WRITTEN_DATE})"
    rf"|(?:生日|出生日期|出生年月日?|出生时间|出生于|生于|出生)(?:就?是|为|在|[:：])?\s?(?P<two>{_WRITTEN_DATE})|"
    rf"(?P<three>{_WRITTEN_DATE})(?:出生|生日|生的|生人))",
    re.I,
)


def _birth_dates(text: str) -> Iterator[tuple[int, int]]:
    if not re.search(r"\d|月", text):
        return
    for found in _BORN.finditer(text):
        yield found.span(found.lastgroup or 0)


# ------------------------------------------------------------------------------------------------------------------ addresses

_UNIT = r"(?:,? ?(?:apartment|apt|suite|ste|unit|flat|floor|fl|room|rm|#)\.? ?#?[A-Za-z]?\d{1,5}[A-Za-z]?)?"
_TOWN = (
    r"(?:,? (?-i:[A-Z][a-z][A-Za-z.'-]{0,20}(?: [A-Z][a-z][A-Za-z.'-]{0,20}){0,2}))?(?:,? (?-i:[A-Z]{2}),? \d{5}(?:-\d{4})?|,? "
    r"(?-i:[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}))?"
)
_STREET_WORD = r"(?:street|avenue|boulevard|road|lane|parkway|highway)"  # in small letters, too: the others are usual words
_STREET_SHORT = (
    r"(?:St|Ave|Blvd|Rd|Ln|Dr|Ct|Pl|Sq|Ter|Pkwy|Hwy|Cres|Way|Street|Avenue|Row|Walk|Gardens|Grove|Drive|Court|Place|Square|"
    r"Terrace|Crescent|"
    r"Close)"
)
_NO_STREET = (
    r"(?!(?:minutes?|mins?|hours?|miles?|km|meters?|blocks?|years?|days?|weeks?|months?|people|times|percent|more|other|of|the|a|"
    r"an|in|on|and|or|to|"
    r"for|by|at|is|was|with|cars?|games?|points?|dollars?|way|down|up|from|rpm|mph|gb|mb|kb|kbps|fps|am|pm)\b|[a-z]+['’])"
)
_ENGLISH_STREET = re.compile(
    rf"(?<![\w.$€£-])\d{{1,5}}[A-Za-z]?(?:-\d{{1,4}})?,? (?:[NSEW]\.? |(?:north|south|east|west) )?"
    rf"(?:(?:{_NO_STREET}[A-Za-z][A-Za-z.'-]{{1,20}}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}{_STREET_WORD}\b(?! (?:test|view|map|food|"
    rf"smart|fighter|trip|runner))"
    rf"{_UNIT}{_TOWN}",
    re.I,
)
_SHORT_STREET = re.compile(
    rf"(?<![\w.$€£-])\d{{1,5}}[A-Za-z]?(?:-\d{{1,4}})? (?:[NSEW]\.? |North |South |East |West )?"
    rf"(?:(?:(?!The\b)[A-Z][A-Za-z'-]{{1,20}}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}{_STREET_SHORT}\b\.?(?i:{_UNIT})"
    + _TOWN.replace("(?-i:", "(?:")
)
_POST_BOX = re.compile(r"\bP\.? ?O\.? ?Box \d{1,6}" + _TOWN, re.I)
_PROVINCE = (
    "(?:北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|"
    "陕西|甘肃|青海|台湾|"
    "内蒙古|广西|西藏|宁夏|新疆|香港|澳门)(?:省|市|(?:壮族|回族|维吾尔)?自治区|特别行政区)?"
)
_HAN = "[\u4e00-\u9fff]"
_NUMBER = r"[甲乙丙丁]?\d{1,5}(?:[-－]\d{1,4})?"
_HOUSE = (
    r"(?:\s?[A-Za-z]?\d{1,4}(?:号楼|号院|栋|幢|座|单元|层|楼|门|室|户|"
    r"号)){0,6}(?:(?<=[楼栋幢座元层])\s?[A-Za-z]?\d{2,5}(?!\d))?"
)
_DISTRICT = rf"{_HAN}{{1,7}}?(?<![小市地社园景学校厂])(?:区|县|旗|市|镇|乡)\s?"
_ESTATE = "(?:小区|花园|家园|公寓|大厦|新村|苑|城|院)"
# After a district nearly anything may stand before the number of a house; without one, a street or an estate must.
_CHINESE_STREET = re.compile(
    rf"(?:{_PROVINCE}\s?(?:{_DISTRICT}){{0,3}}|(?:{_DISTRICT}){{1,4}})(?:(?!月)[\u4e00-\u9fffA-Za-z0-9]){{1,24}}?{_NUMBER}"
    rf"(?:号院|号楼|号(?![线机台码选])|弄|栋|幢|座(?!位)){_HOUSE}"
    rf"|{_HAN}{{1,8}}?(?:大道|大街|路|街|巷|胡同|弄|(?<![这那哪])里|道)(?:[东南西北中]段?|[一二三四五六七八九十]段)?\s?{_NUMBER}"
    rf"(?:号[院楼]?(?![线机台码选])|弄)(?:[\u4e00-\u9fffA-Za-z0-9]{{1,12}}?{_ESTATE})?{_HOUSE}"
    rf"|{_HAN}{{2,10}}?(?:小区|花园|家园|公寓|大厦|新村|苑|城)(?=\s?[A-Za-z]?\d{{1,4}}(?:号楼|栋|幢|座|单元)){_HOUSE}"
)
_LEAD_IN = re.compile(
    r"^[\u4e00-\u9fff]{0,8}?(?:地址(?:就?是|为|在)?|住址(?:是|为)?|住在了?|家住|寄[到往给]|送[到往]|发[到往]|位于|坐落[在于]|"
    r"搬[到去]了?|家在|来到|就在|人在|住|在|到|是)"
    r"(?=[\u4e00-\u9fff]{3})"
)
_NUMBERED_LINE = re.compile(r"\d{1,3}路")


def _streets(text: str) -> Iterator[tuple[int, int]]:
    if not _DIGIT.search(text):
        return
    for pattern in (_ENGLISH_STREET, _SHORT_STREET, _POST_BOX):
        yield from (found.span() for found in pattern.finditer(text))
    if re.search("[号栋幢座弄]", text):
        for found in _CHINESE_STREET.finditer(text):
            lead = _LEAD_IN.match(found[0])
            yield found.start() + (lead.end() if lead else 0), found.start() + len(found[0].rstrip())


# ------------------------------------------------------------------------------------------------------------------ names

_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林郑谢罗梁宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖"
    "贾夏韦付方"
    "白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤温康施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰"
    "焦俞左柳甘祝包"
    "宁尚符舒阮柯纪梅童凌毕单季裴霍涂成苗谷盛曲翁冉骆蓝路游辛靳管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车项连芦麦褚娄"
    "窦戚岑景党宫"
    "费卜冷晏席卫米柏宗瞿桂全佟应臧闵苟邬边卞姬师和仇栾隋商刁沙荣巫寇桑郎甄丛仲虞敖巩明佘池查麻苑迟邝"
)
_COMPOUND = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|司徒|夏侯|端木|南宫|轩辕"
_CHINESE_NAME = rf"(?:(?:{_COMPOUND})[\u4e00-\u9fff]{{1,2}}|[{_SURNAMES}][\u4e00-\u9fff]{{1,2}}|[小阿][\u4e00-\u9fff])"
_END_OF_NAME = (
    r"(?=[，。！？、；,.!?;~～…\s）)（(]|$|今年|来自|是[一个你您]|是\w{2,6}的|住|今天|想|的[，。]?$|，|女|男|您?可以|你可以|"
    r"请问)"
)
_INTRODUCED_CHINESE = re.compile(
    rf"(?:(?:我|俺|本人)(?:的?(?:名字|姓名|全名)(?:就?是|叫做?)|的?名叫|叫做?|姓名是?)|(?:姓名|联系人|名字)(?:是|叫|[:：])\s?|"
    rf"收[件货]人(?:是|叫|[:：])?\s?)"
    rf"(?P<value>{_CHINESE_NAME}){_END_OF_NAME}"
)
_NOT_CALLED = re.compile(
    r".*[的了是我你他她在不这那有就也都]|熊猫|车去?|车来?|了|过|不|小[时心伙声]|阿姨|高兴|时间|万一|方[便法]|安[静全]|文[字明]|"
    r"明[天白]|和[你他她]|成[了功]|白天|向[你他]|麻烦|连[你他]|全[部家]|应该"
)
_TITLED_CHINESE = re.compile(
    rf"(?:(?<![\u4e00-\u9fff])|(?<=[是的给告找问请让和跟与对叫到向见的]))(?P<value>(?:(?:{_COMPOUND})|"
    rf"[{_SURNAMES}])[\u4e00-\u9fff]{{0,2}}?)(?=(?:先生|女士|小姐|总监|医生|律师|教授)(?!们))"
)
_NAME_WORD = (
    r"(?-i:(?!I['’]|(?:The|And|But|What|How|Nice|By|So|It|You|My|We|He|She|Is|Not|In|To|From|Please|Can|"
    r"Could)\b)[A-Z](?:[A-Za-z-]|['’](?!s\b)){1,20})"
)
_FULL_NAME = rf"{_NAME_WORD}(?: (?:(?-i:[A-Z]\.)|{_NAME_WORD}|(?:van|von|de|da|bin|al|el) {_NAME_WORD})){{0,3}}"
_INTRODUCED = re.compile(
    rf"\b(?:my (?:(?:full|real|first|last|own) )?name(?: is|['’]s) (?P<lower>(?-i:[a-z][a-z'’-]{{1,15}}))(?=[\s,.!?;:)]|$)"
    rf"|(?:(?:my|the) (?:(?:full|real|first|last|own) )?name(?: is|['’]s|s)|i(?: am|['’]m) called|(?:(?:full|first|last) ?|"
    rf"sur)?name\s?[:：])\s+"
    rf"(?P<value>{_FULL_NAME}))",
    re.I,
)
_SPEAKING = re.compile(
    rf"\b(?:[Tt]his is|[Ii](?: am|['’]m)) (?P<value>{_FULL_NAME})(?=,? (?:speaking|calling|from (?:the )?[A-Z]|here\b))"
)
_TITLED = re.compile(rf"\b(?:(?:Mr|Mrs|Ms|Mx|Dr|Prof)\.?|Miss|Professor) (?P<value>{_FULL_NAME})(?![\w-])")
_NO_NAME = frozenset(
    words(
        "not a an the on in at also still very just so too what that this it to my your his her their our no and or but for "
        "with from of well really gone here there same long short pretty weird cool nice hard difficult easy secret unknown "
        "required taken already spelled spelt pronounced written bot is was something someone nobody irrelevant unimportant "
        "important dumb ugly beautiful common rare funny like none null user username test name i you he she we they invalid "
        "missing empty string unique only kinda actually literally basically gonna are all being always never off"
    )
)
# Titled names that are characters, shows, brands and figures of speech before they are anybody's.
_NOBODY = frozenset(
    words(
        "strange who pepper doom seuss suess evil narrator dre bean right wrong universe robot house fox incredible "
        "brightside potato muffet stark oz phil spock freeze krabs darcy hyde jekyll clean popper doolittle horrible holmes "
        "watson frankenstein president chairman speaker america marple moneypenny piggy doubtfire rogers burns magoo big bond "
        "wonka money perfect nobody know-it-all world trunchbull manhattan octopus zhivago strangelove"
    )
)


def _names(text: str) -> Iterator[tuple[int, int]]:
    for found in _INTRODUCED.finditer(text):
        group = found.lastgroup or "value"
        word = found[group].split(" ")[0].lower().strip("'’")
        if word not in _NO_NAME and not (group == "lower" and word.endswith("ing")):
            yield found.span(group)
    yield from (found.span("value") for found in _SPEAKING.finditer(text))
    yield from (found.span("value") for found in _TITLED.finditer(text) if found["value"].split(" ")[0].lower() not in _NOBODY)
    if not text.isascii():
        for pattern in (_INTRODUCED_CHINESE, _TITLED_CHINESE):
            yield from (found.span("value") for found in pattern.finditer(text) if not _NOT_CALLED.match(found["value"]))


@cache
def presidio(pipeline: str) -> Recogniser:
    """Names by Presidio with a spaCy pipeline (a package or a folder) that the user has: spans of PERSON.

    Nothing is fetched: where the packages or the pipeline are missing, a `SettingError` says how to get them.
    """
    from chattune.core.errors import SettingError

    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the package {error.name} is not installed.", path="personal_data.recogniser", value=pipeline,
            rule="presidio-analyzer and a spaCy pipeline", hint="Run `pip install 'chattune[pii-ner]'`.",
        ) from None
    try:
        loaded = spacy.load(pipeline)
    except OSError:
        raise SettingError(
            f"'{pipeline}' is no spaCy pipeline that is installed here.", path="personal_data.recogniser", value=pipeline,
            rule="the package or the folder of a spaCy pipeline that finds people", hint="Install one, such as en_core_web_sm.",
        ) from None
    language = loaded.lang
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": pipeline}])
    engine.nlp = {language: loaded}
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[language])

    def people(text: str) -> list[tuple[int, int]]:
        found = analyzer.analyze(text, language=language, entities=["PERSON"], score_threshold=0.5)
        return [(one.start, one.end) for one in sorted(found, key=lambda one: (-one.score, one.start))]

    return people
