"""What travels: requests and answers in OpenAI's shapes. Strict: what is not understood is refused by its name, never ignored.

A body is read once, by `parsed`: no NaN, no key twice, no lone surrogate, no number beyond float64. Then it is validated without
coercion (`true` is no number, `"1"` neither). Every mistake leaves as ``{"error": {message, type, param, code}}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from chattune.core.errors import did_you_mean

Body = TypeVar("Body", bound=BaseModel)
CHOICES, STOPS, TOP_LOGPROBS, MESSAGES, INPUTS = 8, 4, 20, 1024, 128  # the most of each that one request may ask for
TEXT = 1 << 20  # characters of one text
SCHEMA_DEPTH, SCHEMA_NODES = 24, 2048  # of a JSON schema
TOOLS = 64

# Parameters of OpenAI's that no model here can follow: named in the refusal with what to do.
UNSUPPORTED = {
    "functions": "Use 'tools'.", "function_call": "Use 'tool_choice'.", "audio": "Only text is generated.",
    "prediction": "Repeated text is predicted without it.", "web_search_options": "No model here searches the web.",
    "reasoning_effort": "", "reasoning": "", "verbosity": "", "moderation": "", "best_of": "Use 'n', and choose yourself.",
    "suffix": "", "chat_template": "The model's own template is used.", "chat_template_kwargs": "The model's own template is used.",
    "prompt_embeds": "", "input_type": "",
}  # fmt: skip
# Parameters that change nothing in an answer here; each with the values for which that is true (none: any).
WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "user": None, "metadata": None, "safety_identifier": None, "prompt_cache_key": None, "prompt_cache_retention": None,
    "store": (False,), "service_tier": ("auto", "default"), "modalities": (["text"],), "echo": (False,),
}  # fmt: skip


class WireError(Exception):
    """An answer that is an error: `status`, and what stands in ``error``; `retry_after` in whole seconds."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after
        self.kind = kind or KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def encoded(data: Any) -> bytes:
    """One JSON text; a surrogate that an error has to show stays an escape."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is, or a `WireError` of status 400."""
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once)
    except UnicodeDecodeError:
        raise WireError(400, "The body is not UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise WireError(400, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:  # JSONDecodeError is one; so is a number of thousands of digits
        raise WireError(400, f"The body is not valid JSON: {' '.join(str(error).split())[:200]}.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise WireError(400, f"The body is a JSON {_json_type(data)}, not an object.", code="invalid_json")
    if b"\\u" in body:
        _refuse_surrogates(data)
    return data


def understood(model: type[Body], data: Mapping[str, Any]) -> Body:
    """`data` as a request of this kind, or a `WireError` of status 400 that names the parameter."""
    asked = {}
    for name, value in data.items():
        if name in UNSUPPORTED and name not in model.model_fields:
            if value is not None and not (name == "best_of" and value == 1 and value is not True):
                raise WireError(
                    400, f"Unsupported parameter: '{name}'. {UNSUPPORTED[name]}".rstrip(), param=name, code="unsupported_parameter"
                )
        elif name in WITHOUT_EFFECT and name not in model.model_fields:
            values = WITHOUT_EFFECT[name]
            if value is not None and values is not None and not any(value == one and type(value) is type(one) for one in values):
                raise WireError(
                    400, f"Unsupported value of '{name}': only {' or '.join(map(json.dumps, values))} is taken.", param=name,
                    code="unsupported_value",
                )  # fmt: skip
        else:
            asked[name] = value
    try:
        return model.model_validate(asked)
    except ValidationError as error:
        raise _explained(error, model) from None


class Wire(BaseModel):
    """A group of parameters, exactly as documented."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def _said(value: Any) -> Any:
    """A content: text, or OpenAI's list of parts, of which text is understood."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise PydanticCustomError("part", "each part of a content must be an object with a 'type'")
        if part["type"] != "text":
            raise PydanticCustomError("part", "only parts of type 'text' are supported, not '{type}'", {"type": part["type"][:40]})
        if not isinstance(part.get("text"), str) or not part.keys() <= {"type", "text"}:
            raise PydanticCustomError("part", "a part of type 'text' must have a 'text' and nothing else")
        texts.append(part["text"])
    return "".join(texts)


Content = Annotated[
    str, Field(max_length=TEXT), BeforeValidator(_said),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object", "required": ["type", "text"], "additionalProperties": False,
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                },
            ]
        }
    ),
]  # fmt: skip


