"""Perplexity of held-out answers: any data set with conversations."""

import math
from pathlib import Path
from typing import Any

from toolbox import datasets
from toolbox.config import find_home
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {"perplexity": Metric(N_("perplexity"), -math.inf)}


def read(path: Path) -> list[datasets.Row]:
    """The rows as training would read them. Raises InputError for plain text, and for a row that can't be used."""
    spec = datasets.resolve(str(path), find_home())
    if spec.kind == "text":
        raise InputError(
            _("{path} holds plain text, and what is measured are answers.").format(path=path),
            _("Take a file of conversations, or of questions and answers."),
        )
    return datasets.load(spec)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """Conversations by their usual columns; what no kind knows is tried as this one, and told why it can't be read."""
    return "messages" in first or "conversations" in first


KIND = Kind(
    name="perplexity",
    title=N_("Perplexity"),
    shows=N_(
        "How well the model foresees answers like these; lower means more familiar, which is neither truer nor better."
    ),
    metrics=METRICS,
    local=True,
    looks_like=looks_like,
    read=read,
)
