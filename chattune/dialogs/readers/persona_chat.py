"""Persona-Chat: two people get to know each other, each with a few sentences about themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, is_json, kind_of, share, text_of
from chattune.dialogs.text import lines, reading

_LINE = re.compile(r"(\d+) (.*)")
_PERSONA = re.compile(r"(your|partner's) persona: ?(.*)")
_SILENCE = "__SILENCE__"


class PersonaChat(Reader):
    """Numbered lines ``1 your persona: …`` and ``2 question<tab>answer``, or rows ``{"personality", "utterances"}``.

    Helps when: data is Persona-Chat or ConvAI2, from ParlAI or from the Hugging Face hub.   Hurts when: never.
    Cost: one conversation in memory.   Start with: the defaults.
    Source: Zhang et al. 2018, arXiv:1801.07243. A line numbered 1 begins a conversation; "your persona" is that of the one who answers.
    The replies that were not given (candidates) are left out.
    """

    persona: Literal["system", "metadata"] = setting("system", "where the sentences about the one who answers go")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            rows = is_json(file.read(4096))
        if rows:
            yield from dialogs_of_rows(path, self.encoding, self.record_limit, "persona_chat", self._of_row)
        else:
            yield from self._of_lines(path)

    def score(self, path: Path, head: str) -> float:
        if is_json(head):
            return share(first_rows(head), lambda row: {"personality", "utterances"} <= row.keys())
        written = [line for line in head.splitlines()[:200] if line.strip()]
        matches = [match for line in written if (match := _LINE.fullmatch(line))]
        some = any(_PERSONA.match(match[2]) for match in matches)
        return round(len(matches) / len(written), 3) if some and any("\t" in match[2] for match in matches) else 0.0

    def _of_lines(self, path: Path) -> Iterator[Dialog | Drop]:
        open_: list[tuple[int, str]] = []
        count = length = last = 0
        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                line, text = item
                if not text.strip():
                    continue
                match = _LINE.fullmatch(text)
                if match is None:
                    yield Drop("no_number", str(path), line, "the line has no number before it")
                    continue
                number = int(match[1]) if len(match[1]) < 10 else 0
                if number <= last and open_:
                    count += 1
                    yield self._dialog(path, count, open_)
                    open_, length = [], 0
                last, length = number, length + len(text)
                if length > self.record_limit:
                    yield Drop("line_too_long", str(path), line, "the conversation goes on beyond the limit; this line is left out")
                else:
                    open_.append((line, match[2]))
        if open_:
            yield self._dialog(path, count + 1, open_)

    def _dialog(self, path: Path, number: int, said: list[tuple[int, str]]) -> Dialog:
        personas: dict[str, list[str]] = {"your": [], "partner's": []}
        messages: list[Message] = []
        for _, text in said:
            if match := _PERSONA.fullmatch(text):
                personas[match[1]].append(match[2])
                continue
            question, _, rest = text.partition("\t")
            answer = rest.split("\t")[0]
            messages += [Message("user", _plain(question))] if question != _SILENCE else []
            messages += [Message("assistant", _plain(answer))] if answer else []
        begin, metadata = self._told(personas["your"])
        if personas["partner's"]:
            metadata["partner_persona"] = personas["partner's"]
        return Dialog(f"{path.name}#{number}", (*begin, *messages), "persona_chat", str(path), said[0][0], None, metadata)

    def _of_row(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        turns, persona = row.get("utterances"), row.get("personality")
        if not isinstance(turns, list) or not turns or not isinstance(turns[-1], Mapping):
            raise Unusable("no_messages", f"utterances is {kind_of(turns)}, not a list of turns")
        history, replies = turns[-1].get("history"), turns[-1].get("candidates")
        if not isinstance(history, list) or not isinstance(replies, list) or not replies:
            raise Unusable("no_messages", "the last turn has no history and candidates")
        texts = [text_of(text, "history") for text in [*history, replies[-1]]]  # the last candidate is the reply that was given
        roles = ("assistant", "user")
        messages = [Message(roles[(len(texts) - 1 - place) % 2], text) for place, text in enumerate(texts) if text != _SILENCE]
        if not isinstance(persona, list):
            raise Unusable("wrong_type", f"personality is {kind_of(persona)}")
        begin, metadata = self._told([text_of(text, "personality") for text in persona])
        known = ("id", "group", "personality", "utterances")
        return begin + messages, {**{key: value for key, value in row.items() if key not in known}, **metadata}

    def _told(self, persona: list[str]) -> tuple[list[Message], dict[str, Any]]:
        if not persona:
            return [], {}
        return ([Message("system", "\n".join(persona))], {}) if self.persona == "system" else ([], {"persona": persona})


def _plain(text: str) -> str:
    return text.replace("\\n", "\n")  # ParlAI writes line ends so
