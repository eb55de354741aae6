"""Answers held to a shape (`response_format`, `tool_choice`): tokens that would leave it are masked, by llguidance."""

import json
import threading
from typing import Annotated, Any, Literal

import msgspec
import numpy
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from msgspec import Meta

from toolbox.serving.batching.toolcalls import TAGS, Style
from toolbox.serving.protocol import ChatRequest, Refused, Sampling, Tool

INVALID = "invalid_json_schema"
"""OpenAI's code for a schema that its models can't be held to."""
MOST_CALLS = 8
MOST_ITEMS = 10_000
"""Of all arrays of a schema together: llguidance 1.6 writes a rule for each (100,000 took 237 MB, 10⁹ all memory)."""
MOST_CHARS = 1 << 18
LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)
NO_ARGUMENTS: dict[str, Any] = {"properties": {}, "additionalProperties": False}
SPACING: dict[str, Any] = {"whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"}
"""On one line, as training has it: with any white space allowed, a model may write nothing else for ever."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Named(msgspec.Struct):
    name: str


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Named


class Guide:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, ends: list[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def copy(self) -> "Guide":
        return Guide(self._matcher.deep_copy(), self._ends)

    def mask(self, score: torch.Tensor) -> None:
        """Leave of the next token's logits [vocabulary] those that the grammar takes; an end, once it may end."""
        allowed = numpy.zeros(len(score), bool)
        bits = numpy.unpackbits(numpy.frombuffer(self._matcher.compute_bitmask(), numpy.uint8), bitorder="little")
        allowed[: len(bits)] = bits[: len(allowed)]
        allowed[[end for end in self._ends if end < len(allowed)]] = self._matcher.is_accepting()
        score.masked_fill_(torch.from_numpy(~allowed).to(score.device), -torch.inf)

    def take(self, token: int) -> bool:
        """Go on by `token`; False where the grammar knows no way on, or takes more work than is allowed."""
        return bool(self._matcher.consume_token(token))

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class Guides:
    """The grammars of answers by one tokenizer."""

    def __init__(self, tokenizer: Any, ends: list[int]) -> None:
        self._plain, self._ends = tokenizer, ends
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def make(self, grammar: str) -> Guide:
        """The beginning of an answer by `grammar` (Lark's). Raises Refused where nothing can be written by it."""
        matcher = LLMatcher(self._vocabulary(), grammar, limits=LIMITS, log_level=0)
        if not any(matcher.compute_bitmask()) or matcher.is_error():
            raise Refused(400, "No answer fits the schema: it contradicts itself, or is too large.", INVALID)
        return Guide(matcher, self._ends)

    def _vocabulary(self) -> LLTokenizer:
        """Made when it is first needed: 2 s of CPU and 57 MB for 150,000 tokens."""
        with self._lock:
            if self._tokenizer is None:
                if not hasattr(self._plain, "backend_tokenizer"):
                    raise Refused(400, "This model's tokenizer is of a kind that can't be held to a schema.", INVALID)
                self._tokenizer = from_tokenizer(self._plain, eos_token=self._ends[0] if self._ends else None)
            return self._tokenizer


def grammar(asked: Sampling, style: Style) -> str:
    """The grammar, in llguidance's Lark, that an answer to `asked` is held to; empty where it is free.

    `style`: how calls are written. Raises Refused (400) for a schema that can't be held to.
    """
    if not isinstance(asked, ChatRequest):
        return ""
    shape, forced = _content(asked), _forced(asked)
    if forced:
        return "start: calls\n" + _calls(forced, style, _most(asked))
    if not shape:
        return ""
    if asked.tools and asked.tool_choice != "none":
        calls = _calls(msgspec.convert(asked.tools, list[Tool]), style, _most(asked))
        return f"start: answer | calls\nanswer: %json {shape}\n{calls}"
    return f"start: %json {shape}"


def _content(asked: ChatRequest) -> str:
    """The schema of what is said, as JSON; empty where it is free."""
    if not asked.response_format:
        return ""
    wanted = _converted(asked.response_format, ResponseFormat, "response_format")
    if wanted.type != "json_schema":
        return _schema({"type": "object"}, True, "response_format") if wanted.type == "json_object" else ""
    if not wanted.json_schema or wanted.json_schema.schema is None:
        raise Refused(400, "response_format of type json_schema needs json_schema.schema.", INVALID, "response_format")
    return _schema(wanted.json_schema.schema, bool(wanted.json_schema.strict), "response_format")


def _forced(asked: ChatRequest) -> list[Tool]:
    """The tools of which one has to be called; none where the model may choose."""
    choice = asked.tool_choice
    if choice in (None, "auto", "none"):
        return []
    tools = msgspec.convert(asked.tools or [], list[Tool])
    if choice != "required":
        name = _converted(choice, ToolChoice, "tool_choice").function.name
        tools = [tool for tool in tools if tool.function.name == name]
    if not tools:
        raise Refused(400, "tool_choice wants a tool that is not among tools.", "invalid_value", "tool_choice")
    return tools


def _most(asked: ChatRequest) -> int:
    """How many calls there may be."""
    many = asked.parallel_tool_calls is not False and not isinstance(asked.tool_choice, dict)
    return MOST_CALLS if many else 1


def _calls(tools: list[Tool], style: Style, most: int) -> str:
    opening, closing = map(_text, TAGS.get(style.wrapped, ("", "")))
    bodies = " | ".join(f"call_{place}" for place in range(len(tools)))
    further = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
    lines = [f"calls: call{further}", f"call: {opening} ({bodies}) {closing}"]
    for place, tool in enumerate(tools):
        function = tool.function
        schema = {"type": "object", **(function.parameters or NO_ARGUMENTS)}
        begin = f'{{"name": {_text(function.name)}, "{style.arguments}": '
        lines += [
            f'call_{place}: {_text(begin)} arguments_{place} "}}"',
            f"arguments_{place}: %json {_schema(schema, bool(function.strict), f'tools[{place}]')}",
        ]
    return "\n".join(lines)


def _text(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)


def _schema(schema: dict[str, Any], strict: bool, param: str) -> str:
    """`schema` as llguidance takes it. What it does not know is refused, or left out where the schema is not strict."""
    asked = {**schema, "x-guidance": {**SPACING, "lenient": not strict}}
    text = json.dumps(asked)
    if len(text) > MOST_CHARS or _items(schema) > MOST_ITEMS:
        raise Refused(400, f"The schema in {param} is too large to be held to.", INVALID, param)
    if error := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), limits=LIMITS):
        raise Refused(400, f"The schema in {param} can't be held to: {_sentence(error)}.", INVALID, param)
    return text


def _items(schema: Any) -> int:
    """The sum of all bounds on numbers of items."""
    total, left = 0, [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            bounds = [one.get(name) for name in ("minItems", "maxItems")]
            numbers = [int(min(bound, 1 << 62)) for bound in bounds if isinstance(bound, (int, float))]
            total += max([0, *numbers])  # one below 0 must not make room for another
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
    return total


def _converted(value: Any, kind: Any, param: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Refused(400, f"{param}: {error}", "invalid_value", param) from error


def _sentence(error: str) -> str:
    return " ".join(error.split())[:300]
