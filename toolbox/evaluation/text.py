"""Perplexity of plain text on a model (`evaluate --suite FILE.txt`)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from toolbox.errors import InputError
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Resampled
from toolbox.evaluation.subjects import Loaded, Subject
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.suites import Suite, text
from toolbox.suites.rows import spread

MAX_LENGTH = 4096
"""Tokens of a window, also where the model could see more."""


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """exp(-sum of ln p / n) over all documents, with n tokens, words or bytes; bits a byte are log2 of the last.

    Each document begins after the token that begins texts, or ends them where there is none. Windows don't overlap, as
    in lm-evaluation-harness's rolling likelihood: each token is foreseen once, from what came before in its window.
    """
    if not isinstance(subject, Loaded):
        raise InputError(
            _("Perplexity needs the model's own tokens, which a server does not give."),
            _("Name the model's folder with --model, or leave this suite out."),
        )
    documents = spread(text.read(suite.path), limit)
    begin = next(
        (token for token in (subject.tokenizer.bos_token_id, subject.tokenizer.eos_token_id) if token is not None), 0
    )
    length = min(MAX_LENGTH, subject.positions)
    cut = [
        list(windows(list(subject.tokenizer(one.text, add_special_tokens=False)["input_ids"]), begin, length))
        for one in documents
    ]
    asked = [ids for pieces in cut for ids, _predicted in pieces]
    found = iter(subject.token_log_likelihoods(asked, watch=watch))
    table: list[dict[str, Any]] = []
    for one, pieces in zip(documents, cut, strict=True):
        table.append(
            {
                "text": one.text, "log_likelihood": math.fsum(sum(next(found)[-count:]) for _ids, count in pieces),
                "tokens": sum(count for _ids, count in pieces), "words": len(one.text.split()),
                "bytes": len(one.text.encode()),
            }
        )  # fmt: skip
    units = np.array([[-row["log_likelihood"], row["tokens"], row["words"], row["bytes"]] for row in table])
    return Finding(
        {
            "token_perplexity": Resampled(units, _by(1, np.exp)),
            "word_perplexity": Resampled(units, _by(2, np.exp)),
            "byte_perplexity": Resampled(units, _by(3, np.exp)),
            "bits_per_byte": Resampled(units, _by(3, lambda nats: nats / math.log(2))),
        },
        table,
    )


def windows(ids: list[int], begin: int, length: int) -> Iterator[tuple[list[int], int]]:
    """(a row of at most `length` + 1 ids, how many at its end are to be foreseen) for each window of a document.

    The last window reaches back as far as it may, so that few tokens are foreseen from little.
    """
    row = [begin, *ids]
    for done in range(0, len(ids), length):
        end = min(done + length, len(ids))
        yield row[max(0, end - length) : end + 1], end - done


def _by(column: int, shown: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda units: shown(units[..., 0].sum(-1) / units[..., column].sum(-1))
