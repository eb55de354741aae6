"""What a row of a data set can be, whatever file it came from: the contract between data and training stages."""

from typing import Any, Literal

import msgspec

Messages = list[dict[str, Any]]
"""Turns as chat templates take them: `role` is system, user, assistant or tool; `content` is a text, empty where an
assistant only calls tools; `tool_calls` are OpenAI's, their `arguments` an object; `loss` false: not to be learnt."""

Kind = Literal["sft", "preference", "kto", "text", "prompt"]
"""What all rows of a data set are: Conversation, Preference, Labelled, Text, Prompt."""

STAGES: dict[Kind, tuple[str, ...]] = {
    "sft": ("sft", "grpo", "ppo"),
    "preference": ("dpo", "rm", "orpo", "simpo", "cpo", "sft", "grpo", "ppo"),
    "kto": ("kto", "grpo", "ppo"),
    "text": ("pt",),
    "prompt": ("grpo", "ppo"),
}
"""The stages of training that rows of a kind fit; the first is the one meant where nobody said."""


class Conversation(msgspec.Struct, frozen=True):
    """A conversation that ends with an answer. `number` is its line (JSONL, CSV, text) or its place, from 1."""

    number: int
    messages: Messages
    tools: list[dict[str, Any]] = []
    """The functions that the assistant may call, as OpenAI's `tools`."""


class Preference(msgspec.Struct, frozen=True):
    """Two answers to one prompt. `chosen` and `rejected` are the turns after `prompt`; both end with an answer."""

    number: int
    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: list[dict[str, Any]] = []

    @property
    def messages(self) -> Messages:
        """The chosen side as a conversation, for stages that learn from one right answer."""
        return [*self.prompt, *self.chosen]


class Labelled(msgspec.Struct, frozen=True):
    """A conversation whose last answer is `label`: wanted, or not."""

    number: int
    messages: Messages
    label: bool
    tools: list[dict[str, Any]] = []


class Text(msgspec.Struct, frozen=True):
    """A document, as it is: no turns, no template."""

    number: int
    text: str


class Prompt(msgspec.Struct, frozen=True):
    """A conversation that ends with a question, which the model answers itself.

    `columns`: the row's other columns, by which reward functions judge the answer; `solution` is the row's own answer
    where it has one and no such column.
    """

    number: int
    messages: Messages
    tools: list[dict[str, Any]] = []
    columns: dict[str, Any] = {}


Row = Conversation | Preference | Labelled | Text | Prompt
