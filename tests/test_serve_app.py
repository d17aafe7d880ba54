"""The server's answers byte by byte, its doors, its figures and logs, models that come and go, and upstreams that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import ANSWER, client, in_process, listening, native, server, stub, user

import chattune
from chattune.cli import main
from chattune.core.errors import UnknownName, UsageError
from chattune.serve.app import Front, application
from chattune.serve.keys import KeyFile
from chattune.serve.limits import Limits
from chattune.serve.upstream import Upstream, key_from


@pytest.fixture(scope="module")
def app() -> Iterator[Front]:
    """A stub that says a token a millisecond, without a socket."""
    model = stub(seconds=0.001)
    model.engine.start()
    yield application(server(model))
    model.engine.close()


def call(app: Front, method: str, path: str, data: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, found, body = asyncio.run(in_process(app, method, path, b"" if data is None else json.dumps(data).encode(), named))
    return status, found, json.loads(body) if found["content-type"] == "application/json" else body.decode()


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "stub", "messages": user("hello"), "max_tokens": 3, **more}


def golden(text: str) -> str:
    """A transcript without what differs each time."""
    return re.sub(r'"created":\d+', '"created":0', re.sub(r'"id":"(\w+)-\w+"', r'"id":"\1-0"', text))


@pytest.mark.requirement("I32", "S6")
def test_a_streamed_chat_is_this_transcript(app: Front) -> None:
    status, headers, body = call(app, "POST", "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True}))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    head = '{"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"stub","choices":['
    assert golden(body) == "".join(
        f"data: {event}\n\n"
        for event in (
            head + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}',
            head + '{"index":0,"delta":{"content":"你"},"logprobs":null,"finish_reason":null}],"usage":null}',
            head + '{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}',
            head + '],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}',
            "[DONE]",
        )
    )


@pytest.mark.requirement("I32", "S6")
def test_a_streamed_text_is_this_transcript(app: Front) -> None:
    asked = {"model": "stub", "prompt": "hello", "max_tokens": 3, "stream": True}
    body = call(app, "POST", "/v1/completions", asked)[2]
    head = '{"id":"cmpl-0","object":"text_completion","created":0,"model":"stub","choices":['
    assert golden(body) == "".join(
        f"data: {event}\n\n"
        for event in (
            head + '{"index":0,"text":"你","logprobs":null,"finish_reason":null}]}',
            head + '{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}',
            "[DONE]",
        )
    )


@pytest.mark.requirement("I32")
def test_a_plain_chat_is_this_answer(app: Front) -> None:
    status, headers, _ = call(app, "POST", "/v1/chat/completions", chat())
    body = asyncio.run(in_process(app, "POST", "/v1/chat/completions", json.dumps(chat()).encode()))[2].decode()
    assert status == 200 and re.fullmatch("req_[0-9a-f]{24}", headers["x-request-id"])
    assert golden(body) == (
        '{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"stub","choices":[{"index":0,"message":'
        '{"role":"assistant","content":"你","refusal":null},"logprobs":null,"finish_reason":"length"}],'
        '"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}'
    )


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
        ("PUT", "/v1/models", None, 405, "method_not_allowed"),
        ("GET", "/v1/models/large", None, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", chat(model="large"), 404, "model_not_found"),
        ("POST", "/v1/chat/completions", chat(temprature=1), 400, "unknown_parameter"),
        ("POST", "/v1/chat/completions", chat(functions=[]), 400, "unsupported_parameter"),
        ("POST", "/v1/chat/completions", chat(store=True), 400, "unsupported_value"),
        ("POST", "/v1/chat/completions", chat(n=9), 400, "invalid_value"),
        ("POST", "/v1/completions", {}, 400, "missing_required_parameter"),
        ("POST", "/v1/chat/completions", chat(max_tokens=509), 400, "context_length_exceeded"),
        ("POST", "/v1/chat/completions", chat(messages=user("hello " * 600)), 400, "context_length_exceeded"),
        ("POST", "/v1/embeddings", {"model": "stub", "input": "who " * 600}, 400, "context_length_exceeded"),
        ("POST", "/admin/models", {"model": "../../x"}, 400, "invalid_value"),
        ("DELETE", "/admin/models/large", None, 404, "model_not_found"),
    ],
)
def test_every_refusal_has_its_status_and_its_code(app: Front, method: str, path: str, data: Any, status: int, code: str) -> None:
    found = call(app, method, path, data)
    assert (found[0], found[2]["error"]["code"]) == (status, code)
    assert found[2]["error"]["message"].endswith((".", "?"))


@pytest.mark.requirement("I20")
def test_what_can_never_fit_is_refused_with_the_numbers(app: Front) -> None:
    said = call(app, "POST", "/v1/chat/completions", chat(max_tokens=509))[2]["error"]
    assert said["message"] == "This model's context holds 512 tokens; the prompt has 5 and the reply asks for 509."
    assert call(app, "POST", "/v1/chat/completions", chat(max_tokens=507, stop="\n"))[0] == 200, "the positive control"


def test_what_changes_nothing_is_accepted_and_what_would_be_ignored_is_refused(app: Front) -> None:
    harmless = {
        "user": "anna",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "stop": None,
        "n": None,
        "seed": None,
        "functions": None,
    }
    assert call(app, "POST", "/v1/chat/completions", chat(**harmless))[0] == 200
    for name in ("reasoning_effort", "audio", "prediction", "web_search_options", "verbosity", "suffix", "chat_template_kwargs"):
        status, _, found = call(app, "POST", "/v1/chat/completions", chat(**{name: {}}))
        assert (status, found["error"]["param"], found["error"]["code"]) == (400, name, "unsupported_parameter")


@pytest.mark.security
@pytest.mark.requirement("I11")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8000"}, 403),
        ({"host": "localhost.evil"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "[::1]:80"}, 200),
        ({"host": "LOCALHOST:1"}, 200),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}, 200),
        ({"host": "chat.home"}, 200),
    ],
)
def test_foreign_hosts_and_origins_are_refused(headers: dict[str, str], status: int) -> None:
    app = application(server(stub(), hosts=frozenset({"chat.home"})))
    assert call(app, "GET", "/v1/models", **headers)[0] == status
    found = call(app, "GET", "/v1/models", **headers)[1]
    assert not any(name.startswith("access-control") for name in found), "no other origin may read an answer"


@pytest.mark.security
def test_scopes_open_their_doors_and_no_other(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = {scope: keys.create(scope, (scope,)) for scope in ("chat", "embeddings", "metrics", "admin")}  # type: ignore[arg-type]
    model = stub(seconds=0.001)
    model.engine.start()
    app = application(server(model, keys=keys))
    doors: list[tuple[str, str, str, Any]] = [
        ("chat", "POST", "/v1/chat/completions", chat()),
        ("chat", "POST", "/v1/completions", {"model": "stub", "prompt": "x", "max_tokens": 1}),
        ("embeddings", "POST", "/v1/embeddings", {"model": "stub", "input": "x"}),
        ("metrics", "GET", "/metrics", None),
        ("admin", "POST", "/admin/models", {"model": "stub"}),
        ("admin", "DELETE", "/admin/models/none", None),
    ]
    for scope, method, path, data in doors:
        assert call(app, method, path, data)[0] == 401
        for other, key in made.items():
            status = call(app, method, path, data, authorization=f"Bearer {key}")[0]
            assert (status == 403) == (other != scope), (path, other, status)
    assert call(app, "GET", "/v1/models")[0] == 401
    assert call(app, "GET", "/v1/models", authorization=f"Bearer {made['metrics']}")[0] == 200
    for path in ("/health", "/ready", "/"):
        assert call(app, "GET", path)[0] == 200, "these tell nothing"
    model.engine.close()


def test_a_keys_tokens_are_reserved_and_what_was_not_used_is_given_back(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.create("anna", tokens=100)
    model = stub(seconds=0.0001)
    model.engine.start()
    app = application(server(model, keys=keys))
    asked = {"authorization": f"Bearer {key}"}
    status, _, said = call(app, "POST", "/v1/chat/completions", chat(max_tokens=200), **asked)
    assert (status, said["error"]["code"]) == (400, "tokens_exceed_limit"), "it can never be: no use in coming back"
    assert call(app, "POST", "/v1/chat/completions", chat(max_tokens=80), **asked)[0] == 200
    status, headers, said = call(app, "POST", "/v1/chat/completions", chat(max_tokens=80), **asked)
    assert (status, said["error"]["type"], said["error"]["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert 30 <= int(headers["retry-after"]) <= 60
    model.engine.close()


@pytest.mark.security
@pytest.mark.requirement("I35", "I23")
def test_logs_and_figures_hold_no_prompts_answers_or_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.create("anna", ("chat", "metrics"))
    model = stub(seconds=0.0001)
    model.engine.start()
    app = application(server(model, keys=keys))
    planted = "planted-secret\x1b]52;\r\nforged"
    with caplog.at_level(logging.INFO, "chattune.serve"):
        asked = {"authorization": f"Bearer {key}", "x-planted": "planted-secret"}
        call(app, "POST", "/v1/chat/completions", chat(messages=user(planted), stop=["planted-secret"], user="planted-secret"), **asked)
        call(app, "POST", "/v1/chat/completions", {"planted-secret": planted}, **asked)
        call(app, "GET", "/planted-secret%0d%0aforged?planted-secret", **asked)
        call(app, "GET", "/v1/models", authorization="Bearer planted-secret")
    lines = [record.getMessage() for record in caplog.records]
    written = "\n".join([*lines, call(app, "GET", "/metrics", **asked)[2], keys.path.read_text()])
    assert "planted" not in written and key not in written and "forged" not in written and ANSWER[:4] not in written
    facts = json.loads(lines[0])
    assert (facts["key"], facts["model"], facts["route"], facts["status"]) == ("anna", "stub", "/v1/chat/completions", 200)
    assert facts["completion_tokens"] == 3 and facts["ms"] > 0
    assert len(lines) == 4 and not any("\n" in line or "\x1b" in line for line in lines)
    model.engine.close()


def test_figures_follow_what_happened(app: Front) -> None:
    before = figures(app)
    call(app, "POST", "/v1/chat/completions", chat())
    call(app, "POST", "/v1/chat/completions", chat(n="x"))
    after = figures(app)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown['chattune_requests_total{route="/v1/chat/completions",status="200"}'] == 1
    assert grown['chattune_requests_total{route="/v1/chat/completions",status="400"}'] == 1
    assert grown['chattune_tokens_total{kind="completion",model="stub"}'] == 3
    assert grown['chattune_engine_generated_total{model="stub"}'] == 3
    assert grown['chattune_refused_total{code="invalid_value"}'] == 1
    assert after['chattune_admission_used{model="stub"}'] == after['chattune_admission_waiting{model="stub"}'] == 0


def figures(app: Front) -> dict[str, float]:
    lines = call(app, "GET", "/metrics")[2].splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_models_are_loaded_and_unloaded_by_name_while_others_answer() -> None:
    def bring(name: str) -> Any:
        if name != "later":
            raise UnknownName(f"no run is called '{name}'.")
        return native(name)

    with listening(server(native(), bring=bring)) as url, client(url) as ask:

        def said(model: str) -> int:
            found = ask.post("/v1/chat/completions", json={"model": model, "messages": user("who"), "max_tokens": 2})
            return int(found.status_code)

        assert (said("tiny"), said("later")) == (200, 404)
        assert ask.post("/admin/models", json={"model": "later"}).json()["id"] == "later"
        assert (said("tiny"), said("later")) == (200, 200)
        assert ask.post("/admin/models", json={"model": "later"}).status_code == 409
        assert ask.post("/admin/models", json={"model": "none"}).status_code == 404
        assert [model["id"] for model in ask.get("/v1/models").json()["data"]] == ["tiny", "later"]
        assert ask.delete("/admin/models/tiny").json() == {"id": "tiny", "object": "model", "deleted": True}
        assert (said("tiny"), said("later")) == (404, 200)
        assert ask.delete("/admin/models/later").status_code == 200
        assert ask.get("/ready").status_code == 503, "no model is left"


def test_an_unloaded_model_first_answers_what_it_took() -> None:
    model = stub(seconds=0.01)
    with listening(server(model)) as url, client(url) as ask, client(url) as keeper:
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(ask.post("/v1/chat/completions", json=chat(max_tokens=40))))
        asking.start()
        while not model.admission.used:
            time.sleep(0.001)
        assert keeper.delete("/admin/models/stub").status_code == 200
        asking.join()
        assert found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] == 40


def test_an_engine_that_fails_is_told_plain_and_in_a_stream() -> None:
    class Failing:
        def submit(self, ask: Any, deliver: Any) -> int:
            from chattune.generate.reply import ReplyEvent

            deliver(ReplyEvent("he", 20))
            deliver(ReplyEvent("", None, "error"))
            return 0

        def cancel(self, ticket: Any) -> None: ...

    model = stub()
    model.engine = Failing()  # type: ignore[assignment]
    app = application(server(model))
    status, _, said = call(app, "POST", "/v1/chat/completions", chat())
    assert (status, said["error"]["code"]) == (500, "engine_error")
    status, _, body = call(app, "POST", "/v1/chat/completions", chat(stream=True))
    assert status == 200 and '"code":"engine_error"' in body and "[DONE]" not in body


def test_a_request_that_takes_too_long_is_ended_and_told() -> None:
    limits = Limits(request_seconds=0.1, queue_seconds=0.1)
    model = stub(seconds=0.01, limits=limits)
    model.engine.start()
    app = application(server(model, limits=limits))
    status, _, said = call(app, "POST", "/v1/chat/completions", chat(max_tokens=400))
    assert (status, said["error"]["code"]) == (504, "timeout")
    body = call(app, "POST", "/v1/chat/completions", chat(max_tokens=400, stream=True))[2]
    assert '"code":"timeout"' in body and "[DONE]" not in body
    assert model.admission.used == 0
    model.engine.close()


class Behind(BaseHTTPRequestHandler):
    """A server that answers as it is told to."""

    answers: dict[str, Any] = {}

    def do_GET(self) -> None:
        self._say(200, {"object": "list", "data": [{"id": "other"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answers["authorization"] = self.headers.get("authorization")
        answer = self.answers["now"]
        if isinstance(answer, bytes):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)
        else:
            self._say(*answer)

    def _say(self, status: int, data: Any, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def behind() -> Iterator[tuple[str, dict[str, Any]]]:
    with HTTPServer(("127.0.0.1", 0), Behind) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{other.server_port}/v1", Behind.answers
        other.shutdown()
        thread.join()


def test_failures_of_an_upstream_are_told_as_such_and_not_passed_through() -> None:
    secret = "the-upstreams-key"
    refusal = {"error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "c"}}
    with behind() as (address, answers):
        app = application(server(Upstream("far", address, Limits(), key=secret)))

        def asked(now: Any, **more: Any) -> tuple[int, Any]:
            answers["now"] = now
            status, _, found = call(app, "POST", "/v1/chat/completions", chat(model="far", **more))
            assert secret not in str(found) and "127.0.0.1" not in str(found)
            return status, found

        whole = {"id": "x", "model": "other", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
        assert asked((200, whole)) == (200, whole | {"model": "far"})
        assert answers["authorization"] == f"Bearer {secret}"
        assert asked((400, refusal)) == (400, refusal)
        for now, status, code in (
            ((401, {"error": {"message": secret}}), 502, "upstream_error"),
            ((500, b"Traceback"), 502, "upstream_error"),
            (
                (
                    302,
                    b"",
                ),
                502,
                "upstream_error",
            ),
            ((200, b"<html>"), 502, "upstream_error"),
            ((200, b"[]"), 502, "upstream_error"),
            ((503, b""), 503, "upstream_busy"),
            ((404, refusal), 502, "c"),
        ):
            found = asked(now)
            assert (found[0], found[1]["error"]["code"]) == (status, code), now
        chunk = b'data: {"id":"x","model":"other","choices":[{"delta":{"content":"hi"}}]}\n\n'
        usage = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
        _, text = asked(b": comment\n\n" + chunk + usage + b"data: [DONE]\n\n", stream=True)
        assert text.count("data: ") == 2 and '"model":"far"' in text and text.endswith("data: [DONE]\n\n"), "usage was not asked for"
        for bad in (chunk, chunk + b"data: {nonsense\n\n", chunk + b'data: {"error":{"message":"' + secret.encode() + b'"}}\n\n'):
            _, text = asked(bad, stream=True)
            assert '"code":"upstream_error"' in text and "[DONE]" not in text
        assert figures(app)['chattune_tokens_total{kind="completion",model="far"}'] == 4
    assert call(app, "POST", "/v1/chat/completions", chat(model="far"))[0] == 502, "it is gone"


def test_addresses_and_keys_of_upstreams_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("", "x", "file:///etc/passwd", "http://user:pass@host/v1", "http://host/v1?x=1", "gopher://host"):
        with pytest.raises(UsageError, match="not the address"):
            Upstream("far", url, Limits())
    monkeypatch.setenv("FAR_KEY", "abc\n")
    (tmp_path / "key").write_text("def\n")
    assert (key_from("env:FAR_KEY"), key_from(f"file:{tmp_path / 'key'}")) == ("abc", "def")
    for place in ("abc", "env:NOT_THERE", "file:/not/there", ""):
        with pytest.raises(UsageError, match="no key"):
            key_from(place)


@pytest.mark.security
@pytest.mark.requirement("I11")
def test_beyond_this_machine_a_server_needs_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    behind = ["--upstream", "far=http://127.0.0.1:9/v1", "--home", str(tmp_path)]
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        assert main(["serve", "--host", host, "--port", "0", *behind]) == 2
        assert "no key is set up" in capsys.readouterr().err
    assert main(["keys", "create", "anna", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("ct-")
    assert main(["serve", "--host", "192.0.2.1", "--port", "0", *behind]) == 2
    assert "cannot listen" in capsys.readouterr().err, "with a key it is tried; this address is nobody's"


def test_mistakes_at_the_start_are_told_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = "far=http://127.0.0.1:9/v1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, said in (
            ([], "nothing to serve"),
            (["nowhere"], "no run is called 'nowhere'"),
            (["--together", "duo=one"], "names no two runs"),
            (["--together", "duo=one+two"], "no run is called 'one'"),
            (["--together", "far=one+two", "--upstream", far], "the same name"),
            (["--upstream", "far"], "not name=value"),
            (["--upstream", far, "--upstream", far], "stands twice"),
            (["--upstream", far, "--upstream-key", "x=env:A"], "no upstream 'x'"),
            (["--upstream", far, "--upstream-key", "far=env:NOT_THERE"], "no key"),
            (["--upstream", far, "--slots", "0"], "1 to 1024"),
            (["--upstream", far, "--draft", "small"], "'small' could propose to each of 0 models"),
            (["--upstream", far, "--draft", "fra=small"], "no run is served as 'fra'"),
            (["--upstream", far, "--speculate", "looking"], "--speculate: 'looking' proposes nothing"),
            (["--upstream", far, "--limit", "queu=3"], "Did you mean 'queue'"),
            (["--upstream", far, "--port", "70000"], "0 to 65535"),
            (["--upstream", far, "--keys", str(tmp_path / "none")], "is missing"),
            (["--upstream", far, "--port", str(taken.getsockname()[1])], "cannot listen"),
        ):
            assert main(["serve", *words, "--home", str(tmp_path)]) == 2, words
            assert said in capsys.readouterr().err, words


@pytest.mark.requirement("S4")
def test_a_trained_run_is_served_from_the_command_line_until_a_signal(told: Any) -> None:
    home = told.run.parent
    words = [sys.executable, "-m", "chattune.cli", "serve", "first", "--port", "0", "--home", str(home), "--json", "--slots", "2"]
    words += ["--weights", "float32"]
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert child.stdout and child.stderr
    line = child.stdout.readline()
    facts = json.loads(line or child.stderr.read())
    assert facts["models"] == ["first"] and facts["url"].startswith("http://127.0.0.1:")
    with client(facts["url"]) as ask:
        found = ask.post(
            "/v1/chat/completions", json={"model": "first", "messages": user("do you like apples?"), "max_tokens": 5, "seed": 1}
        )
        assert found.status_code == 200, found.text
        expected = chattune.load("first", home).reply("do you like apples?", max_tokens=5, seed=1)
        assert found.json()["choices"][0]["message"]["content"] == expected
    ran = subprocess.run(["sh", "-c", facts["curl"]], capture_output=True, text=True, timeout=30)
    assert json.loads(ran.stdout)["object"] == "chat.completion", "the line that is printed works"
    ran = subprocess.run([sys.executable, "-c", facts["python"]], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    child.send_signal(signal.SIGTERM)
    out, log = child.communicate(timeout=20)
    assert child.returncode == 0, log
    assert json.loads(out.splitlines()[-1]) == {"ended": True}
    assert "apples" not in log and '"route": "/v1/chat/completions"' in log


@pytest.mark.requirement("R189")
def test_runs_that_answer_together_are_served_as_one_model(told: Any) -> None:
    home, name = told.run.parent, told.run.name
    words = [sys.executable, "-m", "chattune.cli", "serve", "--together", f"duo=first+{name}", "--port", "0", "--home", str(home)]
    child = subprocess.Popen(
        [*words, "--json", "--weights", "float32"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout and child.stderr
    facts = json.loads(child.stdout.readline() or child.stderr.read())
    assert facts["models"] == ["duo"]
    with client(facts["url"]) as ask:
        body = {"model": "duo", "messages": user("do you like apples?"), "max_tokens": 5, "seed": 1}
        found = ask.post("/v1/chat/completions", json=body)
        assert found.status_code == 200, found.text
        expected = chattune.load("first", home).reply("do you like apples?", max_tokens=5, seed=1)
        assert found.json()["choices"][0]["message"]["content"] == expected, "the same model twice is that model"
    child.send_signal(signal.SIGTERM)
    _, log = child.communicate(timeout=20)
    assert child.returncode == 0, log
    assert "2 models together" in log


def test_proposals_are_asked_for_on_the_command_line_and_counted_in_the_figures(told: Any) -> None:
    home = told.run.parent
    words = [sys.executable, "-m", "chattune.cli", "serve", "first", "--port", "0", "--home", str(home), "--json", "--slots", "2"]
    words += ["--weights", "float32", "--speculate", "{lookup: 4, match: 1}", "--draft", told.run.name]
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert child.stdout and child.stderr
    facts = json.loads(child.stdout.readline() or child.stderr.read())
    with client(facts["url"]) as ask:
        body = {"model": "first", "messages": user("do you like apples?"), "max_tokens": 20, "min_tokens": 12, "temperature": 0}
        found = ask.post("/v1/chat/completions", json=body)
        assert found.status_code == 200, found.text
        sampling = {"max_tokens": 20, "min_tokens": 12, "temperature": 0}
        expected = chattune.load("first", home).reply("do you like apples?", **sampling)
        assert found.json()["choices"][0]["message"]["content"] == expected
        figures = dict(line.rsplit(" ", 1) for line in ask.get("/metrics").text.splitlines() if "engine" in line and line[0] != "#")
    proposed, accepted, steps = (
        float(figures[f'chattune_engine_{name}_total{{model="first"}}']) for name in ("proposed", "accepted", "steps")
    )
    assert 0 < accepted <= proposed
    assert steps < 12, "the model as its own draft model saves steps"
    child.send_signal(signal.SIGTERM)
    _, log = child.communicate(timeout=20)
    assert f"up to 4 tokens are looked up, up to 4 proposed by {told.run.name}" in log


@pytest.mark.requirement("S3", "I18")
@pytest.mark.parametrize("stream", [True, False])
def test_the_real_engine_stops_for_who_has_gone(stream: bool) -> None:
    model = native(context=4096, slots=2)
    with listening(server(model)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as line:
            asked = {"model": "tiny", "messages": user("who"), "max_tokens": 4000, "min_tokens": 4000, "stream": stream}
            body = json.dumps(asked).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            end = time.monotonic() + 10
            while model.engine.load().generated_total < 5 and time.monotonic() < end:
                time.sleep(0.001)
        end = time.monotonic() + 0.5
        while model.engine.load().running and time.monotonic() < end:
            time.sleep(0.001)
        load = model.engine.load()
        assert (load.running, load.waiting, load.cancelled_total) == (0, 0, 1)
        assert 5 <= load.generated_total < 2000, "far from the end"
