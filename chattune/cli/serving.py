"""Commands that serve: the server itself, and the keys to it."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from chattune import story
from chattune.cli.answer import USUAL, Answer, Common, table
from chattune.cli.decoding import SpeculateOption, by_option, speculation_of
from chattune.core.artifact import Home, check_name
from chattune.core.errors import UsageError, did_you_mean
from chattune.core.progress import talk

if TYPE_CHECKING:
    import socket

    from chattune.generate.engine import Engine
    from chattune.generate.reply import Speculation
    from chattune.serve.limits import Limits
    from chattune.serve.models import NativeModel
    from chattune.serve.upstream import Upstream

KEYS = "keys.json"  # beside the runs
KeyFileOption = Annotated[Path | None, Parameter(help="the file with the keys; without one: keys.json beside the runs")]


def serve(
    *runs: str, host: Annotated[str, Parameter(help="the address to listen at; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: any that is free")] = 8000,
    slots: Annotated[int, Parameter(help="replies of one model decoded side by side")] = 8,
    context: Annotated[int | None, Parameter(help="tokens of prompt and reply together; without it: as many as the model can")] = None,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "int8", "int4"],
        Parameter(help="how weights are held; auto: in int8 where the compiled step can run the model, else as they are"),
    ] = "auto",
    speculate: SpeculateOption = None,
    draft: Annotated[
        list[str] | None,
        Parameter(negative="", help="a smaller run that proposes tokens, or name=RUN where several are served; repeatable"),
    ] = None,
    together: Annotated[
        list[str] | None, Parameter(negative="", help="runs that answer together under a name, as name=RUN+RUN; repeatable")
    ] = None,
    upstream: Annotated[
        list[str] | None, Parameter(negative="", help="another server's model, as name=http://HOST:PORT/v1; repeatable")
    ] = None,
    upstream_key: Annotated[list[str] | None, Parameter(negative="", help="its key, as name=env:VARIABLE or name=file:PATH")] = None,
    keys: KeyFileOption = None,
    allow_host: Annotated[list[str] | None, Parameter(negative="", help="a name by which the server may be called; repeatable")] = None,
    limit: Annotated[
        list[str] | None, Parameter(negative="", help="a limit to change, as queue=200; `chattune serve --limit help` lists them")
    ] = None,
    common: Common = USUAL,
) -> Answer:
    """Serve models behind OpenAI's interfaces, with a page to try them; Ctrl-C ends it when all is answered.

    Parameters
    ----------
    runs
        import, train or evaluate runs: a name or the beginning of a digest; each is served under that name
    """
    from chattune.core.config import override, validate
    from chattune.serve.limits import Limits

    if limit == ["help"]:
        rows = [(row["name"], row["default"], row["meaning"]) for row in Limits.describe()]
        return Answer(table(rows, ["limit", "default", "meaning"]), {"limits": Limits.describe()})
    limits = validate(Limits, override({}, limit or ()), prefix="--limit")
    behind = _named(upstream, "--upstream")
    secrets = _named(upstream_key, "--upstream-key")
    joint = {name: tuple(members.split("+")) for name, members in _named(together, "--together").items()}
    names = _served_names(runs, joint, behind, secrets)
    home = Home(common.home)
    addresses = {  # a mistake is told before torch comes
        name: tuple(str(story.checkpoint_of(home.find(member))) for member in members) for name, members in names.items()
    }
    drafts = {name: str(story.checkpoint_of(home.find(member))) for name, member in _drafts(draft, names).items()}
    speculation = speculation_of(speculate)
    if not names:
        _refuse_for_others({"--weights": None if weights == "auto" else weights, "--speculate": speculate, "--context": context})
    _check_numbers(slots, context, port)
    from chattune.serve.keys import KeyFile

    key_file = KeyFile(keys or common.home / KEYS)
    if keys is not None and not keys.exists():
        raise UsageError("is missing.", path=str(keys), rule="a file of keys", hint="Make one: `chattune keys create NAME --file …`.")
    _refuse_open_door(host, bool(key_file.all()))
    others = _upstreams(behind, secrets, limits)
    from chattune.serve.app import Server
    from chattune.serve.models import Shelf
    from chattune.serve.process import bind
    from chattune.serve.process import serve as run_server

    with bind(host, port) as bound:
        how = _Serving(common.home, slots, context, weights, speculation, drafts, limits)
        shelf = Shelf(lambda name: how.model(name, (name,)))
        for name, members in addresses.items():
            shelf.put(how.model(name, members))
        for other in others:
            shelf.put(other)
        facts = _hello(bound, [*shelf.all()], bool(key_file.all()))
        hosts = frozenset(name.lower() for name in allow_host or ())
        run_server(Server(shelf, limits, key_file, hosts), bound, lambda: _tell(facts, common))
    return Answer("", {"ended": True})


def keys(
    what: Literal["list", "create", "revoke"] = "list", name: str | None = None, /, *,
    scopes: Annotated[
        str | None, Parameter(help="what the key is for, of chat, embeddings, metrics, admin; without it: chat,embeddings")
    ] = None,
    requests: Annotated[int | None, Parameter(help="the most requests a minute")] = None,
    tokens: Annotated[int | None, Parameter(help="the most tokens a minute, of prompts and replies")] = None,
    file: KeyFileOption = None, common: Common = USUAL,
) -> Answer:
    """Make, list and revoke keys to the server. A key is shown once, when it is made; its file holds only digests.

    Parameters
    ----------
    what
        list, create or revoke
    name
        of the key
    """
    from chattune.serve.keys import SCOPES, USUAL_SCOPES, KeyFile

    for option, value in (("--scopes", scopes), ("--requests", requests), ("--tokens", tokens)):
        if what != "create" and value is not None:
            raise UsageError(
                f"belongs to a key that is made, not to `chattune keys {what}`.", path=option, value=value, rule="with `keys create`",
                hint="Leave it out; to change a key, revoke it and make it anew.",
            )  # fmt: skip
    if what == "list" and name is not None:
        raise UsageError(f"`chattune keys list` lists all keys, not '{name}' alone.", path="NAME", value=name, rule="no name",
                         hint="Leave it out.")  # fmt: skip
    store = KeyFile(file or common.home / KEYS)
    if what == "list":
        known = [key.model_dump(mode="json", exclude={"digest"}) for key in store.all()]
        rows = [(key["name"], ", ".join(key["scopes"]), key["requests"] or "–", key["tokens"] or "–") for key in known]
        return Answer(table(rows, ["key", "for", "requests a minute", "tokens a minute"]), {"file": str(store.path), "keys": known})
    if name is None:
        raise UsageError(f"which key is to be {what}d?", path="NAME", rule="a name", hint=f"Say `chattune keys {what} NAME`.")
    if what == "revoke":
        store.revoke(name)
        return Answer(f"The key '{name}' is void from now on.", {"revoked": name})
    asked = USUAL_SCOPES if scopes is None else tuple(scope.strip() for scope in scopes.split(","))
    for scope in asked:
        if scope not in SCOPES:
            raise UsageError(
                f"no scope is called '{scope}'.", path="--scopes", value=scope, rule=f"of {', '.join(SCOPES)}",
                hint=did_you_mean(scope, SCOPES),
            )  # fmt: skip
    key = store.create(name, asked, requests, tokens)  # type: ignore[arg-type]
    told = f"{key}\nIt is shown this once. Send it as 'Authorization: Bearer …', or set OPENAI_API_KEY to it."
    return Answer(told, {"name": name, "key": key, "file": str(store.path)})


@dataclass(frozen=True)
class _Serving:
    """How runs are served. `drafts`: the run that proposes to a model, by the model's name."""

    home: Path
    slots: int
    context: int | None
    weights: str
    speculation: Speculation | None
    drafts: Mapping[str, str]
    limits: Limits

    def model(self, name: str, runs: tuple[str, ...]) -> NativeModel:
        """A run as it is served; several are one model that averages their probabilities, each by the fastest runner it has."""
        from chattune.generate.ensemble import together
        from chattune.serve.models import NativeModel

        chats = [story.load(run, self.home) for run in runs]
        chat = chats[0] if len(chats) == 1 else together(chats)
        with by_option(name):
            decoding = story.decoding(self.weights, self.speculation, self.drafts.get(name), self.home)
            decoding.check(chat)
            engine = decoding.engine(chat, slots=self.slots, length=self.context)
        talk().print(f"{name}: {engine.runner.why}{_proposals(engine, self.drafts.get(name))}", markup=False)
        return NativeModel(name, chat, engine, slots=self.slots, limits=self.limits, context=engine.length)


