"""Grammars: replies that parse, validate and match, whatever the weights; schemas of strangers within limits."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import foreign
import jsonschema_rs
import numpy as np
import pytest
import torch

from chattune.core.errors import SettingError, UsageError
from chattune.generate.grammar import Grammar
from chattune.generate.reply import ChatModel, Sampling
from chattune.models.families.gpt import GPT
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["名字", "age", "tags"],
    "properties": {
        "名字": {"type": "string", "minLength": 1, "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["你好", "👩‍👩‍👧", "a\"b\\c\n", "<|end|>"]}, "minItems": 1, "maxItems": 3},
        "mood": {"const": "très bien"},
    },
}  # fmt: skip
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "nested": {
        "type": "array", "minItems": 1, "maxItems": 2,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
    },
    "numbers": {
        "type": "object", "additionalProperties": False, "required": ["x", "n", "half"],
        "properties": {
            "x": {"type": "number", "minimum": -1.5, "maximum": 1e4}, "n": {"type": "integer", "minimum": -20, "maximum": 1000},
            "half": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 10},
        },
    },
    "enum": {"enum": ["red", 7, None, True, 1.5, {"deep": ["你好"]}]},
    "const": {"const": {"greeting": "你好 👋🏽", "n": [1, 2.5, None]}},
    "patterns": {
        "type": "object", "additionalProperties": False, "required": ["word", "day"],
        "properties": {"word": {"type": "string", "pattern": "^[一-龥]{2,4}$"}, "day": {"type": "string", "format": "date"}},
    },
    "either": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 4}, {"$ref": "#/$defs/pair"}], "$defs": {
        "pair": {"type": "array", "prefixItems": [{"const": "a"}, {"type": "integer", "minimum": 1, "maximum": 3}], "items": False,
                 "minItems": 2}}},
    "tree": {
        "type": "object", "additionalProperties": False, "required": ["value"],
        "properties": {"value": {"enum": [1, 2]}, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
    },
}  # fmt: skip
REGEXES = [
    r"(yes|no|也许)", r"[0-9]{3}-[0-9]{4}", r"(?i)hello,? w(o|ö)rld!", r"[一-龥]{1,5}[。！]", r"(ab|c){2,5}d?",
    r"\$[1-9][0-9]{0,3}\.[0-9]{2}", r"(👍|👎🏽){1,3}", r"<\|end\|>", r"[a-z]{1,8}(/[a-z]{1,8}){0,2}", r"",
    r"^anchored$", r"a/b | c", "line\nline",
]  # fmt: skip


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(Tokenizer.train_at_most(["hello there, who are you? 你好你好 "] * 3, 290))


@pytest.fixture(scope="module")
def wild(template: Template) -> ChatModel:
    """Random weights: replies of all kinds."""
    shape = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "context": 512, "init": {"name": "normal", "std": 0.2}}
    return ChatModel(GPT(**shape, init_outputs="same").build(template.tokenizer.vocabulary, seed=0), template)


def drawn(spec: dict[str, Any], tokenizer: Tokenizer, seed: int, limit: int = 400) -> tuple[str, list[int], bool]:
    """Text, ids, and whether it came to its end: a reply of equally likely tokens, of which the grammar lets some through."""
    random, matcher = np.random.default_rng(seed), Grammar.compile(spec, tokenizer).matcher()
    ids: list[int] = []
    for _ in range(limit):
        logits = torch.from_numpy(random.gumbel(size=tokenizer.vocabulary))
        matcher.mask(logits)
        token = int(logits.argmax())
        if token in tokenizer.ends:
            return tokenizer.decode(ids), ids, True
        matcher.advance(token)
        ids.append(token)
    return tokenizer.decode(ids), ids, False


def validates(text: str, schema: Any) -> bool:
    return jsonschema_rs.is_valid(schema, json.loads(text), validate_formats=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_reply_under_a_schema_parses_and_validates(name: str, template: Template) -> None:
    texts = set()
    for seed in range(60):
        text, ids, ended = drawn({"json_schema": SCHEMAS[name]}, template.tokenizer, seed)
        assert ended, text
        assert validates(text, SCHEMAS[name]), text
        assert not set(ids) & set(template.tokenizer.control.values())
        assert text.encode(), "no half characters, no lone surrogates"
        texts.add(text)
    assert len(texts) > 1 or name == "const"


WORDS = ["a", "名", "x y", "é", "\n", "<|end|>", "👍🏽", "", "/", "\\", 'a"b', "\u2028", "$ref"]


def some_value(random: np.random.Generator, depth: int = 0) -> Any:
    """Anything that JSON can hold, small."""
    kind = random.integers(7 if depth < 2 else 5)
    if kind == 5:
        return [some_value(random, depth + 1) for _ in range(random.integers(3))]
    if kind == 6:
        return {str(random.choice(WORDS)): some_value(random, depth + 1) for _ in range(random.integers(3))}
    number, word = int(random.integers(-50, 50)), str(random.choice(WORDS))
    return [None, bool(random.integers(2)), number, round(random.uniform(-9, 9), 2), word][kind]


def some_schema(random: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    """A schema whose every value is short."""
    kind, low = random.integers(9 if depth < 3 else 5), int(random.integers(-99, 99))
    if kind == 0:
        return {"enum": [some_value(random) for _ in range(random.integers(1, 4))]}
    if kind == 1:
        return {"type": "string", "minLength": int(random.integers(3)), "maxLength": int(random.integers(3, 9))}
    if kind == 2:
        return {"type": "integer", "minimum": low, "maximum": low + int(random.integers(200))}
    if kind == 3:
        return {"type": "number", "exclusiveMinimum": low / 10, "maximum": low / 10 + round(random.uniform(0.1, 99), 2)}
    if kind == 4:
        return {"type": ["null", "boolean"]}
    if kind == 5:
        return {"type": "array", "items": some_schema(random, depth + 1), "maxItems": int(random.integers(1, 4))}
    if kind == 6:
        return {"anyOf": [some_schema(random, depth + 1) for _ in range(2)]}
    properties = {str(random.choice(WORDS)): some_schema(random, depth + 1) for _ in range(random.integers(1, 4))}
    required = [key for key in properties if random.random() < 0.6]
    further = False if random.random() < 0.7 else some_schema(random, 3)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": further}


@pytest.mark.parametrize("seed", range(4))
def test_replies_under_schemas_made_at_random_validate(seed: int, template: Template) -> None:
    random, complete = np.random.default_rng(seed), 0
    for number in range(25):
        schema = some_schema(random)
        for draw in range(2):
            text, _, ended = drawn({"json_schema": schema}, template.tokenizer, 2 * number + draw)
            complete += ended
            assert not ended or validates(text, schema), f"{schema}: {text}"
    assert complete > 40, "few are longer than the limit"


@pytest.mark.parametrize("regex", REGEXES)
def test_every_reply_under_a_regular_expression_matches_it_whole(regex: str, template: Template) -> None:
    for seed in range(25):
        text, ids, ended = drawn({"regex": regex}, template.tokenizer, seed)
        assert ended
        assert re.fullmatch(regex, text), text
        assert not set(ids) & set(template.tokenizer.control.values())


@pytest.mark.requirement("R210")
def test_formats_are_kept_always_with_a_grammar_and_by_chance_without(wild: ChatModel) -> None:
    many = [[{"role": "user", "content": f"number {n}"}] for n in range(24)]
    plain = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 160}
    checks = {
        "person": ({"json_schema": PERSON}, lambda text: validates(text, PERSON)),
        "choice": ({"regex": "(positive|negative|neutral)"}, lambda text: text in {"positive", "negative", "neutral"}),
        "phone": ({"regex": "[0-9]{3}-[0-9]{4}"}, lambda text: bool(re.fullmatch("[0-9]{3}-[0-9]{4}", text))),
    }

    def succeeds(check: Any, text: str) -> bool:
        try:
            return bool(check(text))
        except ValueError:
            return False

    for name, (spec, check) in checks.items():
        with_it = [succeeds(check, reply.text) for reply in wild.replies(many, Sampling(**plain, grammar=spec))]
        without = [succeeds(check, reply.text) for reply in wild.replies(many, Sampling(**plain))]
        assert np.mean(with_it) == 1.0, name
        assert np.mean(without) < 0.1, name
    # The length is kept by its own settings, at both ends.
    for reply in wild.replies(many, Sampling(**{**plain, "max_tokens": 9}, min_tokens=5)):
        assert 5 <= len(reply.tokens) <= 9


def test_any_object_is_json_or_was_cut_by_the_limit(template: Template) -> None:
    ended = 0
    for seed in range(60):
        text, _, complete = drawn({"json_object": True}, template.tokenizer, seed, limit=100)
        if complete:
            ended += 1
            assert isinstance(json.loads(text), dict)
        assert text.startswith("{")
        between = re.sub(r'"(\\.|[^"\\])*"?', "s", text)  # what strings hold is theirs
        assert max(map(len, re.findall(r"\s+", between)), default=0) <= 41, "white space is bounded"
    assert ended > 20


@pytest.mark.parametrize("kind", sorted(foreign.KINDS))
def test_tokenizers_from_elsewhere_follow_grammars_too(kind: str, tmp_path: Path) -> None:
    foreign.write(tmp_path, kind)
    tokenizer = Tokenizer.load(tmp_path)
    control = {*tokenizer.never, *tokenizer.ends, *tokenizer.control_tokens.ids.values()}  # type: ignore[attr-defined]
    for seed in range(12):
        for spec, right in (
            ({"json_schema": PERSON}, lambda text: validates(text, PERSON)),
            ({"regex": " ?[a-z]{2,9} (你好|<think>)"}, lambda text: re.fullmatch(" ?[a-z]{2,9} (你好|<think>)", text)),
        ):
            text, ids, ended = drawn(spec, tokenizer, seed)
            assert ended
            assert right(text), text
            assert not set(ids) & control


@pytest.mark.security
@pytest.mark.requirement("I17")
def test_what_a_schema_says_never_becomes_a_control_token(template: Template) -> None:
    tokenizer = template.tokenizer
    for mark in ("<|end|>", "<|system|>", "\xff", "\uffff"):
        const = ({"json_schema": {"const": mark}}, json.dumps(mark, ensure_ascii=False))
        for spec, text in (const, ({"regex": re.escape(mark)}, mark)):
            said, ids, ended = drawn(spec, tokenizer, 0)
            assert ended and said == text
            assert min(ids) > max(tokenizer.control.values())
    assert tokenizer.control["end"] not in tokenizer.encode("<|end|>"), "the positive control: the same text, and no such id"


def test_the_end_comes_where_the_grammar_is_complete_and_nowhere_else(template: Template) -> None:
    tokenizer = template.tokenizer
    matcher = Grammar.compile({"regex": "a{2,3}"}, tokenizer).matcher()
    (a,), end = tokenizer.encode("a"), tokenizer.ends[0]
    for allowed, allows_end, finished in (({a}, False, False), ({a}, False, False), ({a, end}, True, False), ({end}, True, True)):
        logits = torch.zeros(tokenizer.vocabulary + 7)  # models may have more ids than their tokenizer
        matcher.mask(logits)
        assert set((logits > -torch.inf).nonzero().flatten().tolist()) == allowed
        assert (matcher.allows_end, matcher.finished) == (allows_end, finished)
        if not finished:
            matcher.advance(a)
    with pytest.raises(ValueError, match="does not follow the grammar here"):
        matcher.advance(a)


def test_one_token_stays_possible_where_all_others_were_ruled_out_before(template: Template) -> None:
    tokenizer = template.tokenizer
    matcher = Grammar.compile({"regex": "yes"}, tokenizer).matcher()
    logits = torch.zeros(tokenizer.vocabulary)
    logits[[token for token, piece in enumerate(tokenizer.pieces) if piece.startswith(b"y")]] = -torch.inf
    matcher.mask(logits)
    assert {tokenizer.pieces[int(token)] for token in (logits == 0).nonzero()} == {b"y"}


def test_replies_of_one_grammar_do_not_disturb_each_other(template: Template) -> None:
    grammar = Grammar.compile({"regex": "ab|ba"}, template.tokenizer)
    first, second = grammar.matcher(), grammar.matcher()
    a, b = template.tokenizer.encode("a")[0], template.tokenizer.encode("b")[0]
    first.advance(a)
    second.advance(b)
    first.advance(b)
    second.advance(a)
    assert first.finished and second.finished
    assert not grammar.matcher().allows_end


def test_threads_that_share_a_grammar_get_the_replies_of_one(template: Template) -> None:
    def some(start: int) -> list[str]:
        return [drawn({"json_schema": PERSON}, template.tokenizer, seed)[0] for seed in range(start, start + 10)]

    starts = (0, 10, 20, 30)
    alone = [some(start) for start in starts]
    with ThreadPoolExecutor(len(starts)) as pool:
        assert [*pool.map(some, starts)] == alone


def test_keys_have_one_spelling_so_that_none_escapes_its_schema(template: Template) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    matcher = Grammar.compile({"json_schema": schema}, template.tokenizer).matcher()
    *before, backslash = template.tokenizer.encode('{"a":1,"\\')  # from here on "\u0061" would be "a" once more
    for token in [*before, backslash]:
        matcher.advance(token)
    logits = torch.zeros(template.tokenizer.vocabulary)
    matcher.mask(logits)
    assert {template.tokenizer.pieces[int(token)][:1] for token in (logits == 0).nonzero()} == {bytes([b]) for b in b'"\\bfnrt'}


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "one key"), "two": ({"regex": "a", "json_object": True}, "one key"),
    "typo": ({"regexp": "a"}, "Did you mean 'regex'"), "off": ({"json_object": False}, "no other value"),
    "number": ({"regex": 3}, "is text"), "list": ({"json_schema": [1]}, "is an object"),
    "open": ({"regex": "("}, "unclosed group"), "look": ({"regex": "(?=a)b"}, "look-around"),
    "back": ({"regex": r"(a)\1"}, "backreferences"), "none": ({"regex": r"[^\s\S]"}, "nothing can satisfy"),
    "type": ({"json_schema": {"type": "strin"}}, "strin"), "not": ({"json_schema": {"not": {"type": "string"}}}, '"not"'),
    "unique": ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "one": ({"json_schema": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}}, "oneOf"),
    "false": ({"json_schema": False}, "is an object"),
    "gap": ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
    "format": ({"json_schema": {"type": "string", "format": "zork"}}, "zork"),
    "pattern": ({"json_schema": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
    "nowhere": ({"json_schema": {"$ref": "#/$defs/none"}}, "does not exist"),
    "nan": ({"json_schema": {"const": float("nan")}}, "not JSON"), "set": ({"json_schema": {"enum": [{1}]}}, "not JSON"),
    "surrogate": ({"json_schema": {"const": "\ud800"}}, "not JSON"), "guided": ({"json_schema": {"x-guidance": {}}}, "x-guidance"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_grammar_that_cannot_be_kept_is_refused_with_its_reason(name: str, template: Template) -> None:
    spec, says = WRONG[name]
    with pytest.raises(SettingError, match=re.escape(says)) as caught:
        Grammar.compile(spec, template.tokenizer)
    assert caught.value.path == "grammar"
    assert caught.value.rule


@pytest.mark.security
@pytest.mark.requirement("I17")
@pytest.mark.parametrize("address", ["https://127.0.0.1:9/schema.json", "file:///etc/passwd", "other.json"])
def test_nothing_is_fetched_for_a_schema(address: str, template: Template) -> None:
    with pytest.raises(SettingError, match="grammar cannot be used"):
        Grammar.compile({"json_schema": {"$ref": address}}, template.tokenizer)


def chain(comb: str, length: int = 30) -> dict[str, Any]:
    """Two references to what holds two references …: 2 to the power of `length` when written out."""
    inner = {f"d{n}": {comb: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**inner, f"d{length}": {"type": "string"}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def doubling() -> list[Any]:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


MEETING = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{n}}}b.*$"} for n in range(1, 25)]}
HOSTILE: dict[str, Any] = {
    "deep": {"json_schema": nested(5000)}, "itself": {"json_schema": itself()}, "doubling": {"json_schema": {"enum": [doubling()]}},
    "long enum": {"json_schema": {"enum": [f"value {n}" for n in range(100_000)]}},
    "an enum within the limits": {"json_schema": {"enum": [f"value {n * 7919 % 10**6}" for n in range(3000)]}},
    "many properties": {"json_schema": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}}},
    "required of itself": {"json_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    "a circle": {"json_schema": {"$ref": "#"}}, "all of all": {"json_schema": chain("allOf")},
    "any of any": {"json_schema": chain("anyOf")},
    "crossing": {"json_schema": {"allOf": [{"anyOf": [{"properties": {f"a{n}": {"const": m}}} for m in range(3)]} for n in range(12)]}},
    "patterns that meet": {"json_schema": MEETING},
    "divisors that meet": {"json_schema": {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]}},
    "a large divisor": {"json_schema": {"type": "integer", "multipleOf": 999_983}},
    "long": {"json_schema": {"type": "string", "minLength": 10**9}}, "many": {"json_schema": {"type": "array", "minItems": 10**9}},
    "parentheses": {"regex": "(" * 3000 + ")" * 3000}, "counts of counts": {"regex": "(((a{1,999}){1,999}){1,999}){1,999}"},
    "states": {"regex": "(a|b)*a(a|b){999}"}, "overlapping": {"regex": "|".join(f".{{0,{n}}}z{n}" for n in range(400))},
    "a long one": {"regex": "a" * 10_000}, "unicode": {"regex": r"(?i)(\w{1,99}\W{1,99}){1,99}"},
}  # fmt: skip
PROGRAM = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
sys.path.insert(0, sys.argv[1])
import test_grammar as t
from chattune.core.errors import SettingError, UsageError
from chattune.generate import grammar
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammar._try = lambda text: None
tokenizer = t.Tokenizer.train_at_most(["hello there"] * 3, 280)
for name in sys.argv[2:] or t.HOSTILE:
    began, said = time.process_time(), "followed"
    try:
        t.drawn(t.HOSTILE[name], tokenizer, 0, limit=60)
    except (SettingError, UsageError) as error:
        said = str(error)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([name, said, time.process_time() - began, peak >> 10, children.ru_maxrss >> 10]), flush=True)
"""


