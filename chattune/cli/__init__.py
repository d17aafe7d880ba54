"""The command line: a thin shell around `chattune.story`. Results go to stdout, talk to stderr; nothing here knows torch.

Exit codes: 0 done, 1 something failed, 2 the command or recipe cannot be understood, 130 Ctrl-C, 143 terminated.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import cyclopts
from cyclopts import App
from cyclopts.exceptions import CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

import chattune
from chattune.cli import data, looking, making, serving, talking
from chattune.cli.answer import USUAL, Answer, Common, plain, silence_broken_pipe
from chattune.core import processes
from chattune.core.errors import ChattuneError, Interrupted, UnknownName, UsageError, did_you_mean
from chattune.core.progress import talk

PLAIN: Final = "plaintext"  # set for each command too: completion does not inherit it, and would read descriptions as Markdown
app = App(
    name="chattune",
    help="From raw conversations to your own chat model, with the proof of what helped.",
    version=chattune.__version__,
    help_format=PLAIN,
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
SHELLS = ("bash", "zsh", "fish")
MAKE = cyclopts.Group("Make", sort_key=1)
TALK = cyclopts.Group("Talk", sort_key=2)
LOOK = cyclopts.Group("Look", sort_key=3)
COMMANDS: dict[str, tuple[Callable[..., Answer], cyclopts.Group]] = {
    "demo": (making.demo, MAKE),
    "run": (making.run, MAKE),
    "import": (making.import_, MAKE),
    "collect": (making.collect, MAKE),
    "clean": (making.clean, MAKE),
    "split": (making.split, MAKE),
    "balance": (making.balance, MAKE),
    "augment": (making.augment, MAKE),
    "prepare": (making.prepare, MAKE),
    "train": (making.train, MAKE),
    "evaluate": (making.evaluate, MAKE),
    "resume": (making.resume, MAKE),
    "export": (making.export, MAKE),
    "chat": (talking.chat, TALK),
    "serve": (serving.serve, TALK),
    "keys": (serving.keys, TALK),
    "runs": (looking.runs, LOOK),
    "show": (looking.show, LOOK),
    "diff": (looking.diff, LOOK),
    "data": (data.data, LOOK),
    "compare": (looking.compare, LOOK),
    "tree": (looking.tree, LOOK),
    "list": (looking.list_, LOOK),
    "explain": (looking.explain, LOOK),
    "init-report": (looking.init_report, LOOK),
    "env": (looking.env, LOOK),
}
for _position, (_name, (_function, _group)) in enumerate(COMMANDS.items()):
    app.command(_function, name=_name, group=_group, sort_key=_position, help_format=PLAIN)


@app.default
def overview(*, common: Common = USUAL) -> Answer:
    """Say in six lines what there is."""
    return Answer(
        f"chattune {chattune.__version__}: from raw conversations to your own chat model, with the proof of what helped.\n"
        "  chattune demo           train, judge and meet a first model on built-in dialogs, in under 10 minutes  ← try this\n"
        "  chattune run RECIPE     the same with your own conversations (see `chattune list recipes`)\n"
        "  chattune chat RUN       talk to it; `chattune serve RUN` lets other programs talk to it\n"
        "  chattune list           everything that can be set and exchanged; `chattune explain NAME` says more\n"
        "  chattune --help         all commands",
        {"version": chattune.__version__, "next": "chattune demo", "commands": [*COMMANDS, "completion"]},
    )


@app.command(group=LOOK, sort_key=99, help_format=PLAIN)
def completion(shell: str = "bash", /, *, common: Common = USUAL) -> Answer:
    """Print the completion script of a shell: bash, zsh or fish.

    Parameters
    ----------
    shell
        bash, zsh or fish; load it with eval "$(chattune completion bash)"
    """
    if shell not in SHELLS:
        raise UsageError(f"no completion for '{shell}'.", value=shell, rule="bash, zsh or fish", hint=did_you_mean(shell, SHELLS))
    script = app.generate_completion(prog_name="chattune", shell=shell)  # type: ignore[arg-type]
    return Answer(script.rstrip("\n"), {"shell": shell, "script": script})


class _Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it passes through every ``except Exception`` on its way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give its exit code. Without `arguments` this is the program, which does not return where it was a server."""
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the terminal's encoding lacks shall cost no answer
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and (server := sys.modules.get("chattune.serve.process")):
        server.leave(code)
    return code


