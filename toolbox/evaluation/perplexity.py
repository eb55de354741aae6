"""Perplexity of answers that were held out."""

import numpy as np

from toolbox.errors import InputError
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Resampled
from toolbox.evaluation.subjects import Loaded, Subject
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.suites import Suite, perplexity
from toolbox.suites.rows import spread
from toolbox.training.rows import IGNORED, encode

MAX_LENGTH = 4096
"""Longer rows are cut, also where the model could take more."""


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """exp of the mean negative log-likelihood a token, over the tokens of the answers only; rows are the units."""
    if not isinstance(subject, Loaded):
        raise InputError(
            _("Perplexity needs the model's own tokens, which a server does not give."),
            _("Name the model's folder with --model, or leave this suite out."),
        )
    rows = spread(perplexity.read(suite.path), limit)
    samples = encode(suite.name, rows, subject.tokenizer, min(MAX_LENGTH, subject.positions)).samples
    if not samples:
        raise InputError(_("No answer in {path} can be measured.").format(path=suite.path), _("Look at its rows."))
    found = subject.token_log_likelihoods([sample.input_ids for sample in samples], watch=watch)
    answered = [
        [value for value, label in zip(values, sample.labels[1:], strict=True) if label != IGNORED]
        for values, sample in zip(found, samples, strict=True)
    ]
    units = np.array([(-sum(values), len(values)) for values in answered])
    table = [
        {"row": sample.number, "tokens": len(values), "perplexity": float(np.exp(-np.mean(values)))}
        for sample, values in zip(samples, answered, strict=True)
    ]
    return Finding({"perplexity": Resampled(units, _perplexity)}, table)


def _perplexity(units: np.ndarray) -> np.ndarray:
    return np.exp(units[..., 0].sum(-1) / units[..., 1].sum(-1))