def hostile(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), *names], capture_output=True, text=True, check=False
    )


@pytest.mark.security
@pytest.mark.requirement("I17")
def test_hostile_grammars_are_refused_or_bounded_in_time_and_memory() -> None:
    done = hostile()
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: (said, seconds, ours, theirs) for name, said, seconds, ours, theirs in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == HOSTILE.keys()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for name, (said, seconds, ours, theirs) in found.items():
        assert seconds < 5, f"{name}: {seconds} s of the processor"  # 2 in the helper process, as many here, and the tokens
        assert ours < max(before, 450) + 300, f"{name}: {ours} MiB"  # torch and its libraries hold some 300 to 400
        assert theirs < 512, f"{name}: {theirs} MiB in the helper process"
        assert said == "followed" or said.startswith("grammar: "), said
    assert {name for name, (said, *_) in found.items() if "too long to compile" in said} == {
        "patterns that meet", "divisors that meet", "a large divisor",
    }  # fmt: skip
    assert {name for name, (said, *_) in found.items() if "too large" in said} >= {"deep", "itself", "doubling", "long enum"}


@pytest.mark.security
@pytest.mark.requirement("I17")
def test_without_the_trial_a_schema_of_a_kilobyte_ends_the_process() -> None:
    assert len(json.dumps(MEETING)) < 1500
    assert hostile("patterns that meet").returncode < 0, "the positive control"


def test_what_is_too_hard_to_follow_is_said_and_not_followed_wrongly(template: Template) -> None:
    with pytest.raises(UsageError, match=r"too hard to follow|cannot be used") as caught:
        drawn({"regex": r"(\p{L}|\p{N}|\p{Han}|\w)*" * 100}, template.tokenizer, 0)
    assert caught.value.path == "grammar"
