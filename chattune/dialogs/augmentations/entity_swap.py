"""Values replaced by others of their kind, in the reply as well."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit, Working
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from chattune.dialogs.augmentations._slots import Names


class EntitySwap(Augmentation):
    """Swap numbers, dates, mail addresses and names for others of their kind, wherever the dialog mentions them, replies included.

    The answer stays right only where replies repeat values and derive none: a kind of value is left alone in a dialog whose replies
    hold one of that kind that nobody else said ("3 + 4" and "7", "France" and "Paris"). Names are those of your file, or words that are
    always written with a capital in the training split.
    Helps when: replies copy what users say (orders, bookings, tickets), and should copy anything.
    Hurts when: replies know something about a name without naming another ("Everest" and "It is the highest mountain").
    Cost: 50 µs a message.   Start with: 0.5; numbers, dates and addresses, and names from a file.
    Source: slot-value substitution, Raiman & Miller 2017, "Globally normalized reader" (type swaps).
    """

    unit: ClassVar[Unit] = "entity"
    answers: ClassVar[bool] = True
    rate: float = setting(0.5, "share of the values in the messages of `roles` that are swapped", low=0.0, high=1.0, search=(0.1, 1.0))
    kinds: tuple[Literal["number", "date", "mail", "name"], ...] = setting(("number", "date", "mail", "name"), "what is swapped")
    names: str | None = setting(None, "a file of lines kind, tab, name (city, tab, Rome); none: words with a capital are found")

    def files(self) -> Iterable[Path]:
        from chattune.core.errors import DataError

        if self.names is None:
            return ()
        path = Path(self.names).expanduser()
        if not path.is_file():
            raise DataError("does not exist.", path=str(path), rule="a file of lines kind, tab, name")
        return (path,)

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._slots import Names, capitals

        if "name" not in self.kinds:
            return _Swapping(self, Names({}))
        paths = [*self.files()]
        return _Swapping(self, Names(_listed(paths[0]) if paths else {"name": capitals(dialogs)}))


@dataclass(frozen=True)
class _Swapping(Working):
    part: EntitySwap
    names: Names

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._slots import chosen_slots, filled, other, slots

        found = [slots(message.content, self.names) for message in dialog.messages]
        own = chosen_slots(found, dialog, self.part.roles, self.part.kinds)
        said = {slot.key for row in found for slot in row}
        instead: dict[tuple[str, str], str] = {}
        for hit in np.flatnonzero(random.random(len(own)) < self.part.rate).tolist():
            for _ in range(20):  # a value that the dialog has already would make one of two
                new = other(own[hit], self.names, random)
                if (own[hit].kind, new.casefold()) not in said:
                    said.add((own[hit].kind, new.casefold()))
                    instead[own[hit].key] = new
                    break
        if not instead:
            return dialog
        contents = [filled(message.content, row, instead) for message, row in zip(dialog.messages, found, strict=True)]
        return replace(dialog, messages=tuple(replace(m, content=new) for m, new in zip(dialog.messages, contents, strict=True)))


def _listed(path: Path) -> dict[str, tuple[str, ...]]:
    from chattune.core.errors import DataError

    found: dict[str, dict[str, None]] = {}
    try:
        for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
            kind, _, name = (part.strip() for part in line.partition("\t"))
            if line.strip() and not line.startswith("#"):
                if not (kind and name):
                    rule = "lines such as city, tab, Rome"
                    raise DataError("is not kind, tab, name.", path=f"{path}:{number}", value=line[:60], rule=rule)
                found.setdefault(f"name {kind}", {})[name] = None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason}.", path=str(path), rule="a file of names in UTF-8") from None
    return {kind: tuple(own) for kind, own in found.items()}
