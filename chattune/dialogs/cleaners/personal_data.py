"""Personal data, English and Chinese."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning, rewritten
from chattune.dialogs.cleaners._text import settled
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.masking import Mask, key_check, read_key, replaced
from chattune.dialogs.personal import KINDS, REGIONS, Recogniser, find, presidio

Kind = Literal["account", "email", "id_number", "iban", "card", "phone", "ip", "birth_date", "address", "name"]


class PersonalData(Cleaner):
    """Put placeholders such as `<EMAIL>` for personal data: by form and checksum, and by the words around it; or encrypt it.

    E-mail, telephone, bank cards (Luhn), IBAN (MOD 97-10), IP addresses, Chinese resident numbers (ISO 7064) and US social
    security numbers, accounts (QQ, WeChat, profiles, user names in links), labelled birth dates, street addresses, and names by
    titles and self-introductions. Names in running text need a recogniser. Metadata is not touched: leave out of your data what
    must not be kept. Name it before `spelling`, whose log holds the text before and which could change what is to be recognised.
    Helps when: logs are of real people.   Hurts when: such values are the subject (test data, hotlines that the bot must tell).
    Cost: 60 µs a message.   Start with: numbered, which keeps who is who within a dialog.
    Source: phonenumbers (libphonenumber), ISO/IEC 7812, ISO 13616, GB 11643-1999; AES-SIV, RFC 5297; Presidio for names.
    """

    private: ClassVar[bool] = True

    kinds: tuple[Kind, ...] = setting(KINDS, "what is looked for")
    mode: Literal["typed", "numbered", "encrypted"] = setting(
        "numbered", "<EMAIL>; <EMAIL_1>, equal for equal values of a dialog; or the value encrypted with your key"
    )
    key_file: str | None = setting(None, "for encrypted: file with your key, 64, 96 or 128 hexadecimal digits")
    key_variable: str | None = setting(None, "for encrypted: name of the environment variable that holds your key")
    regions: tuple[str, ...] = setting(REGIONS, "countries whose telephone numbers are known without their +…, as ISO 3166 codes")
    recogniser: str | None = setting(
        None, "package or folder of a spaCy pipeline through which Presidio finds names in running text; none: patterns only"
    )

    @field_validator("regions")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(REGIONS):
            import phonenumbers

            if unknown := sorted(set(value) - phonenumbers.SUPPORTED_REGIONS):
                raise ValueError(f"names {', '.join(unknown)}, which is no country with telephone numbers; write CN, US, GB …")
        return value

    @model_validator(mode="after")
    def _key_as_asked(self) -> PersonalData:
        named = [name for name in ("key_file", "key_variable") if getattr(self, name) is not None]
        if self.mode == "encrypted" and len(named) != 1:
            raise ValueError("encrypts with one key: name its key_file or its key_variable, and not both")
        if self.mode != "encrypted" and named:
            raise ValueError(f"needs no {named[0]} unless mode is encrypted")
        return self

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        if self.recogniser is not None:
            presidio(self.recogniser)  # what is missing is told before anything is read
        return _Masking(self, read_key(self.key_file, self.key_variable) if self.mode == "encrypted" else None)

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return self.begin(()).clean(dialog)

    def fingerprint(self) -> dict[str, str]:
        """With another key the answer is another one; what is kept tells keys apart and gives nothing of them away."""
        return {"key check": key_check(read_key(self.key_file, self.key_variable))} if self.mode == "encrypted" else {}


@dataclass(frozen=True)
class _Masking:
    settings: PersonalData
    key: bytes | None = field(repr=False)

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        mask = Mask(self.settings.mode, self.key, (message.content for message in dialog.messages))
        recogniser: Recogniser | None = None if self.settings.recogniser is None else presidio(self.settings.recogniser)

        def once(text: str) -> str:
            found = find(text, self.settings.kinds, self.settings.regions, recogniser)
            return replaced(text, ((one.kind, one.begin, one.end) for one in found), mask) if found else text

        return rewritten(dialog, lambda text: settled(once, text))
