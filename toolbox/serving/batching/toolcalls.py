"""Calls of tools in what a model wrote, in the formats of the common families; anything else stays text."""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from toolbox.templates import calling

MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=", "{")
"""How calls begin: Qwen's and Hermes', Mistral's, Llama's; a bare object is Llama 3's, and that of written-out rows."""
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_XML = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_OBJECT = re.compile(r"(?:\A|\n)\s*\{")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
TAGS = {"hermes": ("<tool_call>\n", "\n</tool_call>")}
"""What stands around a call that is forced, by the manners of `templates.calling`; in others nothing does."""
_FORCED = re.compile(r'(?:<tool_call>\n)?\{"name": ("(?:[^"\\]|\\.)*"), "(?:arguments|parameters)": ')
_BETWEEN = re.compile(r"\}(?:\n</tool_call>)?\n")


class Style(msgspec.Struct, frozen=True):
    """How calls are written where they are forced: as the chat template has them, as far as that is JSON."""

    wrapped: str = ""
    """A key of TAGS; empty: bare."""
    arguments: str = "arguments"

    @classmethod
    def of(cls, template: str) -> "Style":
        named = calling.style(template)
        return cls(named if named in TAGS else "", "parameters" if named == "llama3" else "arguments")


class Call(msgspec.Struct, frozen=True):
    name: str
    arguments: str
    """JSON."""

    def told(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def certain(text: str) -> int:
    """How many characters of an unfinished answer are no part of a call, whatever follows."""
    begins = [place for place in (text.find(mark) for mark in MARKS[:-1]) if place >= 0]
    if bare := _OBJECT.search(text):
        begins.append(bare.start())
    if begins:
        return min(begins)
    open_end = max(
        (size for mark in MARKS[:-1] for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0
    )
    return min(len(text) - open_end, len(text.rstrip()))


def read(text: str, names: Sequence[str]) -> tuple[str, list[Call]]:
    """(what is said besides, the calls) of an answer; all of it and none where not every call is of one of `names`."""
    for begin, calls in (_tagged(text), _mistral(text), _bare(text)):
        found = [call for call in calls if call.name in names]
        if found and len(found) == len(calls):
            return text[:begin].strip(), found
    return text, []


def read_forced(text: str, names: Sequence[str]) -> tuple[str, list[Call]]:
    """As `read`, of an answer that was held to calls, whatever stands in their arguments; the last may be cut off."""
    calls: list[Call] = []
    place = 0
    while (begin := _FORCED.match(text, place)) and (name := json.loads(begin[1])) in names:
        try:
            _value, end = json.JSONDecoder().raw_decode(text, begin.end())
        except ValueError:
            end = len(text)
        calls.append(Call(name, text[begin.end() : end]))
        between = _BETWEEN.match(text, end)
        place = between.end() if between else len(text)
    return ("", calls) if calls else (text, [])


def _tagged(text: str) -> tuple[int, list[Call]]:
    found = [*_TAGGED.finditer(text)]
    bodies = [match[1] for match in found] or [match[0] for match in _XML.finditer(text)]
    begin = found[0].start() if found else max(text.find("<function="), 0)
    return begin, [call for body in bodies for call in _body(body)]


def _body(body: str) -> Iterator[Call]:
    if match := _XML.search(body):  # Qwen3-Coder's
        values = {name: _value(value) for name, value in _PARAMETER.findall(match[2])}
        yield Call(match[1].strip(), msgspec.json.encode(values).decode())
    else:
        yield from _objects(body)


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _mistral(text: str) -> tuple[int, list[Call]]:
    begin = text.find("[TOOL_CALLS]")
    return max(begin, 0), [*_objects(text[begin:].removeprefix("[TOOL_CALLS]"))] if begin >= 0 else []


def _bare(text: str) -> tuple[int, list[Call]]:
    """Objects on lines of their own, at the answer's end: as training writes them where a template has no place."""
    text = text.removesuffix("<|eom_id|>")
    begin = text.find("<|python_tag|>")
    if begin >= 0:
        return begin, [*_objects(text[begin:].removeprefix("<|python_tag|>"))]
    lines = text.rstrip().split("\n")
    count = 0
    while count < len(lines) and lines[-1 - count].strip().startswith("{"):
        count += 1
    calls = [call for line in lines[len(lines) - count :] for call in _objects(line)] if count else []
    if len(calls) != count:  # one object over several lines, as Llama 3 may write it
        return 0, [*_objects(text)]
    return len("\n".join(lines[: len(lines) - count])), calls


def _objects(text: str) -> Iterator[Call]:
    """The calls of a JSON object or of a list of them; none where it is anything else."""
    try:
        found = msgspec.json.decode(text.strip())
    except msgspec.DecodeError:
        return
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, dict) and isinstance(name := one.get("name"), str):
            arguments = one.get("arguments", one.get("parameters", {}))
            yield Call(name, arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode())