class FunctionCall(Wire):
    """A function that the assistant called: its name, and its arguments as a JSON text."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(max_length=TEXT)


class ToolCall(Wire):
    """One call of a tool within a message of the assistant."""

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    """One turn of the history. `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=TOOLS)
    tool_call_id: str | None = Field(None, max_length=128)
    # What a client sends back when it appends an answer of ours to its history.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("content", "a message of role '{role}' needs a content", {"role": self.role})
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "only the assistant calls tools")
        if self.tool_call_id is not None and self.role != "tool":
            raise PydanticCustomError("tool_call_id", "only an answer of a tool has a 'tool_call_id'")
        return self

    @property
    def speaker(self) -> str:
        return "system" if self.role == "developer" else self.role


class StreamOptions(Wire):
    """`include_usage`: a last chunk with the usage of the whole request."""

    include_usage: StrictBool | None = None


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    nodes = 0
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if depth > SCHEMA_DEPTH or nodes > SCHEMA_NODES:
            raise PydanticCustomError(
                "schema", "a schema may be {depth} levels deep and have {nodes} parts", {"depth": SCHEMA_DEPTH, "nodes": SCHEMA_NODES}
            )
        inner = node.values() if isinstance(node, dict) else node
        waiting += [(item, depth + 1) for item in inner if isinstance(item, (dict, list))]
    return value


Schema = Annotated[dict[str, Any], AfterValidator(_schema)]


class Function(Wire):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=TEXT)
    parameters: Schema | None = None
    strict: StrictBool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class ChosenName(Wire):
    name: str = Field(max_length=64)


class ChosenTool(Wire):
    type: Literal["function"]
    function: ChosenName


class JsonSchema(Wire):
    """A schema that the reply follows. `strict` is kept either way."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=TEXT)
    schema_: Schema = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Wire):
    """The form of the reply: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("json_schema", "'json_schema' stands with the type 'json_schema', and only there")
        return self


def _bias(value: Any) -> Any:
    """Ids are the keys of a JSON object, and so texts."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not re.fullmatch(r"[0-9]{1,9}", key):
            raise PydanticCustomError("token", "{key} is no token id", {"key": json.dumps(key[:40])})
    return {int(key): weight for key, weight in value.items()}


Bias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024), BeforeValidator(_bias),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}, "maxProperties": 1024}
    ),
]  # fmt: skip
Stop = Annotated[str, Field(min_length=1, max_length=256)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Stop], Field(max_length=STOPS), BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": STOPS},
            ]
        }
    ),
]  # fmt: skip
Model = Annotated[str, Field(min_length=1, max_length=200)]


class Generation(Wire):
    """What chat and completions share. Below the line: our own, beyond OpenAI's. What is left out is as the model's maker advises."""

    model: Model
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Bias | None = None
    stop: Stops | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    response_format: ResponseFormat | None = None
    # ours
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1, le=10)
    no_repeat_ngram: int | None = Field(None, ge=0, le=64)
    min_tokens: int | None = Field(None, ge=0, le=1 << 20)
    regex: str | None = Field(None, min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "'stream_options' stands with \"stream\": true only")
        if self.regex is not None and self.response_format is not None and self.response_format.type != "text":
            raise PydanticCustomError("regex", "'regex' and 'response_format' exclude each other")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens that were asked for."""
        return self.max_tokens


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    logprobs: StrictBool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: StrictBool | None = None

    @model_validator(mode="after")
    def _agreeing_in_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "'top_logprobs' stands with \"logprobs\": true only")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "'max_tokens' and 'max_completion_tokens' say different things")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else None
        if named is not None and self.tools and named not in [tool.function.name for tool in self.tools]:
            raise PydanticCustomError("tool_choice", "no tool is called '{name}'", {"name": named})
        if not self.tools and self.tool_choice not in (None, "none"):
            raise PydanticCustomError("tool_choice", "'tool_choice' stands with 'tools' only")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def _prompts(value: Any) -> Any:
    """One prompt, or several, each a text or a list of ids: always several."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(item) is int for item in value)):
        return [value]
    return value


Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]
_TEXTS_OR_IDS = {
    "anyOf": [
        {"type": "string"}, {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    ]
}  # fmt: skip
Inputs = Annotated[
    list[Annotated[str, Field(max_length=TEXT)] | Ids], Field(min_length=1, max_length=INPUTS), BeforeValidator(_prompts),
    WithJsonSchema(_TEXTS_OR_IDS),
]  # fmt: skip


class CompletionRequest(Generation):
    """``POST /v1/completions``: a text goes on."""

    prompt: Inputs
    logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)


class EmbeddingRequest(Wire):
    """``POST /v1/embeddings``."""

    model: Model
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=1 << 16)


def listed_model(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def sse(data: Any) -> bytes:
    """One event of a stream: ``data: …`` and an empty line."""
    return b"data: " + (data if isinstance(data, bytes) else encoded(data)) + b"\n\n"


DONE = sse(b"[DONE]")


def _explained(error: ValidationError, model: type[BaseModel]) -> WireError:
    """The first mistake that pydantic found, as OpenAI would say it."""
    details = error.errors(include_url=False, include_input=False)
    # Of an alternative that was not taken pydantic tells every branch; the deepest one is what was meant.
    first = max((one for one in details if one["loc"][:1] == details[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    first = details[0] if details[0]["type"] == "extra_forbidden" else first
    param = ""
    for place in first["loc"]:
        if isinstance(place, int):
            param += f"[{place}]"
        elif re.fullmatch(r"[A-Za-z_0-9]{1,64}", place) and place not in _BRANCHES:
            param += f".{place}" if param else place
        elif first["type"] == "extra_forbidden" and place is first["loc"][-1]:
            param += f".{json.dumps(place[:64])}" if param else json.dumps(place[:64])
    if first["type"] == "extra_forbidden":
        near = did_you_mean(str(first["loc"][-1])[:64], model.model_fields) if len(first["loc"]) == 1 else ""
        near = near if near.startswith("Did") else ""
        return WireError(400, f"Unknown parameter: '{param}'. {near}".rstrip(), param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return WireError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    said = first["msg"].rstrip(".")
    if not param and first["type"] in model.model_fields:
        param = first["type"]
    return WireError(
        400, f"Invalid '{param}': {said[0].lower()}{said[1:]}." if param else f"{said}.", param=param or None, code="invalid_value"
    )


_BRANCHES = ("str", "function-before", "constrained-str", "literal", "ChosenTool", "nullable")


def _refuse_surrogates(data: Any) -> None:
    waiting = [data]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            try:
                node.encode()
            except UnicodeEncodeError:
                raise WireError(400, "The body holds a lone surrogate, which is no character.", code="invalid_json") from None
        elif isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {json.dumps(key[:64])} stands twice in one object")
            seen.add(key)
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:32]} is beyond what a number can hold")
    return value


def _json_type(data: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(data), "number")
