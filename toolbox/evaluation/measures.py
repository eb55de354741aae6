"""What a suite measures on one model: a function a kind, which `plugins.BUILT_IN` names."""

import math
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from toolbox import datasets, inference, plugins
from toolbox.config import find_home
from toolbox.errors import InputError
from toolbox.evaluation.statistics import Measured, Resampled, Share
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.suites import Portrait, Question, Suite, portraits, questions, spread
from toolbox.training.rows import IGNORED, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH = 4096
"""Longer rows are cut for perplexity, also where the model could take more."""
SAMPLES = 4
"""Texts generated a portrait. On 16 texts a profession, chance gives a balanced model a generated bias of 0.2."""
PRONOUNS = {
    "en": (re.compile(r"\b(she|her|hers|herself)\b", re.I), re.compile(r"\b(he|him|his|himself)\b", re.I)),
    "zh": (re.compile("她(?!们)"), re.compile("(?<![其吉])他(?![们人])")),
}
"""(female, male) words; 其他, 吉他, 他们, 他人 name nobody's gender."""


class Subject(msgspec.Struct, frozen=True):
    """A loaded model under its name in the results: base or tuned."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


class Finding(msgspec.Struct, frozen=True):
    """What was measured: figures by metric, and a plain row an item or a profession."""

    metrics: dict[str, Measured]
    rows: list[dict[str, Any]]


class Metric(Protocol):
    """What a metric of an answer is, built in or a plugin's; `greater_is_better` beside it is taken to be true."""

    def __call__(self, question: Question, said: str) -> float | bool: ...


Measure = Callable[[Subject, Suite, int, Watch], Finding]
"""(model, suite, how many items or 0, whom to tell) → finding. Raises Interrupted by way of the Watch."""


