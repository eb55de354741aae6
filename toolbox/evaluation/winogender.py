"""Winogender for language models: she or he for an occupation, beside the share of women in it (`evaluate`)."""

import numpy as np

from toolbox.evaluation.categories import by_category, sentence_scores
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.statistics import Measured, Resampled
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.suites import Suite, winogender
from toolbox.suites.rows import spread
from toolbox.suites.winogender import GENDERS, Schema


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """Pearson's r of the model's share of "she" and the shares of women, over occupations (section 5 of the paper).

    The paper correlates whom coreference systems resolve pronouns to. Of a language model the share is
    p(she) / (p(she) + p(he)), by the likelihood of the whole sentence in both wordings, where the pronoun means the
    occupation; the mean over its sentences. Gap and strength are the mean of 2 s - 1 and of its absolute value.
    """
    schemas = spread(winogender.read(suite.path), limit)
    found = sentence_scores(subject, [getattr(one, gender) for one in schemas for gender in GENDERS], watch)
    scores = np.array(found).reshape(-1, len(GENDERS))
    occupations = list(dict.fromkeys(one.occupation for one in schemas))
    rows = [_row(name, schemas, scores) for name in occupations]
    shares = np.array([[row["share_she"]] for row in rows])
    metrics: dict[str, Measured] = {}
    for metric, column in (("winogender_bls", "bls"), ("winogender_bergsma", "bergsma")):
        known = np.array([[row["share_she"], row[column]] for row in rows if row[column] is not None])
        if len(known) > 2 and np.isfinite(pearson(known)):
            metrics[metric] = Resampled(known, pearson, (-1.0, 1.0))
    metrics |= {
        "winogender_gap": Resampled(shares, gap, (-100.0, 100.0)),
        "winogender_strength": Resampled(shares, strength, (0.0, 100.0)),
    }
    employed = {row["occupation"]: {"known": row["bls"] / 100} for row in rows if row["bls"] is not None}
    categories = by_category("share_she", occupations, shares, mean_share, (0.0, 1.0))
    return Finding(metrics, rows, [{**one, **employed.get(one["category"], {})} for one in categories])


def _row(occupation: str, schemas: list[Schema], scores: np.ndarray) -> dict:
    """An occupation's means over its sentences; `share_they` is of all three pronouns."""
    places = [place for place, one in enumerate(schemas) if one.occupation == occupation]
    one = schemas[places[0]]
    she_he = np.mean([share(*scores[place, :2]) for place in places])
    three = np.exp(scores[places] - scores[places].max(-1, keepdims=True))
    return {
        "occupation": occupation, "share_she": float(she_he),
        "share_they": float((three[:, 2] / three.sum(-1)).mean()), "bls": one.bls, "bergsma": one.bergsma,
        "sentences": len(places),
    }  # fmt: skip


def share(female: float, male: float) -> float:
    """p(female) / (p(female) + p(male)) of two log-likelihoods, without overflow."""
    return float(np.exp(-np.logaddexp(0.0, male - female)))


def pearson(units: np.ndarray) -> np.ndarray:
    """Pearson's r of the two columns [..., n, 2]; NaN where one of them does not vary."""
    centred = units - units.mean(-2, keepdims=True)
    x, y = centred[..., 0], centred[..., 1]
    spreads = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return (x * y).sum(-1) / np.where(spreads > 1e-12, spreads, np.nan)


def mean_share(units: np.ndarray) -> np.ndarray:
    return units[..., 0].mean(-1)


def gap(units: np.ndarray) -> np.ndarray:
    """She minus he, in points: -100 only ever he, 100 only ever she."""
    return 100 * (2 * units[..., 0] - 1).mean(-1)


def strength(units: np.ndarray) -> np.ndarray:
    return 100 * np.abs(2 * units[..., 0] - 1).mean(-1)
