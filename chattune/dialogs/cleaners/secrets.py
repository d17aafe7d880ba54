"""Credentials: keys, tokens and passwords."""

from __future__ import annotations

from typing import ClassVar, Literal

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import settled
from chattune.dialogs.credentials import KINDS, find
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.masking import Mask, replaced


class Secrets(Cleaner):
    """Put placeholders such as `<API_KEY>` for credentials: keys of known providers, tokens, private keys, passwords.

    Found are keys by the prefixes of some thirty providers, JSON Web Tokens, bearer tokens, private key blocks, passwords in links
    and connection strings, and what follows "password:", "密码：", "api_key =" and their like, if it looks like one.
    Helps when: logs come from support or development; a model that learnt a key tells it.
    Hurts when: examples with made-up keys are the subject.   Cost: 30 µs a message.
    Start with: the defaults, before `personal_data`, which would see an address in user:password@host.
    Source: the formats that the providers document, and RFC 7519, 6750, 7468; the entropy check as in Yelp's detect-secrets.
    """

    private: ClassVar[bool] = True

    kinds: tuple[Literal["private_key", "api_key", "token", "password"], ...] = setting(KINDS, "what is looked for")
    mode: Literal["typed", "numbered"] = setting("typed", "<PASSWORD>; or <PASSWORD_1>, equal for equal values of a dialog")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        mask = Mask(self.mode, None, (message.content for message in dialog.messages))

        def once(text: str) -> str:
            found = find(text, self.kinds)
            return replaced(text, ((one.kind, one.begin, one.end) for one in found), mask) if found else text

        return rewritten(dialog, lambda text: settled(once, text))
