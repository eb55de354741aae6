"""Turns of a conversation in whatever manner they are written, as `messages` that chat templates take."""

from collections.abc import Mapping
from typing import Any

import msgspec

from toolbox.datasets.reading import shown
from toolbox.datasets.rows import Messages
from toolbox.i18n import _

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "tool_response": "tool", "function_response": "tool", "function": "tool",
    "observation": "tool", "observations": "tool",
    "tool_call": "tool_call", "function_call": "tool_call",
}  # fmt: skip
"""Roles of the manners of OpenAI, ShareGPT, ms-swift and LLaMA-Factory, and what they become; `tool_call` is an
assistant's turn that only calls tools."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
TAGGED = {"user": "user", "assistant": "assistant", "system_role": "system", "tool": "tool", "tool_call": "tool_call"}


class Unusable(Exception):
    """Why a row can't be used, in words that go after its place."""


class Manner:
    """How the turns of one data set are written: the usual keys and roles, and those that were named."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._role_keys = (columns["role"],) if "role" in columns else ROLE_KEYS
        self._content_keys = (columns["content"],) if "content" in columns else CONTENT_KEYS
        self._roles = ROLES | {columns[tag].lower(): role for tag, role in TAGGED.items() if tag in columns}

    def messages(self, value: Any) -> Messages:
        """A list of turns, or its JSON text; calls join the assistant's turn before them."""
        turns = as_json(value)
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise Unusable(_("its messages are not a list of objects"))
        messages: Messages = []
        for turn in turns:
            message = self.message(turn)
            last = messages[-1] if messages else {}
            if message.get("tool_calls") and not message["content"] and last.get("role") == "assistant":
                messages[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), *message["tool_calls"]]}
            else:
                messages.append(message)
        return messages

    def turns(self, value: Any) -> list[Any] | None:
        """A value that is a turn or a list of turns, also as JSON text; None for any other, such as a plain answer."""
        value = as_json(value)
        listed = [value] if isinstance(value, dict) else value
        if isinstance(listed, list) and all(isinstance(turn, dict) and self._says_who(turn) for turn in listed):
            return listed
        return None

    def _says_who(self, turn: Mapping[str, Any]) -> bool:
        return any(key in turn for key in self._role_keys)

    def message(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        said = _first(turn, self._role_keys)
        role = self._roles.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            raise Unusable(_("its role {role!r} is none of {roles}").format(role=said, roles=", ".join(self._roles)))
        content = _first(turn, self._content_keys)
        if role == "tool_call":
            return {"role": "assistant", "content": "", "tool_calls": calls(content)}
        message: dict[str, Any] = {"role": role, "content": _content(content)}
        if made := turn.get("tool_calls"):
            message["tool_calls"] = calls(made)
        message |= {key: turn[key] for key in ("name", "tool_call_id", "reasoning_content") if turn.get(key)}
        if turn.get("loss") is False or turn.get("weight") == 0:
            message["loss"] = False
        return message


def _first(turn: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((turn[key] for key in keys if key in turn), None)


def _content(value: Any) -> str:
    """A turn's text; OpenAI's list of parts is joined where all of them are texts."""
    if isinstance(value, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in value):
            raise Unusable(_("it holds pictures, video or sound, and this trains on text"))
        value = "".join(str(part.get("text", "")) for part in value)
    if value is not None and not isinstance(value, str):
        raise Unusable(_("its {name} is not a text").format(name="content"))
    return value or ""


def calls(value: Any) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, with `arguments` as an object, out of that form, `{name, arguments}`, or JSON text."""
    value = as_json(value)
    listed = value if isinstance(value, list) else [value]
    made = []
    for call in listed:
        function = as_json(call.get("function", call)) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unusable(_("its call of a function has no name: {text}").format(text=brief(value)))
        arguments = as_json(function.get("arguments", function.get("parameters", {})) or {})
        if not isinstance(arguments, dict):
            raise Unusable(_("the arguments of its call of {name} are not JSON").format(name=function["name"]))
        kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return made


def tools(value: Any) -> list[dict[str, Any]]:
    """OpenAI's `tools` out of that form, bare functions, or their JSON text."""
    value = as_json(value) if value else []
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(tool, dict) for tool in listed):
        raise Unusable(_("its tools are not a list of objects"))
    return [
        tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool} for tool in listed
    ]


def check(messages: Messages, last: tuple[str, ...] = ("assistant",)) -> None:
    """A system message or none, then user and assistant in turn, tools between calls and answer, one of `last` last.

    Raises Unusable where it is otherwise, or where something is empty.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    before: dict[str, Any] = {"role": "assistant"}
    for turn in turns:
        allowed = _may_follow(before)
        if turn["role"] not in allowed:
            raise Unusable(
                _("its roles are out of order: {found} where {expected} belongs").format(
                    found=turn["role"], expected=_(" or ").join(allowed)
                )
            )
        if not turn["content"].strip() and turn["role"] != "tool" and not turn.get("tool_calls"):
            raise Unusable(_("its answer is empty") if turn["role"] == "assistant" else _("its question is empty"))
        before = turn
    if not turns or turns[-1]["role"] not in last:
        raise Unusable(_("it does not end with an answer") if "assistant" in last else _("it ends with no question"))


def _may_follow(before: Mapping[str, Any]) -> tuple[str, ...]:
    if before["role"] == "user":
        return ("assistant",)
    if before["role"] == "tool":
        return ("assistant", "tool")
    return ("tool",) if before.get("tool_calls") else ("user",)


def as_json(value: Any) -> Any:
    """The value of a text that is a JSON list or object; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return value
    return value


def brief(value: Any) -> str:
    """The beginning of a value on one line."""
    return shown(value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode())
