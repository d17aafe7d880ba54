"""The template: the only place where dialogs become ids, for training, for prompts, and (as Jinja text) for transformers.

    <|begin|><|system|>…<|end|><|user|>…<|end|><|assistant|>…<|end|>

The content and the ``<|end|>`` of a supervised turn carry its weight; ``<|begin|>`` and the headers carry none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files
from chattune.core.errors import DataError, SettingError, did_you_mean
from chattune.dialogs.dialog import ROLES, Message
from chattune.tokens.control import CHAT_TEMPLATE, MARK

if TYPE_CHECKING:
    from chattune.tokens.tokenizer import Tokenizer

TARGETS = ("all", "assistant")

# The mark is spelt as an escape so that an editor shows it. `generation` tells transformers which ids the assistant says.
_MARK = f"\\u{ord(MARK):04x}"
JINJA = f"""\
{{{{- '<|begin|>' }}}}
{{%- for message in messages %}}
    {{%- if message.role not in {list(ROLES)} %}}
        {{{{- raise_exception('role must be one of {", ".join(ROLES)}') }}}}
    {{%- endif %}}
    {{%- if message.content is not string %}}
        {{{{- raise_exception('content must be text') }}}}
    {{%- endif %}}
    {{%- set content = message.content | replace('{_MARK}', '{_MARK}0') | replace('<|', '<{_MARK}1|') %}}
    {{{{- '<|' + message.role + '|>' }}}}
    {{%- if message.role == 'assistant' %}}
        {{%- generation %}}
            {{{{- content + '<|end|>' }}}}
        {{%- endgeneration %}}
    {{%- else %}}
        {{{{- content + '<|end|>' }}}}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '<|assistant|>' }}}}
{{%- endif %}}
"""

AnyMessage = Message | Mapping[str, Any]


class Template:
    """Renders messages (`Message` or ``{"role", "content"}``, optionally with ``"weight"``) to ids.

    `targets` says which turns carry loss: ``"all"`` or ``"assistant"``; a message's own weight has the last word.
    """

    def __init__(self, tokenizer: Tokenizer, targets: str = "all") -> None:
        if targets not in TARGETS:
            raise SettingError(
                f"'{targets}' does not say which turns carry loss.", path="prepare.targets", value=targets,
                rule=f"one of {', '.join(TARGETS)}", hint=did_you_mean(targets, TARGETS),
            )
        self.tokenizer, self.targets = tokenizer, targets

    def render(self, messages: Iterable[AnyMessage]) -> tuple[list[int], list[float]]:
        """Ids of a whole dialog, and the loss weight of each id as a target."""
        return self.render_many([messages])[0]

    def render_many(self, dialogs: Iterable[Iterable[AnyMessage]]) -> list[tuple[list[int], list[float]]]:
        """`render` of each dialog, encoded together so that the tokenizer can use all cores."""
        found = [checked(dialog) for dialog in dialogs]
        contents = iter(self.tokenizer.encode_many([message.content for dialog in found for message in dialog]))
        control = self.tokenizer.control
        rendered = []
        for dialog in found:
            ids, weights = [control["begin"]], [0.0]
            for message in dialog:
                content = next(contents)
                ids += [control[message.role], *content, control["end"]]
                weights += [0.0, *[self.weight(message)] * (len(content) + 1)]
            rendered.append((ids, weights))
        return rendered

    @property
    def takes_tools(self) -> bool:
        """Whether `prompt` can tell the model of tools that it may call."""
        return False

    def prompt(self, messages: Iterable[AnyMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids after which the assistant speaks: a prefix of what `render` gives for the same messages and a reply.

        `tools`: in OpenAI's form, where the template takes them (`DataError` where not).
        """
        if tools:
            raise DataError("the chat template takes no tools.", path="tools", rule="a template that names them")
        return [*self.render(messages)[0], self.tokenizer.control["assistant"]]

    def beginnings(self, messages: Sequence[AnyMessage], first: int) -> list[int]:
        """Where a history may begin that is too long from `first` on: at each later turn."""
        return [*range(first + 1, len(messages))]

    def weight(self, message: Message) -> float:
        """Loss weight of a turn's content and of its end."""
        if message.weight is not None:
            return message.weight
        return float(self.targets == "all" or message.role == "assistant")

    def save(self, folder: Path) -> None:
        """Write tokenizer and template so that transformers loads both from `folder`."""
        self.tokenizer.save(folder)
        files.write_atomically(Path(folder) / CHAT_TEMPLATE, JINJA)


def checked(messages: Iterable[AnyMessage]) -> list[Message]:
    """The messages as `Message`, or a `DataError` with the place of the first that is none."""
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: AnyMessage, index: int) -> Message:
    if isinstance(message, Message):
        role, content, weight = message.role, message.content, message.weight
    elif isinstance(message, Mapping):
        role, content, weight = message.get("role"), message.get("content"), message.get("weight")  # type: ignore[assignment]
    else:
        raise DataError(f"is a {type(message).__name__}.", path=f"messages[{index}]", rule="a mapping with role and content")
    if role not in ROLES:
        raise DataError(
            f"{role!r} is not a role.", path=f"messages[{index}].role", value=role, rule=f"one of {', '.join(ROLES)}",
            hint=did_you_mean(str(role), ROLES),
        )
    if not isinstance(content, str):
        raise DataError(f"is a {type(content).__name__}, not text.", path=f"messages[{index}].content", value=content, rule="text")
    if weight is not None and not (isinstance(weight, (int, float)) and 0 <= weight < float("inf")):
        raise DataError(f"{weight!r} is no weight.", path=f"messages[{index}].weight", value=weight, rule="a number from 0 on, or none")
    return message if isinstance(message, Message) else Message(role, content, weight)
