"""Rows out of values: the format of a data set told by the columns of its first rows, and each value read by it."""

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.datasets import turns
from toolbox.datasets.columns import Choice
from toolbox.datasets.rows import Conversation, Kind, Labelled, Messages, Preference, Prompt, Row, Text
from toolbox.datasets.turns import Unusable
from toolbox.errors import InputError
from toolbox.i18n import _

Format = Literal["messages", "sharegpt", "alpaca", "prompt-response", "preference", "text", "prompt"]

SAMPLE = 100
"""Rows at the beginning whose columns tell the format."""
OPTIONAL = ("system", "history", "tools", "input")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
LABELS = {"true": True, "1": True, "false": False, "0": False}


class Form(msgspec.Struct, frozen=True):
    """How the values of a data set are read: what they are, and the column of each key."""

    format: Format
    kind: Kind
    columns: dict[str, str]
    notes: list[str] = []
    """Choices that could have been made otherwise, in sentences."""


def recognise(path: Path, sample: Sequence[tuple[int, Any]], asked: Mapping[str, str]) -> Form:
    """The form of a file whose first values are `sample`; `asked` are the columns that were named.

    Raises InputError naming what was found where it is none.
    """
    values = [value for _number, value in sample if isinstance(value, dict)]
    choice = Choice(_columns(values), asked)
    form = _form(choice, values)
    if form:
        tags = {key: column for key, column in asked.items() if key not in form.columns}
        return msgspec.structs.replace(form, columns=form.columns | tags)
    number, first = sample[0]
    found = turns.brief(", ".join(first) if isinstance(first, dict) else first)
    raise InputError(
        _("Row {number} of {path} has no question and answer; found: {found}.").format(
            number=number, path=path, found=found
        ),
        _("Looked for the columns messages or conversations, or instruction and output; name others with --columns."),
    )


def _columns(values: list[dict[str, Any]]) -> list[str]:
    """Those of the first row and of most rows; and of any, where they are optional."""
    counts = Counter(column for value in values for column in value)
    first = set(values[0]) if values else set()
    return [
        column
        for column, count in counts.items()
        if column in first or 2 * count > len(values) or column.strip().lower() in OPTIONAL
    ]


def _form(choice: Choice, values: list[dict[str, Any]]) -> Form | None:
    """What the chosen columns amount to; None where it is nothing to train on."""
    label, rejected = choice.take("label"), choice.take("rejected")
    labelled = label is not None and ("label" in choice.asked or _says_yes_or_no(label, values))
    if not labelled:
        choice.drop("label")
    conversation = _conversation(choice, values)
    chosen = choice.take("chosen") if rejected else None
    prompt = None if conversation else choice.take("prompt")
    response = None if conversation or chosen else choice.take("response")
    if prompt and prompt != choice.taken.get("input"):
        choice.take("input")
    for key in ("system", "history", "tools"):
        choice.take(key)
    kind: Kind = "preference" if rejected else "kto" if labelled else "sft"
    if rejected and (chosen or response or conversation):
        return Form("preference", kind, choice.taken, choice.notes)
    if conversation:
        kind = "prompt" if kind == "sft" and _ends_with_a_question(choice, values) else kind
        return Form(_manner(conversation, values), kind, choice.taken, choice.notes)
    if prompt and response:
        alpaca = prompt.strip().lower() == "instruction"
        return Form("alpaca" if alpaca else "prompt-response", kind, choice.taken, choice.notes)
    return _text(choice) or (Form("prompt", "prompt", choice.taken, choice.notes) if prompt and kind == "sft" else None)


def _ends_with_a_question(choice: Choice, values: list[dict[str, Any]]) -> bool:
    """Whether the first conversation that can be read ends with the user's turn."""
    manner = turns.Manner(choice.taken | dict(choice.asked))
    for value in values:
        with contextlib.suppress(turns.Unusable):
            return manner.messages(value.get(choice.taken["messages"]))[-1:][0]["role"] == "user"
    return False


def _text(choice: Choice) -> Form | None:
    only = Choice(choice.columns, choice.asked)
    column = only.take("text")
    if not column:
        return None
    others = ", ".join(other for other in choice.columns if other != column)
    note = _("Only {column} is used, as plain text; not used: {others}. Change it with --columns.")
    return Form("text", "text", {"text": column}, [note.format(column=column, others=others)] if others else [])


