"""Finding credentials in a text: keys of known providers by their prefixes, tokens, private keys, passwords.

Where a prefix alone says little, the value must look drawn by a machine: enough characters, letters with digits, enough entropy.
A commit hash, a UUID or a checksum is none unless it is called a key.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from chattune.dialogs.personal import Found

KINDS = ("private_key", "api_key", "token", "password")

# Formats as their makers document them, in this order: GitHub, GitLab, Slack, Stripe, Google, OpenAI and OpenRouter, Anthropic,
# Hugging Face, npm, PyPI, SendGrid, Twilio, Telegram, DigitalOcean, Shopify, Alibaba Cloud, Tencent Cloud, AWS, Mailgun, Square,
# Azure, Discord, Atlassian, Databricks, Doppler, Linear, Notion, Grafana, Groq, xAI, Replicate, Dropbox, Zhipu.
_PROVIDERS = (
    r"gh[pousr]_[A-Za-z0-9]{36,255}", r"github_pat_[A-Za-z0-9_]{60,120}", r"gl(?:pat|oas|rt|cbt|ptt)-[A-Za-z0-9_-]{20,64}",
    r"xox[abeoprs]-(?:[A-Za-z0-9]{1,40}-){0,5}[A-Za-z0-9-]{10,80}", r"xapp-\d-[A-Z0-9]{8,16}-\d{8,16}-[a-f0-9]{32,80}",
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,128}", r"whsec_[A-Za-z0-9+/=]{24,80}", r"AIza[A-Za-z0-9_-]{35}",
    r"GOCSPX-[A-Za-z0-9_-]{28}", r"ya29\.[A-Za-z0-9_-]{30,300}",
    r"sk-(?:proj|svcacct|admin|or-v1|ant-(?:api|admin)\d\d)-[A-Za-z0-9_-]{20,200}", r"sk-[A-Za-z0-9]{32,64}",
    r"hf_[A-Za-z0-9]{30,40}", r"npm_[A-Za-z0-9]{36}", r"pypi-AgE[A-Za-z0-9_-]{50,250}",
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}", r"(?:SK|AC)[0-9a-f]{32}", r"\d{8,10}:AA[A-Za-z0-9_-]{32,36}",
    r"do[por]_v1_[a-f0-9]{64}", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", r"LTAI[A-Za-z0-9]{12,26}", r"AKID[A-Za-z0-9]{32}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}", r"key-[a-f0-9]{32}", r"(?:EAAA|sq0(?:atp|csp)-)[A-Za-z0-9_-]{22,64}",
    r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,90}={0,2}",
    r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}", r"ATATT3[A-Za-z0-9_=-]{100,250}",
    r"dapi[a-f0-9]{32}(?:-\d)?", r"dp\.(?:pt|st|ct)\.[A-Za-z0-9._-]{40,60}", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,64}",
    r"ntn_[A-Za-z0-9]{40,50}", r"gl(?:sa|c)_[A-Za-z0-9_+/=]{32,200}", r"gsk_[A-Za-z0-9]{40,60}", r"xai-[A-Za-z0-9]{60,90}",
    r"r8_[A-Za-z0-9]{37}", r"sl\.[A-Za-z0-9_-]{100,200}", r"[a-f0-9]{32}\.[A-Za-z0-9]{16}",
)  # fmt: skip
_KEY = re.compile(r"(?<![A-Za-z0-9_/+.-])(?:" + "|".join(_PROVIDERS) + r")(?![A-Za-z0-9_])")
_HOOK = re.compile(
    r"https://(?:hooks\.slack\.com/(?:services|workflows)/(?P<slack>[A-Za-z0-9_/-]{20,120})"
    r"|(?:[a-z]{1,8}\.)?discord(?:app)?\.com/api/webhooks/(?P<discord>\d{15,22}/[A-Za-z0-9_-]{50,90})"
    r"|(?:oapi\.dingtalk\.com/robot/send\?access_token|"
    r"qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key)=(?P<robot>[A-Za-z0-9-]{30,80}))"
)
_PRIVATE = re.compile(
    r"-----BEGIN (?P<what>[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----[\s\S]{0,20000}?"
    r"(?:-----END (?P=what)-----|(?=-----BEGIN |\n\s?\n[^\nA-Za-z0-9+/=:-])|\Z)"
    r"|PuTTY-User-Key-File-\d:[\s\S]{0,20000}?Private-MAC: [a-f0-9]{32,64}|AGE-SECRET-KEY-1[A-Z0-9]{50,60}"
)
_JWT = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<head>eyJ[A-Za-z0-9_-]{8,2000})\.[A-Za-z0-9_-]{2,8000}\.[A-Za-z0-9_-]{0,2000}(?![A-Za-z0-9_-])"
)
_BEARER = re.compile(
    r"\b(?:bearer\s{1,3}(?P<bearer>[A-Za-z0-9._~+/-]{16,4000}={0,2})|authorization\s?[:=]\s?[\"']?(?:basic|token|apikey|"
    r"digest)\s{1,3}"
    r"(?P<basic>[A-Za-z0-9._~+/-]{8,4000}={0,2}))",
    re.I,
)
_PASSWORD_OF_LINK = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:<>\"'?]{0,64}:(?P<value>[^\s/@<>\"']{1,128})@(?=[A-Za-z0-9.\[-])",
    re.I,
)
_LABELS = (
    r"pass ?word|passwd|passphrase|pass ?code|pwd|(?:db|root|admin|user|login|wifi|sudo|my)[_ -]?pass"
    r"|(?:secret|api|access|private|auth|client|consumer|encryption|signing|account|app)[_ -]?(?:secret|key|token)(?:[_ -]?(?:id|"
    r"key))?"
    r"|secret|token"
)
_LABELLED = re.compile(
    rf"(?P<label>(?<![A-Za-z])(?:[A-Za-z0-9]{{1,20}}[_-]){{0,3}}(?:{_LABELS})|密码|口令|密碼|密钥|"
    rf"令牌)[\"'\]]{{0,2}}(?:\s?(?P<sign>=>?|[:：])\s?|\s(?P<word>is now|is|was)\s|"
    r"\s?(?P<zhword>改?成?就?是|改成|改为|为)\s?[:：]?\s?)(?P<quote>[\"'`]?)(?P<value>[^\s\"'`<>;，。；！？、（）]{4,256})",
    re.I,
)
_COMMAND = re.compile(
    r"\b(?:curl|wget|mysql|sshpass|htpasswd|smbclient)\b[^\n|]{0,200}?\s(?:-u\s?[^\s:]{1,64}:|--password[= ])"
    r"(?P<value>[^\s\"']{2,128})"
)
_PLACEHOLDER = re.compile(
    r"[*•xX.#_-]{3,}|(?:your|my|the|some|an?|new|old|example|sample|dummy|fake|this|that|test)(?:[_ -]\w*)?|please|thanks|sorry|"
    r"help|null|none|nil|true|false|undefined|required|"
    r"incorrect|invalid|wrong|changed?|changeme|expired|reset|missing|empty|optional|protected|correct|unknown|forgotten|"
    r"redacted|hidden|"
    r"str(?:ing)?|int|bytes|\$\{?\w+\}?|%\(?\w+\)?s?|\{\{?[\w. ]*\}?\}?|<\w*>?|\[\w*\]?|os\.\w+.*|process\.env.*|getenv.*|"
    r"env\(.*|\w+\(.*|\w+\.\w+(?:\.\w+)*\(?",
    re.I,
)


def find(text: str, kinds: tuple[str, ...] = KINDS) -> list[Found]:
    """Credentials of these kinds in `text`, in order and without overlaps."""
    finders: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
        "private_key": _private_keys, "api_key": _keys, "token": _tokens, "password": _passwords,
    }  # fmt: skip
    taken = bytearray(len(text))
    found: list[Found] = []
    for kind in KINDS:
        if kind in kinds:
            for begin, end in finders[kind](text):
                if begin < end and taken.find(1, begin, end) < 0:
                    found.append(Found(kind, begin, end))
                    taken[begin:end] = b"\1" * (end - begin)
    return sorted(found, key=lambda one: one.begin)


def entropy(value: str) -> float:
    """Bits a character, by how often each stands in `value`."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    if "PRIVATE KEY" in text or "PuTTY-User-Key" in text or "AGE-SECRET-KEY" in text:
        yield from (found.span() for found in _PRIVATE.finditer(text))


