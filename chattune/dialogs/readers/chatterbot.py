"""chatterbot-corpus: YAML files of categories and conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from chattune.core.errors import DataError
from chattune.core.files import size
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.text import legible, reading

_DEEPEST = 50  # lists in each other


class Chatterbot(Reader):
    """YAML ``categories: […]`` and ``conversations: [[question, answer, question, answer …]]``.

    Helps when: small hand-written corpora in many languages are at hand.   Hurts when: never.
    Cost: the whole file in memory.   Start with: the defaults.
    Source: chatterbot-corpus. Items alternate between user and assistant. Scalars are taken as they are written (`Yes`, `22` and
    `1:30` stay text), and an unquoted ``a: b``, which YAML takes for a mapping, is put together again.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            text = file.read(self.record_limit + 1)
        if len(text) > self.record_limit:
            raise DataError(
                f"is larger than {size(self.record_limit)}.", path=str(path), rule="a YAML file that fits in memory",
                hint="Split it, or raise collect.format.record_limit.",
            )
        root = _composed(path, legible(text, path, self.encoding))
        conversations = _field(root, "conversations")
        if not isinstance(conversations, yaml.SequenceNode):
            raise DataError(
                "holds no list called 'conversations'.", path=f"{path}:1", rule="categories and conversations",
                hint="Name another format: collect.format=….",
            )
        listed = _field(root, "categories")
        categories = [named for item in (listed.value if isinstance(listed, yaml.SequenceNode) else []) if (named := _text(item))]
        for index, node in enumerate(conversations.value):
            line = node.start_mark.line + 1
            if not isinstance(node, yaml.SequenceNode):
                yield Drop("not_a_list", str(path), line, f"the conversation is a {node.id}")
                continue
            texts = [_text(item) for item in node.value]
            if None in texts:
                yield Drop("wrong_type", str(path), node.value[texts.index(None)].start_mark.line + 1, "an item is a list, not text")
                continue
            messages = tuple(Message(("user", "assistant")[place % 2], text or "") for place, text in enumerate(texts))
            metadata = {"categories": categories} if categories else {}
            yield Dialog(f"{path.name}#{index + 1}", messages, "chatterbot", str(path), line, None, metadata)

    def score(self, path: Path, head: str) -> float:
        if not re.search(r"^conversations:\s*(#.*)?$", head, re.MULTILINE):
            return 0.0
        return 1.0 if re.search(r"^\s*- ?- ", head, re.MULTILINE) or path.name.endswith((".yml", ".yaml")) else 0.6


def _composed(path: Path, text: str) -> yaml.Node | None:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):  # composing what is nested without end would end the process
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise _too_deep(f"{path}:{event.start_mark.line + 1}" if event.start_mark else str(path))
        return yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"is not valid YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', error)}.",
            path=f"{path}:{mark.line + 1}" if mark else str(path), rule="valid YAML", hint="Mend that line, or leave the file out.",
        ) from None
    except RecursionError:
        raise _too_deep(str(path)) from None


def _too_deep(place: str) -> DataError:
    return DataError("is nested too deeply.", path=place, rule=f"at most {_DEEPEST} lists in each other", hint="Leave the file out.")


def _field(root: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(root, yaml.MappingNode):
        return None
    return next((value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == name), None)


def _text(node: yaml.Node) -> str | None:
    if isinstance(node, yaml.ScalarNode):
        return "" if node.tag == "tag:yaml.org,2002:null" and node.value in ("", "~") else str(node.value)
    if isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        key, value = (_text(part) for part in node.value[0])
        return None if key is None or value is None else f"{key}: {value}".rstrip()
    return None
