"""The conversation in a terminal: streaming, history, commands. Reads a pipe too, one message a line, and then prints answers only."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self, TextIO, runtime_checkable

from chattune.core.config import validate
from chattune.core.errors import ChattuneError, did_you_mean
from chattune.dialogs.dialog import Message
from chattune.generate.reply import Messages, ReplyEvent, Sampling

COMMANDS = {
    "/help": "what can be typed here",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message (nothing: remove it) and start anew",
    "/set NAME=VALUE": "change how replies are drawn or searched for, such as seed=1; /set alone shows it",
    "/quit": "leave (Ctrl-D does too); Ctrl-C stops an answer",
}
_PROMPT = "› "
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format, surrogate, line and paragraph separators


class Speaks(Protocol):
    """What a conversation is held with."""

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[ReplyEvent]:
        """The reply to these messages, event by event."""
        ...


@runtime_checkable
class Adjustable(Speaks, Protocol):
    """What speaks with settings of its own. `acting`: settings of `Sampling` that act beside them."""

    @property
    def acting(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """The same with other settings; what does not act is refused by name."""
        ...


def chat(
    model: Speaks, sampling: Sampling | None = None, system: str | None = None, lines_in: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> None:
    """Talk until the input ends or ``/quit``. `lines_in` defaults to the keyboard or the pipe, `out` to stdout.

    With a keyboard there is a prompt, and notes say what a command did; in a pipe each line gives one answer on one line,
    commands act in silence and their mistakes go to stderr.
    """
    out = out or sys.stdout
    conversation = _Conversation(model, sampling or Sampling(), system, out, talkative=lines_in is None and sys.stdin.isatty())
    conversation.note("Type a message; /help shows the commands.")
    for line in lines_in if lines_in is not None else _keyboard(conversation):
        text = line.strip()
        if text == "/quit":
            return
        if text.startswith("/"):
            conversation.command(text)
        elif text:
            conversation.answer(text)


def readable(text: str) -> str:
    """`text` as a terminal may show it: control characters other than line feed and tab, and invisible signs such as those that
    turn the direction of writing become U+FFFD: a reply can neither steer the terminal nor disguise itself. Joiners and tags, of
    which emoji are made, stay."""
    return "".join("\ufffd" if unicodedata.category(c) in _STEERING and not _harmless(c) else c for c in text)


def _harmless(character: str) -> bool:
    return character in "\n\t\u200c\u200d" or "\U000e0020" <= character <= "\U000e007f"


class _Conversation:
    def __init__(self, model: Speaks, sampling: Sampling, system: str | None, out: TextIO, talkative: bool) -> None:
        self.model, self.sampling, self.system, self.out, self.talkative = model, sampling, system, out, talkative
        self.turns: list[Message] = []

    def answer(self, text: str) -> None:
        """Stream the answer to `text`. Ctrl-C ends the answer; what was said of it stays in the history."""
        self.turns.append(Message("user", text))
        head = [Message("system", self.system)] if self.system else []
        said, forgotten = "", 0
        try:
            for event in self.model.stream([*head, *self.turns], self.sampling):
                said += event.text
                forgotten = event.forgotten
                self.show(event.text)
        except KeyboardInterrupt:
            self.note("\n(stopped)")
        except ChattuneError as error:
            self.turns.pop()
            self.complain(error)
            return
        self.show("\n", piped=True)
        self.turns.append(Message("assistant", said))
        if forgotten:
            del self.turns[: min(forgotten, len(self.turns) - 2)]
            self.note(f"(the context is full: {forgotten} older message{'s' if forgotten > 1 else ''} forgotten)")

    def command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/help":
            width = max(map(len, COMMANDS))
            self.note("\n".join(f"{command:{width}}  {meaning}" for command, meaning in COMMANDS.items()))
        elif name == "/reset":
            self.turns.clear()
            self.note("(a new conversation)")
        elif name == "/system":
            self.system = rest or None
            self.turns.clear()
            self.note("(a new conversation with this system message)" if rest else "(a new conversation without a system message)")
        elif name == "/set":
            self.set(rest)
        else:
            names = [command.split()[0] for command in COMMANDS]
            self.complain(ChattuneError(f"no command is called '{name}'.", value=name, hint=did_you_mean(name, names)))

    def set(self, assignments: str) -> None:
        import yaml

        try:
            values = {}
            for assignment in assignments.split():
                key, equals, value = assignment.partition("=")
                if not equals:
                    raise ChattuneError(f"'{assignment}' sets nothing.", value=assignment, hint="Write it like /set temperature=0.7.")
                values[key] = yaml.safe_load(value)
            model = self.model
            if isinstance(model, Adjustable):
                model = model.changed({name: value for name, value in values.items() if name not in model.acting})
                values = {name: value for name, value in values.items() if name in model.acting}
            self.sampling = validate(Sampling, {**self.sampling.model_dump(), **values})
            self.model = model
        except yaml.YAMLError:
            self.complain(ChattuneError(f"'{assignments}' cannot be read.", hint="Write it like /set temperature=0.7."))
        except ChattuneError as error:
            self.complain(error)
        else:
            shown = {name: value for name, value in self.sampling.model_dump().items() if name != "rules"}
            if isinstance(self.model, Adjustable):
                shown = {**{name: shown[name] for name in self.model.acting}, **self.model.settings}
            self.note("  ".join(f"{name}={value}" for name, value in shown.items()))

    def show(self, text: str, piped: bool = False) -> None:
        """Part of an answer. In a pipe one answer is one line, so that the reader knows where it ends."""
        text = readable(text)
        self.out.write(text if self.talkative or piped else text.replace("\n", " "))
        self.out.flush()

    def note(self, text: str) -> None:
        if self.talkative:
            self.out.write(readable(text) + "\n")
            self.out.flush()

    def complain(self, error: ChattuneError) -> None:
        if self.talkative:
            self.note(str(error))
        else:
            print(readable(str(error)), file=sys.stderr)


def _keyboard(conversation: _Conversation) -> Iterator[str]:
    """Lines as they are typed, or as they come through the pipe. Ctrl-C at the prompt clears the line."""
    if not conversation.talkative:
        # Bytes, so that one line of another encoding cannot end the conversation.
        yield from (line.decode("utf-8", errors="replace").lstrip("\ufeff") for line in sys.stdin.buffer)
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing and history for input())
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            conversation.note("")
            return
        except KeyboardInterrupt:
            conversation.note("\n(/quit or Ctrl-D leaves)")
