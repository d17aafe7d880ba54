"""What stands in place of text that is taken out: its type, a number for each value, or the value encrypted with the user's key.

    <EMAIL>                 typed
    <EMAIL_2>               numbered: within a dialog, equal values have equal numbers
    <EMAIL:9Jx…>            encrypted: equal values give equal texts in all dialogs, and `reveal` gives the value back

Encrypted is by AES-SIV (RFC 5297), which is deterministic and says when a key is wrong; the type is authenticated with the value,
and the bytes stand as base64url without padding. None of these forms holds ``<|``: they are plain text for every tokenizer of ours.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from chattune.core.errors import DataError, SettingError

Mode = Literal["typed", "numbered", "encrypted"]
KEY_SIZES = (32, 48, 64)  # bytes: AES-128, -192 and -256 in SIV
_NUMBERED = re.compile(r"<([A-Z]+(?:_[A-Z]+)?)_(\d{1,6})>")
_ENCRYPTED = re.compile(r"<(?P<type>[A-Z]+(?:_[A-Z]+)?):(?P<value>[A-Za-z0-9_-]{22,})>")


class Mask:
    """What replaces the values of one dialog. `key`: bytes, for ``encrypted`` only."""

    def __init__(self, mode: Mode, key: bytes | None = None, texts: Iterable[str] = ()) -> None:
        """`texts`: of the dialog, for numbers that are in use already."""
        self._mode, self._key = mode, key
        self._numbers: dict[tuple[str, str], int] = {}
        self._last: dict[str, int] = {}
        if mode == "numbered":
            for text in texts:
                for name, number in _NUMBERED.findall(text):
                    self._last[name] = max(self._last.get(name, 0), int(number))

    def __call__(self, kind: str, value: str) -> str:
        """In place of a value of that kind (``email``)."""
        name = kind.upper()
        if self._mode == "typed":
            return f"<{name}>"
        if self._mode == "numbered":
            own = (name, re.sub(r"[\s().-]", "", value).casefold())
            if own not in self._numbers:
                self._numbers[own] = self._last[name] = self._last.get(name, 0) + 1
            return f"<{name}_{self._numbers[own]}>"
        sealed = _cipher(self._key or b"").encrypt(value.encode(), [name.encode()])
        return f"<{name}:{base64.urlsafe_b64encode(sealed).decode().rstrip('=')}>"


def replaced(text: str, found: Iterable[tuple[str, int, int]], mask: Callable[[str, str], str]) -> str:
    """`text` with each ``(kind, begin, end)`` replaced by what `mask` gives for it; in order, without overlaps."""
    pieces, last = [], 0
    for kind, begin, end in found:
        pieces += [text[last:begin], mask(kind, text[begin:end])]
        last = end
    return "".join([*pieces, text[last:]])


def reveal(text: str, key: bytes | str) -> str:
    """`text` with every encrypted value put back. `key`: bytes, or its hexadecimal digits.

    A value that was encrypted with another key, or was changed, is a `DataError`; nothing is given back then.
    """
    from cryptography.exceptions import InvalidTag

    cipher = _cipher(parsed_key(key, "key") if isinstance(key, str) else key)

    def value_of(found: re.Match[str]) -> str:
        coded = found["value"]
        try:
            sealed = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
            return str(cipher.decrypt(sealed, [found["type"].encode()]).decode())
        except (InvalidTag, binascii.Error, ValueError):
            raise DataError(
                "is not revealed by this key.", path=f"character {found.start() + 1}", value=found["type"],
                rule="the key with which it was encrypted, and the text unchanged", hint="Is this the key of another run?",
            ) from None

    return _ENCRYPTED.sub(value_of, text)


def new_key() -> str:
    """A fresh key: 128 hexadecimal digits, for a file of yours or an environment variable."""
    return secrets.token_hex(64)


def read_key(file: str | None, variable: str | None) -> bytes:
    """The key of a file, or of the environment variable of that name. No message of ours shows it."""
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            told = f"holds no key that can be read: {reason}."
            raise DataError(told, path=file, rule="a file with the key", hint=_HOW) from None
        return parsed_key(text, file)
    text = os.environ.get(variable or "", "")
    if not text:
        raise SettingError(
            f"the environment has no variable {variable} with the key.", path="personal_data.key_variable", value=variable,
            rule="a variable that holds the key", hint=_HOW,
        )
    return parsed_key(text, f"${variable}")


_HOW = "Make one with `openssl rand -hex 64`, and keep it where only you can read it."


def parsed_key(text: str, place: str) -> bytes:
    """The bytes of a key in hexadecimal digits."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) not in KEY_SIZES:
        raise DataError(
            "is no key.", path=place, value=f"{len(text.strip())} characters", hint=_HOW,
            rule=f"{', '.join(str(2 * size) for size in KEY_SIZES)} hexadecimal digits",
        )
    return key


def key_check(key: bytes) -> str:
    """Sixteen digits that tell one key from another and say nothing about it: runs with another key are other runs."""
    return bytes(_cipher(key).encrypt(b"chattune", [b"key check"])).hex()[:16]


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    return AESSIV(key)