def _keys(text: str) -> Iterator[tuple[int, int]]:
    for found in _KEY.finditer(text):
        if len(found[0]) >= 16 and entropy(found[0]) >= 2.8 and re.search(r"\d", found[0]):
            yield found.span()
    if "https://" in text:
        for found in _HOOK.finditer(text):
            yield found.span(found.lastgroup or 0)
    for found in _LABELLED.finditer(text):
        if re.search("key|secret|token|密钥|令牌", found["label"], re.I) and _drawn(found["value"]):
            yield found.start("value"), found.start("value") + len(_trimmed(found))


def _tokens(text: str) -> Iterator[tuple[int, int]]:
    if "eyJ" in text:
        for found in _JWT.finditer(text):
            if _is_header(found["head"]):
                yield found.span()
    for found in _BEARER.finditer(text):
        group = found.lastgroup or "bearer"
        if group == "basic" or re.search(r"\d", found[group]):
            yield found.span(group)


def _is_header(part: str) -> bool:
    """Whether it is the first part of a JSON Web Token: an object that names an algorithm (RFC 7519)."""
    try:
        head = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return False
    return isinstance(head, dict) and ("alg" in head or "enc" in head)


def _passwords(text: str) -> Iterator[tuple[int, int]]:
    if "://" in text:
        for found in _PASSWORD_OF_LINK.finditer(text):
            if not _PLACEHOLDER.fullmatch(found["value"]) and not found["value"].isdigit():
                yield found.span("value")
    for found in _COMMAND.finditer(text):
        if not _PLACEHOLDER.fullmatch(found["value"]):
            yield found.span("value")
    for found in _LABELLED.finditer(text):
        if not re.search(r"key|token|secret|密钥|令牌", found["label"], re.I):
            value = _trimmed(found)
            if _is_password(value, found, text):
                yield found.start("value"), found.start("value") + len(value)


