"""Keys: who may do what, and how much. A file holds their digests and nothing from which a key could be made again.

A key is 32 random bytes, so one sha256 of it is as good as a slow hash: there is nothing to guess. It is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from chattune.core import files
from chattune.core.artifact import check_name
from chattune.core.config import validate
from chattune.core.errors import CorruptError, UnknownName, UsageError, did_you_mean
from chattune.core.part import Settings
from chattune.serve.wire import WireError

Scope = Literal["chat", "embeddings", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = ("chat", "embeddings", "metrics", "admin")
USUAL_SCOPES: tuple[Scope, ...] = ("chat", "embeddings")
PREFIX = "ct-"
LONGEST = 256  # bytes of a key that are looked at


class Key(Settings):
    """One key, without itself. `requests` and `tokens`: the most a minute; none: as much as the server can."""

    name: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = USUAL_SCOPES
    requests: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    created: int = 0


# Without any key, on this machine only: whoever reaches the port may do all.
ANYBODY = Key(name="anybody", digest="0" * 64, scopes=SCOPES, requests=None, tokens=None)


class KeyFile:
    """The keys in one file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def all(self) -> tuple[Key, ...]:
        """All keys, read again where the file has changed: a key that is revoked is void at once."""
        try:
            state = os.stat(self.path)
        except FileNotFoundError:
            return ()
        read_at = (state.st_mtime_ns, state.st_ino, state.st_size)
        if read_at != self._read_at:
            if stat.S_IMODE(state.st_mode) & 0o077:
                raise UsageError(
                    "can be read by others.", path=str(self.path), value=oct(stat.S_IMODE(state.st_mode)), rule="permissions 0600",
                    hint=f"Set them with `chmod 600 {self.path}`.",
                )
            data = files.read_json(self.path)
            if not isinstance(data, dict) or not isinstance(data.get("keys"), list):
                raise CorruptError("holds no keys.", path=str(self.path), rule="a file that `chattune keys` wrote")
            self._keys = tuple(validate(Key, key, file=self.path) for key in data["keys"])
            self._read_at = read_at
        return self._keys

    def create(
        self, name: str, scopes: Sequence[Scope] = USUAL_SCOPES, requests: int | None = None, tokens: int | None = None
    ) -> str:
        """Make a key of that name and give it; it is not kept and cannot be shown again."""
        check_name(name)
        if any(key.name == name for key in self.all()):
            raise UsageError(
                f"a key is called '{name}' already.", path=str(self.path), value=name, rule="a new name",
                hint=f"Revoke it first: `chattune keys revoke {name}`.",
            )
        text = PREFIX + secrets.token_urlsafe(32)
        facts = {"name": name, "digest": digest(text.encode()), "scopes": tuple(scopes), "created": int(time.time())}
        self._write([*self.all(), validate(Key, {**facts, "requests": requests, "tokens": tokens}, prefix="--")])
        return text

    def revoke(self, name: str) -> None:
        """Make the key of that name void, from the next request on."""
        kept = [key for key in self.all() if key.name != name]
        if len(kept) == len(self.all()):
            raise UnknownName(
                f"no key is called '{name}'.", path=str(self.path), value=name, rule="the name of a key",
                hint=did_you_mean(name, [key.name for key in kept]) or "See `chattune keys list`.",
            )
        self._write(kept)

    def _write(self, keys: Iterable[Key]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self.path, json.dumps({"keys": [key.model_dump(mode="json") for key in keys]}, indent=2), mode=0o600)


def digest(key: bytes) -> str:
    """sha256 as hex."""
    return hashlib.sha256(key).hexdigest()


def authenticated(keys: Sequence[Key], headers: Iterable[tuple[bytes, bytes]]) -> Key:
    """The key that the ``Authorization`` header of a request bears, or a `WireError` of status 401.

    Bytes are compared, never text, and every key is compared, so that the time tells nothing about the digests.
    """
    given = [value for name, value in headers if name.lower() == b"authorization"]
    if not given:
        raise _unauthorized("No API key was given: send the header 'Authorization: Bearer KEY'.", None)
    if len(given) > 1:
        raise _unauthorized("More than one 'Authorization' header was sent.", "invalid_api_key")
    scheme, _, secret = given[0].partition(b" ")
    secret = secret.strip()
    if scheme.lower() != b"bearer" or not secret or len(secret) > LONGEST:
        raise _unauthorized("The header must be 'Authorization: Bearer KEY'.", "invalid_api_key")
    found, asked = None, digest(secret).encode()
    for key in keys:
        if hmac.compare_digest(key.digest.encode(), asked):
            found = key
    if found is None:
        raise _unauthorized("The API key is not known here.", "invalid_api_key")
    return found


def require(key: Key, scope: Scope) -> None:
    """Refuse with status 403 what the key is not for."""
    if scope not in key.scopes:
        raise WireError(403, f"The key '{key.name}' is not for this: it lacks the scope '{scope}'.", code="insufficient_scope")


def _unauthorized(message: str, code: str | None) -> WireError:
    return WireError(401, message, code=code)
