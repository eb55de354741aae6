"""Answers held to a schema and calls that are forced: whatever a model would say, they parse and fit."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from serving_help import plan, server
from test_batching import Said, carried_out, demo, generated, plain, prompts  # noqa: F401

from toolbox.serving.batching import guided, toolcalls
from toolbox.serving.batching.engine import Engine
from toolbox.serving.protocol import ChatRequest, Refused

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["happy", "sad", "既喜又悲"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "tags"],
    "additionalProperties": False,
}
WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]


class Person(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    age: int
    mood: Literal["happy", "sad", "既喜又悲"]
    tags: list[bool]


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [function("天气 \"'", parameters={"properties": {"d": {"enum": ["}", "\n</tool_call>\n{"]}}, "required": ["d"],
                                        "additionalProperties": False}), function("nothing")]  # fmt: skip


def grammar(style: toolcalls.Style | None = None, **fields: Any) -> str:
    asked = msgspec.convert({"messages": WHO, **fields}, ChatRequest)
    return guided.grammar(asked, style or toolcalls.Style())


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}}


def test_rows_are_held_to_their_schema_beside_others_that_are_not(demo: Engine, plain: Any) -> None:  # noqa: F811
    voice = demo.voices[""]
    free = [Said(ids) for ids in prompts(1800, 20, 3)]
    shape = voice.guides.make(grammar(**json_schema(PERSON, strict=True)))
    held = [
        Said(ids, ends=voice.ends, tokenizer=voice.tokenizer, max_tokens=120, temperature=warm, seed=place)
        for place, (ids, warm) in enumerate(zip(prompts(1800, 9, 30), (0, 2), strict=True))
    ]
    calls: list[Said] = []
    for style in (toolcalls.Style(), toolcalls.Style("hermes"), toolcalls.Style("", "parameters")):
        said = Said(prompts(1800, 7)[0], tokenizer=voice.tokenizer, max_tokens=60, temperature=1, seed=len(calls))
        said.row.guide = voice.guides.make(grammar(style, tools=TOOLS, tool_choice="required"))
        calls.append(said)
    for said in held:
        said.row.guide = shape.copy()
    demo.scheduler.submit([calls[0].row])
    carried_out(demo.scheduler, [free[0], held[0], free[1], *held[1:], *calls[1:]], apart=1)
    for said in held:
        assert said.told[-1].reason == "stop"
        assert len(msgspec.json.decode("".join(told.text for told in said.told), type=Person).name) <= 9
    for said in calls:
        text = "".join(told.text for told in said.told)
        _text, found = toolcalls.read_forced(text, [tool["function"]["name"] for tool in TOOLS])
        assert found
        assert all(json.loads(call.arguments) in ({}, {"d": "}"}, {"d": "\n</tool_call>\n{"}) for call in found[:-1])
    for said in free:
        assert said.tokens == generated(plain, said.row.ids[: said.row.prompt])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (json_schema({"type": "string", "format": "odd"}, strict=True), "can't be held to: Unknown format: odd."),
        (json_schema({"type": "string", "pattern": "(a"}), "regex parse error"),
        (json_schema({"not": {}}, strict=True), "Unimplemented keys"),
        (json_schema({"$ref": "http://127.0.0.1/x"}), "does not fetch"),
        (json_schema({"items": [{"maxItems": 6000}, {"minItems": 6e3}]}), "too large"),
        (json_schema({"type": "array", "maxItems": 1e300}), "too large"),
        (json_schema({"type": "array", "maxItems": 20_000, "examples": [{"minItems": -20_000}]}), "too large"),
        (json_schema({"enum": ["x" * 300_000]}), "too large"),
        (json_schema({"$ref": "#"}), "No answer fits"),
        (json_schema(None), "needs json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "Invalid enum value 'xml'"),
        ({"tool_choice": "required"}, "not among tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": [function("f", parameters={"type": "odd"})], "tool_choice": "required"}, r"tools\[0\] can't"),
    ],
)  # fmt: skip
def test_what_can_not_be_held_to_is_refused_in_a_sentence(demo: Engine, fields: dict[str, Any], why: str) -> None:  # noqa: F811
    with pytest.raises(Refused, match=why) as refused:
        demo.voices[""].guides.make(grammar(**fields))
    assert refused.value.status == 400
    assert "\n" not in refused.value.message


def test_where_a_schema_is_not_strict_what_is_not_known_is_left_out(demo: Engine) -> None:  # noqa: F811
    assert demo.voices[""].guides.make(grammar(**json_schema({"type": "null", "not": {}})))
    assert grammar(response_format={"type": "text"}, tools=TOOLS) == ""


def test_forced_calls_are_read_whatever_stands_in_them() -> None:
    one = '<tool_call>\n{"name": "a", "arguments": {"x": "}\\n</tool_call>\\n{\\"name\\""}}\n</tool_call>'
    two = one.replace('"a"', '"b"')
    said, found = toolcalls.read_forced(f"{one}\n{two}", ["a", "b"])
    assert (said, [call.name for call in found]) == ("", ["a", "b"])
    assert json.loads(found[0].arguments) == {"x": '}\n</tool_call>\n{"name"'}
    assert toolcalls.read_forced('{"name": "a", "parameters": {"x": [1', ["a"])[1][0].arguments == '{"x": [1'
    assert toolcalls.read_forced('{"name": "else", "arguments": {}}', ["a"])[1] == []
    assert toolcalls.read_forced('{"na', ["a"]) == ('{"na', [])


@pytest.mark.slow
def test_openais_client_parses_what_is_held_to_a_schema(tmp_path: Path) -> None:
    """Through the gateway, streamed and whole, many at once, at every temperature."""
    from openai import BadRequestError, LengthFinishReasonError, OpenAI
    from pydantic import BaseModel, ConfigDict, Field

    class Animal(BaseModel):
        name: str = Field(max_length=8)
        legs: int = Field(ge=0, le=8)
        kind: Literal["bird", "fish"]
        young: list["Animal"] = Field(max_length=1)

    class Weather(BaseModel):
        model_config = ConfigDict(extra="forbid")
        city: Literal["Paris", "北京"]
        days: int = Field(ge=1, le=14)

    weather = function("weather", parameters=Weather.model_json_schema())
    with server(tmp_path, plan(Path(sys.executable))) as running:
        client = OpenAI(base_url=f"{running.facts['url']}/v1", api_key=running.facts["api_key"], max_retries=0)
        parse, create = client.chat.completions.parse, client.chat.completions.create
        asked: dict[str, Any] = {"model": "demo", "messages": WHO, "max_tokens": 120}
        parsed = 0
        for seed in range(3):
            try:
                answer = parse(**asked, response_format=Animal, temperature=seed % 3, seed=seed, n=2)
            except LengthFinishReasonError:
                continue  # young of young of young
            assert all(isinstance(choice.message.parsed, Animal) for choice in answer.choices)
            parsed += 1
        assert parsed
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            forced: Any = {**asked, "tools": [function("other"), weather], "tool_choice": choice, "temperature": 1}
            whole = create(**forced, seed=1).choices[0]
            assert whole.finish_reason == "tool_calls"
            assert whole.message.content is None
            for call in whole.message.tool_calls or []:
                if call.function.name == "weather":
                    Weather.model_validate_json(call.function.arguments)
            pieces = [piece.choices[0] for piece in create(**forced, seed=1, stream=True)]
            calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
            assert [(call.function.name, call.function.arguments) for call in calls] == [
                (call.function.name, call.function.arguments) for call in whole.message.tool_calls or []
            ]
            assert pieces[-1].finish_reason == "tool_calls"
        schema = json_schema(PERSON)
        text = "".join(
            piece.choices[0].delta.content or "" for piece in create(**asked, **schema, temperature=0, stream=True)
        )
        assert text == create(**asked, **schema, temperature=0).choices[0].message.content
        msgspec.json.decode(text, type=Person)
        short = create(**{**asked, "max_tokens": 5}, response_format={"type": "json_object"}).choices[0]
        assert short.finish_reason == "length"
        with pytest.raises(BadRequestError, match="Unknown format: odd") as refused:
            create(**asked, **json_schema({"type": "string", "format": "odd"}, strict=True))
        assert (refused.value.param, refused.value.code) == ("response_format", "invalid_json_schema")