def _trimmed(found: re.Match[str]) -> str:
    """The value without marks that end a sentence; between quotation marks it stands as it is."""
    return found["value"] if found["quote"] else found["value"].rstrip(".,;:)]}")


def _drawn(value: str) -> bool:
    """Whether a value looks drawn by a machine."""
    value = value.rstrip(".,;:!?)]}")
    several = sum(bool(re.search(kind, value)) for kind in ("[a-z]", "[A-Z]", r"\d", "[^A-Za-z0-9]"))
    if len(value) < 16 or not value.isascii() or several < 2 or not re.search(r"\d", value):
        return False
    return entropy(value) >= 3.0 and not _PLACEHOLDER.fullmatch(value)


def _is_password(value: str, found: re.Match[str], text: str) -> bool:
    """Whether what follows the word is a password, and no sentence about one."""
    if not 4 <= len(value) <= 128 or not value.isascii() or _PLACEHOLDER.fullmatch(value):
        return False
    odd = re.search(r"\d|[^A-Za-z'’.,/-]|[a-z][A-Z]", value) is not None
    ends = text[found.start("value") + len(value) :].lstrip(" .,;!?\"'`)，。").split("\n", 1)[0]
    if found["sign"] or found["quote"]:
        return odd or (not ends and len(value) >= 6)
    return odd and len(value) >= 5