def _proposals(engine: Engine, draft: str | None) -> str:
    """What is proposed to the model, for people."""
    if engine.speculation is None:
        return ""
    told = f"; up to {engine.speculation.lookup} tokens are looked up"
    return told if draft is None else f"{told}, up to {engine.speculation.draft} proposed by {Path(draft).name}"


def _drafts(said: list[str] | None, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The run that proposes to each model, as ``name=RUN``, or as ``RUN`` where one model is served."""
    if said and len(said) == 1 and "=" not in said[0]:
        if len(names) != 1:
            raise UsageError(
                f"'{said[0]}' could propose to each of {len(names)} models.", path="--draft", value=said[0], rule="name=RUN",
                hint=f"Say to which: --draft {next(iter(names), 'NAME')}={said[0]}.",
            )
        return dict.fromkeys(names, said[0])
    found = _named(said, "--draft")
    for name in found.keys() - names.keys():
        raise UsageError(
            f"no run is served as '{name}'.", path="--draft", value=name, rule="the name of a model served",
            hint=did_you_mean(name, names) or "See `chattune runs`.",
        )
    return found


def _upstreams(behind: dict[str, str], secrets: dict[str, str], limits: Limits) -> list[Upstream]:
    from chattune.serve.upstream import Upstream, key_from

    return [Upstream(name, url, limits, key=key_from(secrets[name]) if name in secrets else None) for name, url in behind.items()]


def _named(pairs: list[str] | None, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not value or name in found:
            raise UsageError(f"'{pair}' is not name=value, or its name stands twice.", path=option, value=pair, rule="name=value")
        found[check_name(name)] = value
    return found


def _served_names(
    runs: tuple[str, ...], joint: dict[str, tuple[str, ...]], behind: dict[str, str], secrets: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """The runs behind each name: a run's name is as it was called, or the last part of its path."""
    alone = {check_name(Path(run).name): (run,) for run in runs}
    if len(alone) < len(runs) or alone.keys() & joint.keys() or (alone.keys() | joint.keys()) & behind.keys():
        raise UsageError("two models have the same name.", path="RUNS", value=[*runs, *joint, *behind], rule="each name once")
    for name, members in joint.items():
        if len(members) < 2 or "" in members:
            said = "+".join(members)
            raise UsageError(f"'{said}' names no two runs.", path="--together", value=said, rule=f"{name}=RUN+RUN")
    if secrets.keys() - behind.keys():
        name = sorted(secrets.keys() - behind.keys())[0]
        raise UsageError(f"there is no upstream '{name}'.", path="--upstream-key", value=name, rule="the name of an --upstream")
    if not (alone or joint or behind):
        raise UsageError(
            "there is nothing to serve.", path="RUNS", rule="a run, or an --upstream",
            hint="See `chattune runs`; say `chattune serve RUN`.",
        )  # fmt: skip
    return {**alone, **joint}


def _refuse_for_others(computing: Mapping[str, Any]) -> None:
    """Where other servers compute every reply, nothing said here can change how."""
    for option, value in computing.items():
        if value is not None:
            raise UsageError(
                "acts on runs, and only models of other servers are served.", path=option, value=value, rule="with a run",
                hint="Leave it out, or name a run; set it at the other server.",
            )  # fmt: skip


def _check_numbers(slots: int, context: int | None, port: int) -> None:
    for option, value, low, high in (("--slots", slots, 1, 1024), ("--context", context, 16, 1 << 24), ("--port", port, 0, 65535)):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{value} is not possible: {low} to {high} is.", path=option, value=value, rule=f"{low} to {high}")


def _refuse_open_door(host: str, guarded: bool) -> None:
    """Beyond this machine only with keys."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not guarded:
        raise UsageError(
            f"{host} can be reached from other machines, and no key is set up: anybody could use the models.", path="--host",
            value=host, rule="a loopback address, or at least one key", hint="Make a key with `chattune keys create NAME`.",
        )  # fmt: skip


def _hello(bound: socket.socket, models: list[str], guarded: bool) -> dict[str, Any]:
    """What to do with the server that will listen there."""
    address, port = bound.getsockname()[:2]
    url, model = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}", models[0]
    header = " -H 'authorization: Bearer KEY'" if guarded else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
    key = "KEY" if guarded else "none"
    python = [
        "from openai import OpenAI", f'client = OpenAI(base_url="{url}/v1", api_key="{key}")',
        f'said = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "hello"}}])',
        "print(said.choices[0].message.content)",
    ]  # fmt: skip
    return {
        "url": url, "models": models, "keys": guarded, "page": f"{url}/", "python": "\n".join(python),
        "curl": f"curl {url}/v1/chat/completions{header} -H 'content-type: application/json' -d '{body}'",
    }  # fmt: skip


def _tell(facts: dict[str, Any], common: Common) -> None:
    if common.json:
        print(json.dumps(facts, ensure_ascii=False), flush=True)
        return
    lines = [
        f"serving {', '.join(facts['models'])} at {facts['url']}   (open it in a browser; Ctrl-C ends it)",
        "A key is asked for." if facts["keys"] else "No key is asked for on this machine; `chattune keys create NAME` makes one.",
        "", facts["curl"], "", facts["python"], "",
    ]  # fmt: skip
    talk().print("\n".join(lines), markup=False)
