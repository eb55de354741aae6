"""Tools and calls as text, for chat templates that have no place for them: else an answer that calls would be empty."""

import json

import msgspec

from toolbox.datasets import Conversation, Labelled, Messages, Preference


def fitted(row: Conversation | Preference, template: str) -> Conversation | Preference:
    """`row`, or where its template would leave out tools or calls, the row with them written into its texts.

    Tools go into the system message, calls after what the assistant says, a JSON object a line.
    """
    if not is_written_out(row, template):
        return row
    listed = [] if "tools" in template else row.tools
    messages = row.messages if "tool_calls" in template else [_spoken(message) for message in row.messages]
    if listed:
        messages = _with_system("\n".join(_line(tool["function"]) for tool in listed), messages)
    return Conversation(row.number, messages, [] if listed else row.tools)


def is_written_out(row: Conversation | Preference | Labelled, template: str) -> bool:
    """Whether a template has no place for the row's tools, or for its calls."""
    called = any("tool_calls" in message for message in row.messages)
    return bool(row.tools and "tools" not in template) or (called and "tool_calls" not in template)


def _spoken(message: dict) -> dict:
    if "tool_calls" not in message:
        return message
    lines = [_line(call["function"]) for call in message["tool_calls"]]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, [message["content"], *lines]))}


def _with_system(text: str, messages: Messages) -> Messages:
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _line(value: object) -> str:
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