def _run(words: list[str]) -> int:
    words = _options_last(words)
    before = words[: words.index("--")] if "--" in words else words
    machine, debug = "--json" in before, "--debug" in before
    try:
        earlier = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:
        earlier = None  # not the main thread: the host program owns the signals
    try:
        if not processes.first():
            talk().quiet = True  # the first process speaks for all
        answer = _execute(words)
        if processes.first():
            _print(answer, machine)
    except _Terminated:
        gone = Interrupted(signal.SIGTERM, "terminated.", hint="Continue with `chattune resume`; see `chattune runs`.")
        return _fail(gone, machine, debug)
    except KeyboardInterrupt:
        return _fail(Interrupted(signal.SIGINT, "stopped.", hint="What was saved is intact: see `chattune runs`."), machine, debug)
    except BrokenPipeError:
        silence_broken_pipe()
    except ChattuneError as error:
        return _fail(error, machine, debug)
    except OSError as error:
        said = ChattuneError(f"{error.strerror or error}.", path=_filename(error), rule="a file or folder that can be used")
        return _fail(said, machine, debug, error)
    except MemoryError as error:
        said = ChattuneError("not enough memory.", rule="enough memory", hint="Lower model.size, train.batch_tokens or the context.")
        return _fail(said, machine, debug, error)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        said = ChattuneError(
            f"a bug in chattune: {type(error).__name__}: {text}.", hint="Run it again with --debug and report the traceback."
        )
        return _fail(said, machine, debug, error)
    finally:
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)
    return 0


def _execute(words: list[str]) -> Answer:
    try:
        function, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise _usage(error) from None
    common = bound.arguments.get("common", USUAL)
    if isinstance(common, Common) and common.quiet:
        talk().quiet = True
    answer = function(*bound.args, **bound.kwargs)
    return answer if isinstance(answer, Answer) else Answer("", {"version": chattune.__version__})  # what --help and --version printed


def _usage(error: CycloptsError) -> UsageError:
    """What cyclopts could not parse, in our form."""
    unused = list(getattr(error, "unused_tokens", None) or [])
    command = " ".join(error.command_chain or ())
    if unused and not command and isinstance(error, (UnknownCommandError, UnusedCliTokensError)) and not unused[0].startswith("-"):
        known = [*COMMANDS, "completion"]
        return UnknownName(
            f"no command is called '{plain(unused[0])}'.", value=unused[0], rule=f"one of {', '.join(known)}",
            hint=did_you_mean(unused[0], known) or "See `chattune --help`.",
        )
    if isinstance(error, UnknownOptionError):
        token = getattr(error, "token", None)
        keyword = str(getattr(token, "keyword", None) or getattr(token, "value", None) or "")
        collection = getattr(error, "argument_collection", None) or ()
        known = [name for argument in collection for name in argument.names if name.startswith("--")]
        return UsageError(
            f"no option is called '{plain(keyword)}'.", value=keyword, rule=f"an option of `chattune {command}`",
            hint=did_you_mean(keyword, known) or f"See `chattune {command} --help`.",
        )
    text = " ".join(str(error).split())
    return UsageError(plain(text), rule="a command that can be parsed", hint=f"See `chattune {command} --help`.".replace("  ", " "))


def _print(answer: Answer, machine: bool) -> None:
    if answer.text and not machine:
        print(answer.text)
    if machine:
        print(_as_json(answer.data))
    sys.stdout.flush()


def _as_json(data: Mapping[str, Any]) -> str:
    """One line of JSON; its letters as they are where stdout can write all of them."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False, default=str)
    return text


def _fail(error: ChattuneError, machine: bool, debug: bool, cause: BaseException | None = None) -> int:
    processes.tell_launcher(error)
    if not processes.first():
        if not isinstance(error, (UsageError, Interrupted)):  # the first process met the same, and says so
            print(f"chattune: process {processes.rank()}: {plain(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code
    if debug:
        traceback.print_exception(cause or error)
    if machine:
        print(_as_json(error.as_json()), flush=True)
    print(f"chattune: {plain(str(error)).replace(chr(10), ' ')}", file=sys.stderr, flush=True)
    return error.exit_code


def _filename(error: OSError) -> str | None:
    return str(error.filename) if error.filename is not None else None


def _options_last(words: list[str]) -> list[str]:
    """``chattune --json runs`` means ``chattune runs --json``."""
    moved: list[str] = []
    while words and (words[0] in ("--json", "--quiet", "-q", "--debug", "--home") or words[0].startswith("--home=")):
        count = 2 if words[0] == "--home" and len(words) > 1 else 1
        moved, words = moved + words[:count], words[count:]
    at = words.index("--") if "--" in words else len(words)
    return words[:at] + moved + words[at:]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


__all__ = ["app", "main"]
