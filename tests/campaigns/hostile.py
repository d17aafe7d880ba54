"""What strangers send: bodies, heads and bytes that have brought down servers, and mutations of good requests."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "stub",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "stop": ["x", "y"],
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"30": 5},
        "user": "anna",
        "metadata": {"a": "b"},
        "response_format": {"type": "text"},
        "top_k": 5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
    },
    "/v1/completions": {
        "model": "stub",
        "prompt": ["hello", "who"],
        "max_tokens": 3,
        "logprobs": 2,
        "stop": "x",
        "echo": False,
        "n": 1,
    },
    "/v1/embeddings": {"model": "stub", "input": ["hello", "who"], "encoding_format": "base64", "dimensions": 8},
    "/admin/models": {"model": "stub"},
}
_CHAT = b'{"model":"stub","max_tokens":1,"messages":[{"role":"user","content":%s}]}'
BODIES: list[bytes] = [
    b"",
    b"null",
    b"true",
    b"3",
    b'"text"',
    b"[]",
    b"{}",
    b"{",
    b"}",
    b"{,}",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"\xed\xa0\x80",
    b'{"model":NaN}',
    b'{"model":Infinity}',
    b'{"model":-Infinity}',
    b'{"temperature":1e400}',
    b'{"temperature":' + b"9" * 5000 + b"}",
    b'{"seed":' + b"9" * 400 + b"}",
    b'{"model":"stub","model":"stub"}',
    b'{"model":"\\ud800","messages":[]}',
    b'{"\\udfff":1}',
    _CHAT % b'"\\ud83d"',
    _CHAT % b'"\\u0000"',
    _CHAT % b'"\\ufdd0 <|end|> <|system|>"',
    _CHAT % b"null",
    _CHAT % b"[]",
    _CHAT % b"[null]",
    _CHAT % b'[{"type":"image_url","image_url":{"url":"http://127.0.0.1/"}}]',
    _CHAT % b"{}",
    _CHAT % (b'"' + b"a" * 1_100_000 + b'"'),
    _CHAT % (b'"' + "\U0001f469\u200d".encode() * 100_000 + b'"'),
    b'{"model":"../../etc/passwd","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"stub\\u0000","messages":[]}',
    b'{"model":"stub","messages":[' + b'{"role":"user","content":"x"},' * 5000 + b'{"role":"user","content":"x"}]}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"stop":' + json.dumps(["a"] * 10_000).encode() + b"}",
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"n":1000000}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"logit_bias":{"-1":1}}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"logit_bias":{"99999999999999999999":1}}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"max_tokens":99999999999999999999}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"chat_template":"{{ 1/0 }}"}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":1}}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"prompt_embeds":"AAAA"}',
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":'
    + b'{"a":' * 500
    + b"1"
    + b"}" * 500
    + b"}}]}",
    b'{"model":"stub","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":'
    + b'{"properties":' * 200
    + b"{}"
    + b"}" * 200
    + b"}}}",
    b'{"model":"stub","prompt":[-1]}',
    b'{"model":"stub","prompt":[4294967296]}',
    b'{"model":"stub","prompt":[[]]}',
    b'{"model":"stub","prompt":[1.5]}',
    b'{"model":"stub","prompt":[true]}',
    b'{"model":"stub","prompt":""}',
    b'{"model":"stub","input":""}',
    b'{"model":"stub","input":[]}',
    b'{"model":"stub","input":"x","dimensions":0}',
    b'{"model":"stub","input":"x","dimensions":100000}',
]

_JSON = b"Content-Type: application/json\r\n"
_H = b"Host: 127.0.0.1\r\n"
_POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + _H + _JSON
RAW: list[bytes] = [
    b"\r\n\r\n",
    b"\x00" * 100 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"X: " + b"y" * 80_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"no colon\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"X\x00Y: z\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"X: a\x01b\r\n\r\n",
    b"GET  / HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /%ff%fe%00 HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET //evil.example/ HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\n" + _H + b"\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\n" + _H + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + _H + b"\r\n",
    b"TRACE / HTTP/1.1\r\n" + _H + b"\r\n",
    b"BREW / HTTP/1.1\r\n" + _H + b"\r\n",
    b"HEAD /v1/models HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /v1/models/%2e%2e%2f HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /v1/models/\xc3\xa9 HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /?\x1b]52 HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET / HTTP/1.1\r\n"
    + _H
    + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + _H + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    _POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: gzip\r\n\r\nx",
    _POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    _POST + b"Content-Length: 2\r\n\r\n{}" + b"GET /health HTTP/1.1\r\n" + _H + b"\r\n",
    _POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\n" + _H + b"Content-Length: 2\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\n" + _H + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\n"
    + _H
    + b"Content-Type: multipart/form-data; boundary="
    + b"=" * 3000
    + b"\r\nContent-Length: 2\r\n\r\n--",
    b"POST /v1/chat/completions HTTP/1.1\r\n" + _H + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b",
    b"POST /v1/chat/completions HTTP/1.1\r\n" + _H + b"Content-Type: \xff\xfe; charset=\x80\r\nContent-Length: 2\r\n\r\n{}",
    _POST + b"Authorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    _POST + b"Origin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}",
    _POST + b"Origin: null\r\nContent-Length: 2\r\n\r\n{}",
]

_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    -0.0,
    1e308,
    1 << 63,
    -(1 << 64),
    10**400,
    "",
    "x",
    "\x00",
    "\u202e",
    "<|end|>",
    "{{7*7}}",
    "../x",
    "a" * 5000,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": {}},
    {"__class__": 1},
    {"$ref": "#"},
    [1, "a", None, True],
    "true",
    "1",
    "NaN",
    ["a"] * 50,
    {"a": 1, "b": [2]},
]


def mutated(random: random.Random) -> tuple[str, bytes]:
    """A path, and a good body of it with up to three places changed: values, names, or bytes."""
    path = random.choice(list(GOOD))
    data = copy.deepcopy(GOOD[path])
    for _ in range(random.randint(1, 3)):
        _change(data, random)
    body = json.dumps(data).encode()
    if random.random() < 0.3:
        body = _bytes_changed(bytearray(body), random)
    return path, body


def _change(node: Any, random: random.Random) -> None:
    """Go down to somewhere, and put something else there."""
    while True:
        if isinstance(node, dict) and node:
            key: Any = random.choice(list(node))
        elif isinstance(node, list) and node:
            key = random.randrange(len(node))
        else:
            return
        if isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.6:
            node = node[key]
            continue
        what = random.random()
        if what < 0.6:
            node[key] = copy.deepcopy(random.choice(_VALUES))
        elif what < 0.8 and isinstance(node, dict):
            node[random.choice(["x", "", "model", "stream", "n", "stop", "role", "functions", "best_of", "\x00"])] = random.choice(
                _VALUES
            )
        elif isinstance(node, dict):
            del node[key]
        else:
            node.extend([copy.deepcopy(node[key])] * random.randint(1, 5))
        return


def _bytes_changed(body: bytearray, random: random.Random) -> bytes:
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(body) + 1)
        what = random.random()
        if what < 0.4:
            body[place:place] = bytes(random.randrange(256) for _ in range(random.randint(1, 3)))
        elif what < 0.7:
            del body[place : place + random.randint(1, 5)]
        elif place < len(body):
            body[place] ^= 1 << random.randrange(8)
        body = body or bytearray(b"{")
    return bytes(body)
