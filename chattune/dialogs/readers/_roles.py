"""Names that tell who speaks: the settings of every reader whose files name people rather than roles."""

from __future__ import annotations

import functools
import itertools
from typing import Self

from pydantic import model_validator

from chattune.core.part import setting
from chattune.dialogs.readers import Reader
from chattune.dialogs.sessions import Names

ASSISTANTS = (
    "assistant", "agent", "bot", "chatbot", "support", "advisor", "operator", "ai", "gpt", "chatgpt", "model", "helpdesk", "consultant",
    "客服", "助手", "助理", "机器人", "坐席", "顾问",
)  # fmt: skip
USERS = ("user", "human", "customer", "client", "caller", "visitor", "me", "用户", "客户", "顾客", "访客", "我")
SYSTEMS = ("system", "系统")
_DEFAULTS = {"user": USERS, "assistant": ASSISTANTS, "system": SYSTEMS}


class RolesByName(Reader):
    """A reader of what several people wrote, under names that may tell their roles."""

    assistant: tuple[str, ...] = setting(ASSISTANTS, "names that speak for the assistant; without one, what people do tells it")
    user: tuple[str, ...] = setting(USERS, "names that speak for the user")
    system: tuple[str, ...] = setting(SYSTEMS, "names whose lines are instructions")

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        # Only names that were set are compared: setting one that another list has by default is how it gets another role.
        asked = {role: names for role, usual in _DEFAULTS.items() if (names := getattr(self, role)) != usual}
        own = {role: {name.casefold() for name in names} for role, names in asked.items()}
        for first, second in itertools.combinations(own, 2):
            if both := own[first] & own[second]:
                raise ValueError(f"'{min(both)}' is named as {first} and as {second}: should have one role")
        return self

    def names(self) -> Names:
        """The names whose role is known. A name that was set for a role stands for no other by default."""
        return _names(self.assistant, self.user, self.system)


@functools.lru_cache(maxsize=16)  # asked for with every row of a table
def _names(assistant: tuple[str, ...], user: tuple[str, ...], system: tuple[str, ...]) -> Names:
    given = {"assistant": assistant, "user": user, "system": system}
    asked = {name.casefold() for role, names in given.items() if names != _DEFAULTS[role] for name in names}
    return Names.of(**{
        role: [name for name in names if names != _DEFAULTS[role] or name.casefold() not in asked] for role, names in given.items()
    })  # fmt: skip
