"""The helper process that renders chat templates from elsewhere. A program, not a module: it is started by its path.

A request is one line of JSON, ``{"template"}`` or ``{"many": […]}``; each rendering is answered by one line. It imports nothing of
chattune.

A template is a program of its author's. It runs in Jinja's immutable sandbox, in a process that may take little memory and no files,
and that the kernel ends when one rendering lasts too long.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

SECONDS, MEMORY, LARGER = 2.0, 256 << 20, 1 << 20
# Meta's own templates fall back on this day. The day that it is would make the same conversation give other ids tomorrow.
TODAY = ("2024", "07", "26", "Jul", "July")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks for transformers what the assistant says; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that begin with an underscore: Python keeps its inner workings there."""

    def __init__(*arguments: Any, **named: Any) -> None:
        values = dict(*arguments[1:], **named)
        for name in values:
            _refuse_inner(name)
        jinja2.utils.Namespace.__init__(arguments[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inner(name)
        super().__setitem__(name, value)


def _refuse_inner(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} begins with an underscore")


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _date(form: Any) -> str:
    year, month, day, short, long = TODAY
    words = {"Y": year, "y": year[2:], "m": month, "b": short, "B": long, "d": day, "A": "Friday", "a": "Fri"}
    words |= dict.fromkeys("HMS", "00")
    text, parts = "", iter(str(form))
    for part in parts:
        text += words.get(next(parts, ""), "") if part == "%" else part
    return text


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What transformers gives a chat template: the same whitespace rules, tags, filters and functions."""
    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    found.filters["tojson"] = _to_json
    found.globals.update(raise_exception=_refuse, strftime_now=_date, namespace=_Namespace)
    return found


def answer(template: jinja2.Template, variables: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """``{"text"}``, or ``{"refused"}`` with the template's own words, or ``{"broken"}`` with what went wrong in it."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        text = template.render(**{**variables, **request})
        if len(text) > LARGER + 8 * sum(len(message["content"]) for message in request["messages"]):
            return {"broken": f"it makes {len(text)} characters of this conversation"}
        return {"text": text}
    except jinja2.exceptions.SecurityError as error:
        return {"broken": f"it reaches for what a template must not have: {error}"}
    except (jinja2.UndefinedError, jinja2.TemplateSyntaxError) as error:
        return {"broken": str(error)}
    except jinja2.TemplateError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"broken": f"it needs more than {MEMORY >> 20} MiB"}
    except RecursionError:
        return {"broken": "it calls itself without end"}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the conversation, which may go on
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 16}
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    template, variables = None, {}
    for line in sys.stdin:
        request = json.loads(line)
        if "template" in request:
            variables = request["variables"]
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                template = environment().from_string(request["template"])
                found = {"text": ""}
            except MemoryError:
                found = {"broken": f"it needs more than {MEMORY >> 20} MiB"}
            except Exception as error:
                found = {"broken": f"{error} (line {getattr(error, 'lineno', '?')})"}
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps(found), flush=True)
            continue
        for each in request["many"]:
            assert template is not None
            print(json.dumps(answer(template, variables, each)), flush=True)


if __name__ == "__main__":
    main()
