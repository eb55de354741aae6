"""Rows as their stage of training encodes them, for people to look at: `python -m toolbox.training.preview`.

Reads one JSON object from standard input and answers with one on the last line of standard output (`data preview`).
"""

import os
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import datasets, i18n, loading
from toolbox.datasets import Conversation, DatasetSpec, Labelled, Preference, Prompt, Row, Text
from toolbox.errors import DONE, ToolboxError
from toolbox.i18n import _
from toolbox.training import rows
from toolbox.training.rows import IGNORED, Encoded, Sample
from toolbox.training.stages import pairs, pt, rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Request(msgspec.Struct):
    """What is to be shown: the rows of these numbers, or the `first` ones."""

    model: Path
    dataset: DatasetSpec
    rows: list[int]
    first: int
    max_length: int


class Piece(msgspec.Struct):
    """Neighbouring tokens of one kind: `learnt`, `special`, or neither."""

    style: str
    text: str


class Sequence(msgspec.Struct):
    """A sequence that a row becomes; `name` tells several of them apart."""

    name: str
    tokens: int
    learnt: int
    pieces: list[Piece]


class Shown(msgspec.Struct):
    number: int
    sequences: list[Sequence]
    note: str


def main() -> int:
    i18n.use(os.environ.get("YCDY_LANG") or i18n.detect())
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request, dec_hook=lambda kind, value: kind(value))
        answer: dict[str, Any] = {"rows": list(shown(request))}
    except ToolboxError as error:
        answer = {"error": error.as_dict()}
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer))
    return DONE


def shown(request: Request) -> Iterator[Shown]:
    """The rows asked for, encoded. Raises InputError where the model takes no conversation, or the file has changed."""
    tokenizer = loading.tokenizer(request.model)
    wanted = set(request.rows)
    stream = datasets.stream(request.dataset)
    for row in [row for row in stream if row.number in wanted] if wanted else islice(stream, request.first):
        yield _shown(row, tokenizer, request.max_length)


def _shown(row: Row, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Shown:
    encoded = encode(row, tokenizer, max_length)
    names = ["chosen", "rejected"] if isinstance(row, Preference) else []
    sequences = [sequence for item in encoded.samples for sequence in item.sequences]
    if isinstance(row, Labelled):
        names = [_("wanted") if row.label else _("not wanted")]
    labelled = [
        _sequence(sequence, names[place] if place < len(names) else "", tokenizer)
        for place, sequence in enumerate(sequences)
    ]
    note = _("Cut at {max_length} tokens.").format(max_length=max_length) if encoded.cut else ""
    if encoded.dropped:
        note = _("Dropped: no answer is left in {max_length} tokens.").format(max_length=max_length)
    return Shown(row.number, labelled, note)


def encode(row: Row, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Encoded:
    """A row as the stage that fits it encodes it."""
    match row:
        case Text():
            return pt.encode("", [row], tokenizer, max_length)
        case Preference():
            return pairs.encode("", [row], tokenizer, max_length)
        case Labelled():
            conversation = Conversation(row.number, row.messages, row.tools)
            return rows.encode("", [conversation], tokenizer, max_length, _last_answer)
        case Conversation():
            return rows.encode("", [row], tokenizer, max_length)
        case Prompt():
            return rollouts.encode("", [row], tokenizer, max_length)


def _last_answer(dataset: str, row: Conversation, tokenizer: "PreTrainedTokenizerBase") -> Sample:
    """KTO judges the last answer."""
    return pairs.last_answers(rows.encode_row(dataset, row, tokenizer))


def _sequence(sample: Sample, name: str, tokenizer: "PreTrainedTokenizerBase") -> Sequence:
    special = set(tokenizer.all_special_ids)
    tokens = list(zip(sample.input_ids, sample.labels, strict=True))

    def style(token: tuple[int, int]) -> str:
        return "learnt" if token[1] != IGNORED else "special" if token[0] in special else ""

    pieces = [
        Piece(kind, str(tokenizer.decode([token for token, _label in group], clean_up_tokenization_spaces=False)))
        for kind, group in groupby(tokens, style)
    ]
    learnt = sum(label != IGNORED for _token, label in tokens)
    return Sequence(name, len(tokens), learnt, pieces)


if __name__ == "__main__":
    sys.exit(main())
