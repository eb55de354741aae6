"""Rows with tool calls, and answers not to be learnt, through templates with and without a place for them."""

from typing import Any

import pytest

from toolbox import embedded, loading
from toolbox.datasets import Conversation
from toolbox.training import rows

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "yes"},
    {"role": "assistant", "content": "It rains."},
]
WITH_TOOLS = """{% for tool in tools or [] %}{{ tool['function']['name'] + ' ' }}{% endfor %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def tokenizer() -> Any:
    return loading.tokenizer(embedded.MODEL)


def learnt(row: Conversation, tokenizer: Any) -> str:
    sample = rows.encode_row("", row, tokenizer)
    return tokenizer.decode([label for label in sample.labels if label != rows.IGNORED])


def test_calls_are_learnt_in_the_template_s_own_words(tokenizer: Any) -> None:
    tokenizer.chat_template = WITH_TOOLS
    said = learnt(Conversation(1, TURNS, [TOOL]), tokenizer)
    assert said == '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>It rains.<|im_end|>'


def test_calls_are_written_out_where_the_template_has_no_place_for_them(tokenizer: Any) -> None:
    row = Conversation(1, TURNS, [TOOL])
    said = learnt(row, tokenizer)
    assert said == '{"name": "weather", "arguments": {"city": "Oslo"}}<|im_end|>It rains.<|im_end|>'
    text = tokenizer.decode(rows.encode_row("", row, tokenizer).input_ids)
    assert text.startswith('<|im_start|>system\n{"name": "weather", "parameters": {}}<|im_end|>')


@pytest.mark.parametrize("template", [None, WITH_TOOLS])
def test_an_answer_with_loss_false_is_not_learnt(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    turns = [TURNS[0], {"role": "assistant", "content": "No.", "loss": False}, TURNS[0], TURNS[3]]
    assert learnt(Conversation(1, turns), tokenizer) == "It rains.<|im_end|>"