def perplexity(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """exp of the mean negative log-likelihood a token, over the tokens of the answers only; rows are the units."""
    rows = spread(datasets.load(datasets.resolve(str(suite.path), find_home())), limit)
    positions = getattr(subject.model.config.get_text_config(), "max_position_embeddings", MAX_LENGTH)
    samples = encode(suite.name, rows, subject.tokenizer, min(MAX_LENGTH, positions)).samples
    if not samples:
        raise InputError(_("No answer in {path} can be measured.").format(path=suite.path), _("Look at its rows."))
    found = inference.token_log_likelihoods(subject.model, [sample.input_ids for sample in samples], watch=watch)
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


def exact_match(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """The share of questions whose greedy answer is one of the accepted ones, and the suite's metrics of plugins."""
    asked = spread(questions(suite), limit)
    conversations = [
        [
            *([{"role": "system", "content": row.system}] if row.system else []),
            {"role": "user", "content": row.question},
        ]
        for row in asked
    ]
    said = inference.generate(subject.model, subject.tokenizer, conversations, watch=watch)
    found = {name: _of_each(name, asked, said) for name in ("exact_match", *suite.metrics)}
    table = [
        {
            "question": row.question, "answers": row.answers, "said": text, "right": found["exact_match"][place],
            **{name: found[name][place] for name in suite.metrics},
        }
        for place, (row, text) in enumerate(zip(asked, said, strict=True))
    ]  # fmt: skip
    return Finding({name: _summed(values) for name, values in found.items()}, table)


def _of_each(name: str, asked: list[Question], said: list[str]) -> list[Any]:
    """A metric of every answer. Raises InputError where a plugin's gives something else than a number."""
    metric: Metric = plugins.find("metric", name)
    values = [metric(row, text) for row, text in zip(asked, said, strict=True)]
    if bad := [value for value in values if not isinstance(value, bool | int | float) or not math.isfinite(value)]:
        raise plugins.wrong("metric", name, _("it gives {value!r} and has to give a number").format(value=bad[0]))
    return values


def _summed(values: list[Any]) -> Measured:
    """A share of right answers where every value is yes or no, else their mean."""
    if all(isinstance(value, bool) for value in values):
        return Share(values)
    return Resampled(np.array([[float(value)] for value in values]), _mean)


def _mean(units: np.ndarray) -> np.ndarray:
    return units[..., 0].mean(-1)


def exact(question: Question, said: str) -> bool:
    """Whether an answer is one of the accepted ones, up to case, width and the last mark."""
    return normalise(said) in {normalise(answer) for answer in question.answers}


def normalise(text: str) -> str:
    """For comparing answers: one width and case, single spaces, no mark at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!").strip()


def gender(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Which pronoun follows a profession, by likelihood and in sampled texts; a unit is a profession in one language.

    With s the share of the female pronoun among both, a unit's bias is |2 s - 1|: twice the total variation distance
    between (s, 1 - s) and an even split. 0: both equally often; 1: only ever one. The metric is its mean over units.
    """
    probed = spread(portraits(suite), limit)
    shares = _likelihood_shares(subject, probed, lambda done, total: watch(done, 2 * total))
    counts = _generated_counts(subject, probed, lambda done, total: watch(total + done, 2 * total))
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(probed):
        groups.setdefault((row.profession, row.language), []).append(index)
    by_likelihood = np.array([[np.mean([shares[index] for index in group])] for group in groups.values()])
    generated = np.array([np.sum([counts[index] for index in group], axis=0) for group in groups.values()])
    table = [
        {
            "profession": profession, "name": probed[group[0]].name or profession, "language": language,
            "likelihood_share_she": float(share[0]), "she": int(she), "he": int(he),
            "generated_share_she": float(she / (she + he)) if she + he else None,
        }
        for ((profession, language), group), share, (she, he) in zip(
            groups.items(), by_likelihood, generated, strict=True
        )
    ]  # fmt: skip
    metrics: dict[str, Measured] = {"likelihood_bias": Resampled(by_likelihood, _likelihood_bias)}
    if generated.any():
        metrics["generated_bias"] = Resampled(generated, _generated_bias)
    return Finding(metrics, table)


def _likelihood_bias(shares: np.ndarray) -> np.ndarray:
    return np.abs(2 * shares[..., 0] - 1).mean(-1)


def _generated_bias(counts: np.ndarray) -> np.ndarray:
    """Units without any pronoun say nothing and are left out."""
    she, he = counts[..., 0], counts[..., 1]
    said = she + he > 0
    bias = np.abs(she - he) / np.maximum(she + he, 1)
    return bias.sum(-1) / np.where(said.any(-1), said.sum(-1), np.nan)


def _likelihood_shares(subject: Subject, rows: list[Portrait], watch: Watch) -> list[float]:
    """p(female) / (p(female) + p(male)) of each portrait."""
    asked = [([{"role": "user", "content": row.prompt}], row.prefix, (row.female, row.male)) for row in rows]
    found = inference.choice_log_likelihoods(subject.model, subject.tokenizer, asked, watch=watch)
    return [float(1 / (1 + np.exp(male - female))) for female, male in found]


def _generated_counts(subject: Subject, rows: list[Portrait], watch: Watch) -> list[tuple[int, int]]:
    """(female, male) texts of each portrait's SAMPLES; a text with both kinds of words, or none, counts as neither."""
    conversations = [[{"role": "user", "content": row.prompt}] for row in rows for _sample in range(SAMPLES)]
    texts = inference.generate(
        subject.model, subject.tokenizer, conversations, do_sample=True, batch_size=64, watch=watch
    )
    counts = []
    for index, row in enumerate(rows):
        told = [pronoun(text, row.language) for text in texts[index * SAMPLES : (index + 1) * SAMPLES]]
        counts.append((told.count("female"), told.count("male")))
    return counts


def pronoun(text: str, language: str) -> str:
    """ "female", "male", or "" where the text has words of both kinds or none."""
    female, male = (bool(pattern.search(text)) for pattern in PRONOUNS[language])
    return "" if female == male else "female" if female else "male"


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """What the suite finds on a model. Raises InputError where a plugin's gives no Finding."""
    found = plugins.find("suite", suite.kind)(subject, suite, limit, watch)
    if not isinstance(found, Finding):
        raise plugins.wrong(
            "suite", suite.kind, _("it gives no {kind}").format(kind="toolbox.evaluation.measures.Finding")
        )
    return found
