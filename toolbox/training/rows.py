"""Rows as token ids, with the loss on the assistant's answers only."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from toolbox import templates
from toolbox.datasets import Conversation, Preference
from toolbox.errors import InputError, TemplateError
from toolbox.i18n import _
from toolbox.training import calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that no loss is taken on, as in torch's `cross_entropy`."""


class Sample(msgspec.Struct, frozen=True):
    """A row ready for training: `labels[i]` is `input_ids[i]` where the assistant speaks, else IGNORED."""

    dataset: str
    number: int
    input_ids: list[int]
    labels: list[int]

    @property
    def size(self) -> int:
        return len(self.input_ids)

    @property
    def sequences(self) -> "list[Sample]":
        return [self]

    def cut(self, max_length: int) -> "Sample":
        return Sample(self.dataset, self.number, self.input_ids[:max_length], self.labels[:max_length])

    @property
    def teaches(self) -> bool:
        return any(label != IGNORED for label in self.labels[1:])


class Item(Protocol):
    """What a row has become for its stage: one sequence, or a few that belong together."""

    @property
    def dataset(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int:
        """Tokens of all its sequences; what they begin with alike counts in each, though it may be computed once."""

    @property
    def sequences(self) -> list[Sample]: ...
    def cut(self, max_length: int) -> Self:
        """With the first `max_length` tokens of each sequence."""

    @property
    def teaches(self) -> bool:
        """Whether each sequence has a label left."""


class Encoded(msgspec.Struct):
    """The items made from some rows. `cut`: were longer than max_length. `dropped`: had no answer left after that.
    `split`: became several items. `written_out`: their tools were written as text."""

    samples: list[Any]
    cut: int = 0
    dropped: int = 0
    split: int = 0
    written_out: int = 0


def encode(
    dataset: str,
    rows: Iterable[Any],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    make: Callable[[str, Any, "PreTrainedTokenizerBase"], Item] | None = None,
) -> Encoded:
    """Rows as items whose sequences have at most `max_length` tokens; `make` is the stage's, by default `encode_row`.

    Raises InputError where the chat template is missing, or doesn't say where answers begin.
    """
    if not tokenizer.chat_template:
        raise TemplateError(
            _("The model has no chat template, so it is unknown how it takes a conversation."),
            _("Give it one with --chat-template, or take the model's -Instruct version."),
        )
    encoded, template = Encoded([]), str(tokenizer.get_chat_template())
    for row in rows:
        encoded.written_out += calls.is_written_out(row, template)
        item = (make or encode_row)(dataset, row, tokenizer)
        if any(len(sequence.input_ids) > max_length for sequence in item.sequences):
            item = item.cut(max_length)
            encoded.cut += 1
        if not item.teaches:
            encoded.dropped += 1
            continue
        encoded.samples.append(item)
    return encoded


def encode_row(dataset: str, row: Conversation | Preference, tokenizer: "PreTrainedTokenizerBase") -> Sample:
    """One row through the chat template, whole."""
    template = str(tokenizer.get_chat_template())
    row = calls.fitted(row, template)
    marked = _marked_by_template if "generation %}" in template or "generation -%}" in template else _marked_by_search
    ids, answered = marked(row, tokenizer)
    _close_turns(ids, answered, tokenizer)
    labels = [token if inside else IGNORED for token, inside in zip(ids, answered, strict=True)]
    return Sample(dataset, row.number, ids, labels)


def _marked_by_template(
    row: Conversation | Preference, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    """(ids, whether each is an answer's) by the template's own `{% generation %}`."""
    tools: Any = row.tools or None
    out: Any = tokenizer.apply_chat_template(
        row.messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    marks = [bool(mark) for mark in out["assistant_masks"]]
    if any(message.get("loss") is False for message in row.messages):
        _unmark(marks, row)
    return list(out["input_ids"]), marks


def _unmark(marks: list[bool], row: Conversation | Preference) -> None:
    """Take the marks off the answers with `loss` false; each answer is one run of marks."""
    begins = [place for place, mark in enumerate(marks) if mark and not (place and marks[place - 1])]
    answers = [message for message in row.messages if message["role"] == "assistant"]
    if len(begins) != len(answers):
        raise InputError(
            _("It can't be told which answers of row {number} have loss false.").format(number=row.number),
            _("Leave out the loss column, or that row."),
        )
    for begin, answer in zip(begins, answers, strict=True):
        if answer.get("loss") is False:
            for place in range(begin, len(marks)):
                if not marks[place]:
                    break
                marks[place] = False


def _marked_by_search(
    row: Conversation | Preference, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    """(ids, whether each is an answer's), found by rendering the conversation up to each answer."""
    text = _render(tokenizer, row.messages, row.tools)
    spans = list(_answer_spans(text, row, tokenizer))
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    marks = [any(begin <= left and right <= end for begin, end in spans) for left, right in out["offset_mapping"]]
    return list(out["input_ids"]), marks


def _answer_spans(
    text: str, row: Conversation | Preference, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, int]]:
    """(begin, end) of each answer in the rendered conversation: from its generation prompt to its last character.

    A template may change earlier turns once later ones follow (Qwen3 drops their thinking), so each beginning is
    checked to be one that the model will really see. Raises InputError where it is not.
    """
    for index, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, row.messages[:index], row.tools, add_generation_prompt=True)
        content = message["content"].strip()
        begin = text.find(content, len(prompt)) if text.startswith(prompt) else -1
        end = begin + len(content)
        if message.get("tool_calls"):  # they follow the content in the template's own words, up to the turn's end
            whole = _render(tokenizer, row.messages[: index + 1], row.tools).rstrip()
            begin, end = (len(prompt), len(whole)) if begin >= 0 and text.startswith(whole) else (-1, -1)
        if begin < 0:
            raise InputError(
                _("The model's chat template does not say where answers begin (row {number}).").format(
                    number=row.number
                ),
                _("Take rows of a single turn, or a template with {mark}.").format(mark="{% generation %}"),
            )
        if message.get("loss", True):
            yield len(prompt), end


def _close_turns(ids: list[int], answered: list[bool], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Mark the special token that ends each answer too: a model that never learns it never stops generating.

    Blanks may stand before it (Llama 2). Where nothing ends the last answer, the token that ends others is put there:
    in GLM's template it is the beginning of the person's next turn, in one of bare text the tokenizer's eos_token.
    """
    special = templates.special_ids(tokenizer)
    open_ends = [
        place
        for place, inside in enumerate(answered)
        if inside and ids[place] not in special and not any(answered[place + 1 : place + 2])
    ]
    for place in open_ends:
        end = place + 1
        while end < len(ids) and ids[end] not in special and not str(tokenizer.decode([ids[end]])).strip():
            end += 1
        if end == len(ids):
            closing = templates.answer_end(tokenizer)
            ids.append(tokenizer.eos_token_id if closing is None else closing)
            answered.append(True)
        if ids[end] in special:
            answered[place : end + 1] = [True] * (end + 1 - place)


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, **options))
