"""Perplexity of plain text: a text file, or rows with nothing but a text."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "token_perplexity": Metric(N_("perplexity a token"), -math.inf),
    "word_perplexity": Metric(N_("perplexity a word"), -math.inf),
    "byte_perplexity": Metric(N_("perplexity a byte"), -math.inf),
    "bits_per_byte": Metric(N_("bits a byte"), -math.inf),
}


class Document(msgspec.Struct, frozen=True):
    """A document; of a text file a block between blank lines, else a line."""

    text: str


def read(path: Path) -> list[Document]:
    return [row for row in rows.read(path, Document) if row.text.strip()]


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return isinstance(first.get("text"), str) and not {"messages", "conversations", "question", "label"} & set(first)


KIND = Kind(
    name="text",
    title=N_("Perplexity of text"),
    shows=N_(
        "How well the model foresees this text; by byte it compares models of different vocabularies, by token not, "
        "and none says whether the text is true."
    ),
    metrics=METRICS,
    local=True,
    looks_like=looks_like,
    read=read,
)