def _conversation(choice: Choice, values: list[dict[str, Any]]) -> str | None:
    """The column of the turns, where it holds a list; `conversation` may also be a plain text."""
    column = choice.take("messages")
    if not column or column.strip().lower() == "messages" or "messages" in choice.asked:
        return column
    if any(isinstance(turns.as_json(value.get(column)), list) for value in values):
        return column
    choice.drop("messages")
    return None


def _says_yes_or_no(column: str, values: list[dict[str, Any]]) -> bool:
    """Whether some labels are true or false, or all are those words, as a CSV file has it."""
    said = [value[column] for value in values if column in value]
    return any(isinstance(label, bool) for label in said) or {str(label).lower() for label in said} <= {"true", "false"}


def _manner(column: str, values: list[dict[str, Any]]) -> Format:
    first = turns.as_json(values[0].get(column)) if values else None
    turn = first[0] if isinstance(first, list) and first and isinstance(first[0], dict) else {}
    return "sharegpt" if "from" in turn else "messages"


class Reader:
    """Reads the values of one data set into rows."""

    def __init__(self, form: Form) -> None:
        self._columns = form.columns
        self._manner = turns.Manner(form.columns)
        self._kind = form.kind
        self._read = {
            "sft": self._sft, "preference": self._preference, "kto": self._kto, "text": self._document,
            "prompt": self._question,
        }[form.kind]  # fmt: skip

    def row(self, number: int, value: Any) -> Row:
        """The row in a value. Raises Unusable saying why there is none."""
        if not isinstance(value, dict):
            raise Unusable(_("it is not an object with columns"))
        if any(value.get(column) for column in MEDIA):
            raise Unusable(_("it holds pictures, video or sound, and this trains on text"))
        return self._read(number, value)

    def prompt(self, number: int, value: Any) -> Prompt:
        """The question of the row in a value, with the value's other columns; its last answer becomes `solution`."""
        row = self.row(number, value)
        if isinstance(row, Prompt):
            return row
        if isinstance(row, Text):
            raise Unusable(_("it ends with no question"))
        asked = row.messages[: _prompt_length(row.messages)]
        turns.check(asked, last=("user", "tool"))
        return Prompt(number, asked, row.tools, {"solution": row.messages[-1]["content"], **self._others(value)})

    def _question(self, number: int, value: dict[str, Any]) -> Row:
        messages = self._asked(value)
        turns.check(messages, last=("user", "tool"))
        return Prompt(number, messages, self._tools(value), self._others(value))

    def _others(self, value: dict[str, Any]) -> dict[str, Any]:
        """The columns that the question is not made of."""
        asked = {self._columns.get(key) for key in ("messages", "prompt", "input", "system", "history", "tools")}
        return {column: cell for column, cell in value.items() if column not in asked}

    def _sft(self, number: int, value: dict[str, Any]) -> Row:
        if {"chosen", "rejected"} <= set(value) or isinstance(value.get("label"), bool):
            raise Unusable(_("it holds preferences (chosen, rejected, label), not one right answer"))
        messages = self._answered(value)
        turns.check(messages)
        return Conversation(number, messages, self._tools(value))

    def _kto(self, number: int, value: dict[str, Any]) -> Row:
        label = value.get(self._columns["label"])
        if not isinstance(label, bool):
            label = LABELS.get(str(label).strip().lower())
        if label is None:
            raise Unusable(_("its {name} is neither true nor false").format(name=self._columns["label"]))
        messages = self._answered(value)
        turns.check(messages)
        return Labelled(number, messages, label, self._tools(value))

    def _document(self, number: int, value: dict[str, Any]) -> Row:
        text = self._str(value, "text")
        if not text.strip():
            raise Unusable(_("its text is empty"))
        return Text(number, text)

    def _preference(self, number: int, value: dict[str, Any]) -> Row:
        prompt, chosen, rejected = self._pair(value)
        for side in (chosen, rejected):
            turns.check([*prompt, *side])
        return Preference(number, prompt, chosen, rejected, self._tools(value))

    def _pair(self, value: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
        """(prompt, chosen, rejected), whichever of them carry the prompt."""
        rejected = self._side(value, "rejected")
        if "chosen" in self._columns:
            prompt, chosen = self._asked(value), self._side(value, "chosen")
        else:
            whole = self._answered(value)
            cut = _prompt_length(whole)
            prompt, chosen = whole[:cut], whole[cut:]
        if _speaks_first(chosen) and _speaks_first(rejected):  # each side is a whole conversation
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
            cut = _prompt_length(chosen[: len(list(shared))])
            if not cut:
                raise Unusable(_("its chosen and rejected sides have no question in common"))
            system = [turn for turn in prompt[:1] if turn["role"] == "system" and chosen[0]["role"] != "system"]
            return [*system, *chosen[:cut]], chosen[cut:], rejected[cut:]
        if _speaks_first(rejected):  # as ms-swift's rejected_messages beside messages
            rejected = rejected[_prompt_length(rejected) :]
        if _speaks_first(chosen):
            chosen = chosen[_prompt_length(chosen) :]
        return prompt, chosen, rejected

    def _side(self, value: dict[str, Any], key: str) -> Messages:
        """An answer: a text, a turn, or turns; a transcript of "Human:" and "Assistant:" is taken apart."""
        said = self._value(value, key)
        if (written := self._manner.turns(said)) is not None:
            return self._manner.messages(written)
        if not isinstance(said, str) or not said.strip():
            raise Unusable(_("its {name} answer is empty").format(name=key))
        transcript = re.split(r"\n\n(Human|Assistant): ?", said)
        if len(transcript) > 4 and not transcript[0].strip():
            pairs = zip(transcript[1::2], transcript[2::2], strict=True)
            return [{"role": turns.ROLES.get(who.lower(), "assistant"), "content": text} for who, text in pairs]
        return [{"role": "assistant", "content": said}]

    def _answered(self, value: dict[str, Any]) -> Messages:
        """The whole conversation of a row with one answer."""
        messages = self._asked(value)
        if "response" not in self._columns:
            return messages
        column = self._columns["response"]
        if column not in value:
            raise Unusable(
                _("it has the columns {found} and none of {wanted}").format(
                    found=turns.brief(", ".join(value)), wanted=column
                )
            )
        return [*messages, {"role": "assistant", "content": self._str(value, "response")}]

    def _asked(self, value: dict[str, Any]) -> Messages:
        """system, history, and the question; or the turns as they are."""
        system = self._str(value, "system")
        messages: Messages = [{"role": "system", "content": system}] if system else []
        if "messages" in self._columns:
            said = self._manner.messages(self._value(value, "messages"))
            return said if said[:1] and said[0]["role"] == "system" else [*messages, *said]
        messages += self._history(value)
        if "prompt" not in self._columns:
            return messages
        if (written := self._manner.turns(self._value(value, "prompt"))) is not None:
            return [*messages, *self._manner.messages(written)]
        asked = "\n".join(filter(None, [self._str(value, "prompt"), self._str(value, "input")]))
        return [*messages, {"role": "user", "content": asked}]

    def _history(self, value: dict[str, Any]) -> Messages:
        messages: Messages = []
        pairs = turns.as_json(value.get(self._columns["history"])) if "history" in self._columns else None
        for pair in pairs or []:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise Unusable(_("its history is not a list of [question, answer]"))
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return messages

    def _tools(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        return turns.tools(value.get(self._columns["tools"])) if "tools" in self._columns else []

    def _value(self, value: dict[str, Any], key: str) -> Any:
        column = self._columns[key]
        if column not in value:
            raise Unusable(
                _("it has the columns {found} and none of {wanted}").format(
                    found=turns.brief(", ".join(value)), wanted=column
                )
            )
        return value[column]

    def _str(self, value: dict[str, Any], key: str) -> str:
        column = self._columns.get(key)
        text = value.get(column) if column else None
        if text is not None and not isinstance(text, str):
            raise Unusable(_("its {name} is not a text").format(name=column))
        return text or ""


def _speaks_first(messages: Messages) -> bool:
    """Whether turns begin with somebody else than the assistant."""
    return bool(messages) and messages[0]["role"] != "assistant"


def _prompt_length(messages: Messages) -> int:
    """How many turns come before the last answer with its calls."""
    last = max((index for index, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
    return last + 1
