"""Requests as token ids: through the chat template as in training, or as they are."""

from typing import Any

import msgspec

from toolbox.datasets import Conversation
from toolbox.serving.protocol import ChatRequest, Message, Part, Refused
from toolbox.training import calls

ROLES = {"developer": "system"}


def chat_ids(tokenizer: Any, asked: ChatRequest) -> list[int]:
    """The token ids of a conversation up to where the assistant speaks.

    Raises Refused where the model has no chat template, or its template does not take such a conversation.
    """
    if not tokenizer.chat_template:
        raise Refused(400, "This model has no chat template: use /v1/completions.", "no_chat_template", "messages")
    tools = asked.tools if asked.tool_choice != "none" else None
    row = Conversation(0, [_message(message) for message in asked.messages], tools or [])
    options = msgspec.to_builtins(asked.chat_template_kwargs) if asked.chat_template_kwargs else {}
    try:
        fitted = calls.fitted(row, str(tokenizer.get_chat_template()))
        text = tokenizer.apply_chat_template(
            fitted.messages, tools=fitted.tools or None, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception as error:  # a template raises what it likes at roles, tools or contents that it does not take
        reason = " ".join(str(error).split())[:200]
        raise Refused(
            400, f"The model's chat template refuses this: {reason}", "template_refused", "messages"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, begun as the tokenizer begins one."""
    return list(tokenizer(text)["input_ids"])


def _message(message: Message) -> dict[str, Any]:
    """As templates and training have it: texts, and the arguments of calls as objects."""
    made: dict[str, Any] = {"role": ROLES.get(message.role, message.role), "content": _text(message.content)}
    if message.name:
        made["name"] = message.name
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        made["tool_calls"] = [
            {"type": "function", "id": call.id,
             "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)}}
            for call in message.tool_calls
        ]  # fmt: skip
    return made


def _text(content: str | list[Part] | None) -> str:
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
