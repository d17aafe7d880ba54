"""`ChatTemplate`: a chat template from elsewhere, as the maker of a model wrote it, with the promises of our own.

The template is rendered twice: once as it is, and once (for each order of roles) with a mark in place of each content. The marked
rendering tells what the template itself writes; put together again with the contents it must give the first one to the letter. So it is
known of each character who wrote it: control tokens are taken from the template alone, and loss weights fall on what was said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files
from chattune.core.errors import ArtifactError, DataError
from chattune.dialogs.dialog import Message
from chattune.tokens.control import CHAT_TEMPLATE, refuse_surrogates
from chattune.tokens.rendering import Renderer, TemplateRefusal
from chattune.tokens.template import AnyMessage, Template, checked

if TYPE_CHECKING:
    from chattune.tokens.foreign import ForeignTokenizer

_KEPT = 256  # orders of roles whose marked rendering is kept
_MARK = re.compile("\ue000([0-9]+)\ue001")

# For models that were never taught to talk: turns in plain words, each reply ended by the end of a text.
PLAIN = """\
{%- for message in messages %}
    {{- {'system': 'System: ', 'user': 'User: ', 'assistant': 'Assistant: ', 'tool': 'Tool: '}[message.role] + message.content }}
    {%- if message.role == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
    {{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""


@dataclass(frozen=True)
class _Piece:
    """A stretch of a rendering: what the template wrote, or (`message` is its number) what was said."""

    text: str
    message: int | None = None


@dataclass(frozen=True)
class _Written:
    """A conversation in pieces, and the pieces as the tokenizer reads them."""

    pieces: list[_Piece]
    texts: list[str]
    dialog: Sequence[Message]


class ChatTemplate(Template):
    """Renders messages with the Jinja template of a model from elsewhere, to the ids that transformers gives for benign texts.

    `render` raises `TemplateRefusal` (a `DataError`) for a conversation that the template refuses, `DataError` where it changes what
    was said in a way that cannot be followed, and `ArtifactError` where it breaks its limits. Each supervised turn of the assistant
    carries its weight up to and including the token that ends it.
    """

    def __init__(self, tokenizer: ForeignTokenizer, targets: str = "all") -> None:
        super().__init__(tokenizer, targets)
        self.tokenizer: ForeignTokenizer = tokenizer
        template = tokenizer.found.template
        self.text = template if template is not None else ("{{- bos_token }}\n" if tokenizer.adds_begin else "") + PLAIN
        self._renderer = Renderer(self.text, tokenizer.named)
        self._skeletons: dict[tuple[tuple[str, ...], bool, str], list[_Piece]] = {}

    def render_many(self, dialogs: Iterable[Iterable[AnyMessage]]) -> list[tuple[list[int], list[float]]]:
        found = [checked(dialog) for dialog in dialogs]
        pieces = self._pieces([(dialog, False) for dialog in found])
        written = [self._written(some, dialog) for some, dialog in zip(pieces, found, strict=True)]
        encoded = self.tokenizer.encode_written(["".join(texts) for texts in written])
        return [
            (ids, self._weights(_Written(some, texts, dialog), ids, offsets))
            for some, texts, dialog, (ids, offsets) in zip(pieces, written, found, encoded, strict=True)
        ]

    @property
    def takes_tools(self) -> bool:
        return re.search(r"\btools\b", self.text) is not None

    def prompt(self, messages: Iterable[AnyMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        dialog = checked(messages)
        if tools:
            self._check_tools(tools)
        return self.tokenizer.encode_written(["".join(self._written(self._pieces([(dialog, True)], tools)[0], dialog))])[0][0]

    def beginnings(self, messages: Sequence[AnyMessage], first: int) -> list[int]:
        """At each later turn of the user: many templates take turns only in this order."""
        return [place for place, message in enumerate(checked(messages)) if place > first and message.role == "user"]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        files.write_atomically(Path(folder) / CHAT_TEMPLATE, self.text)

    @cached_property
    def turn_end(self) -> int | None:
        """The control token with which the template ends a turn of the assistant; none where it ends it with nothing of the kind."""
        dialog = [Message("user", "Hi."), Message("assistant", "Hello.")]
        pieces = self._pieces([(dialog, False)])[0]
        said = next(place for place, piece in enumerate(pieces) if piece.message == 1)
        after = "".join(piece.text for piece in pieces[said + 1 :])
        match = self.tokenizer.marks.search(after)
        return None if match is None else self.tokenizer.control_tokens.ids[match[0]]

    def notes(self) -> list[str]:
        """What is to be known about training and talking with this template."""
        plain = self.tokenizer.found.template is None
        notes = ["has no chat template: turns are written as 'User: …' and 'Assistant: …'"] if plain else []
        if self.turn_end is None:
            notes.append("its chat template ends no turn with a token: it can talk, but cannot be trained")
            return notes
        prompt = self.prompt([Message("user", "Hi.")])
        if self.render([Message("user", "Hi."), Message("assistant", "Hello.")])[0][: len(prompt)] != prompt:
            notes.append("its chat template writes other words before a reply in training than in a prompt")
        asked, told = Message("user", "Hi."), Message("assistant", "Well.")
        for role, messages in (("system", [Message("system", "Be brief."), asked]), ("tool", [asked, told, Message("tool", "42")])):
            try:
                self.prompt(messages)
            except DataError as error:
                notes.append(f"its chat template takes no {role} messages: {error.message}")
        return notes

    def _check_tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """What the template writes of tools counts as its own words: so none may hold a control token."""
        if not self.takes_tools:
            raise DataError("the chat template takes no tools.", path="tools", rule="a template that names them")
        waiting: list[Any] = list(tools)
        while waiting:
            node = waiting.pop()
            if isinstance(node, Mapping):
                waiting += [*node, *node.values()]
            elif isinstance(node, (list, tuple)):
                waiting += node
            elif isinstance(node, str):
                refuse_surrogates(node)
                if found := self.tokenizer.marks.search(node) or re.search("[\ue000\ufdd0]", node):
                    raise DataError(f"holds {found[0]!r}, which only the template may write.", path="tools", value=found[0])

    def _pieces(self, asked: Sequence[tuple[list[Message], bool]], tools: Sequence[Mapping[str, Any]] = ()) -> list[list[_Piece]]:
        """Each rendering in the pieces that it is made of."""
        for dialog, _ in asked:
            for message in dialog:
                refuse_surrogates(message.content)
        texts = self._renderer.render([(_plain(dialog), asking) for dialog, asking in asked], tools)
        return [
            self._told_apart(text, dialog, self._skeleton(dialog, asking, tools), place)
            for place, (text, (dialog, asking)) in enumerate(zip(texts, asked, strict=True))
        ]

    def _skeleton(self, dialog: list[Message], asking: bool, tools: Sequence[Mapping[str, Any]]) -> list[_Piece]:
        """What the template writes around contents in this order of roles; a content is marked by its number."""
        key = tuple(message.role for message in dialog), asking, json.dumps(tools)
        found = self._skeletons.get(key)
        if found is None:
            marked = [{"role": role, "content": f"\ue000{place}\ue001"} for place, role in enumerate(key[0])]
            parts = _MARK.split(self._renderer.render([(marked, asking)], tools)[0])
            pieces = [_Piece(part, int(part) if place % 2 else None) for place, part in enumerate(parts)]
            shown = [piece.message for piece in pieces if piece.message is not None]
            for place in range(len(dialog)):
                if shown.count(place) != 1:
                    raise DataError(
                        f"is {'left out' if place not in shown else 'said twice'} by the chat template.", path=f"messages[{place}]",
                        value=dialog[place].role, rule="a template that says each message once",
                        hint="Leave such messages out, or give another template.",
                    )
            if len(self._skeletons) >= _KEPT:
                self._skeletons.clear()  # strangers choose the order of roles
            self._skeletons[key] = found = pieces
        return found

    def _told_apart(self, text: str, dialog: list[Message], skeleton: list[_Piece], number: int) -> list[_Piece]:
        """The rendering `text`, each stretch with who wrote it: contents stand in it as they are, or trimmed."""
        found: list[_Piece] = []
        waiting = [(0, 0)]  # (piece, place in the text) to go on from; the nearest to the end is tried first
        chosen: dict[tuple[int, int], tuple[tuple[int, int], str]] = {}
        while waiting:
            state = waiting.pop()
            at, place = state
            if at == len(skeleton):
                if place == len(text):
                    break
                continue
            piece = skeleton[at]
            shown = [piece.text] if piece.message is None else _shown(dialog[piece.message])
            for candidate in reversed(shown):
                after = (at + 1, place + len(candidate))
                if text.startswith(candidate, place) and after not in chosen:
                    chosen[after] = (state, candidate)
                    waiting.append(after)
        else:
            raise DataError(
                "is changed by the chat template in a way that cannot be followed.", path=f"dialogs[{number}]", value=number,
                rule="a template that shows contents as they are, or trimmed", hint="Give another template with --template.",
            )
        state = (len(skeleton), len(text))
        while state != (0, 0):
            state, candidate = chosen[state]
            found.append(_Piece(candidate, skeleton[state[0]].message))
        return found[::-1]

    def _written(self, pieces: Iterable[_Piece], dialog: Sequence[Message]) -> list[str]:
        """The pieces as the tokenizer is to read them: control tokens only where the template, or the assistant, may write them."""
        return [
            self.tokenizer.written(piece.text) if piece.message is None
            else self.tokenizer.said(piece.text) if dialog[piece.message].role == "assistant"
            else piece.text
            for piece in pieces
        ]  # fmt: skip

    def _weights(self, written: _Written, ids: list[int], offsets: list[tuple[int, int]]) -> list[float]:
        """The weight of each id; `offsets`: the characters of the written text that it stands for."""
        starts = [0]
        for text in written.texts:
            starts.append(starts[-1] + len(text))
        weights = [0.0] * len(ids)
        token = 0
        for place, piece in enumerate(written.pieces):
            weight = 0.0 if piece.message is None else self.weight(written.dialog[piece.message])
            if not weight:
                continue
            first, last = starts[place], starts[place + 1] + self._end_after(written, place)
            while token < len(ids) and offsets[token][1] <= first and offsets[token] != (first, first):
                token += 1
            for this in range(token, len(ids)):
                if offsets[this][0] >= last:
                    break
                weights[this] = weight
        return weights

    def _end_after(self, written: _Written, place: int) -> int:
        """Characters from the end of a content, the piece at `place`, to the end of the control token that ends its turn."""
        number = written.pieces[place].message
        assert number is not None
        after = written.texts[place + 1] if place + 1 < len(written.texts) else ""
        match = self._aliases.search(after)
        token = None if match is None else self.tokenizer.aliased[match[0]]
        if written.dialog[number].role != "assistant":
            return match.end() if match is not None and token == self.turn_end else 0
        if match is None or token not in (*self.tokenizer.ends, self.turn_end):
            raise ArtifactError(
                "does not end the assistant's turn with a token, so nothing would teach the model to stop.", path=CHAT_TEMPLATE,
                value=number, rule="a control token after what the assistant says", hint="Give another template with --template.",
            )
        return match.end()

    @cached_property
    def _aliases(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(alias) for alias in self.tokenizer.aliased) or r"(?!)")


def _plain(dialog: Iterable[Message]) -> list[Mapping[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in dialog]


def _shown(message: Message) -> list[str]:
    """What a template may make of a content: all of it, trimmed, or (of the assistant's) what comes after its thoughts."""
    text = message.content
    found = [text, text.strip(), text.rstrip(), text.lstrip()]
    if message.role == "assistant" and "</think>" in text:
        spoken = text.split("</think>")[-1]
        found += [spoken, spoken.lstrip("\n"), spoken.strip()]
    return list(dict.fromkeys(found))


__all__ = ["PLAIN", "ChatTemplate", "TemplateRefusal"]
