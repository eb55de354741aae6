"""Winogender: which pronoun the model expects for an occupation, beside the share of women in it."""

import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "winogender_bls": Metric(N_("Winogender: correlation with the share of women employed"), 0),
    "winogender_bergsma": Metric(N_("Winogender: correlation with the share of women in texts"), 0),
    "winogender_gap": Metric(N_("Winogender: she minus he, points"), 0),
    "winogender_strength": Metric(N_("Winogender: distance from an even split, points"), float("-inf")),
}
GENDERS = ("female", "male", "neutral")
_NAME = re.compile(r"(?P<occupation>.+)\.(?P<participant>.+)\.(?P<answer>[01])\.(?P<gender>female|male|neutral)\.txt")


class _Statistic(msgspec.Struct, frozen=True):
    occupation: str
    bergsma_pct_female: float
    bls_pct_female: float


class _Line(msgspec.Struct, frozen=True):
    sentid: str
    sentence: str


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence in three wordings, whose pronoun refers to the occupation; shares of women in %, None if unknown."""

    occupation: str
    participant: str
    female: str
    male: str
    neutral: str
    bls: float | None
    """Of those employed, U.S. Bureau of Labor Statistics, as the paper took them."""
    bergsma: float | None
    """Of those written about: S. Bergsma, D. Lin, ACL 2006, as the paper took them."""


def read(path: Path) -> list[Schema]:
    """The sentences in which the pronoun means the occupation, with its statistics where their file lies beside.

    Raises NotFoundError where there are no sentences, InputError naming the first row that can't be used.
    """
    sentences, occupations = _both(path)
    known = {row.occupation: row for row in rows.read(occupations, _Statistic)} if occupations else {}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for number, line in enumerate(rows.read(sentences, _Line), 1):
        name = _NAME.fullmatch(line.sentid)
        if not name:
            raise rows.unusable(sentences, number, _("its sentid is not OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt"))
        if name["answer"] == "0":
            found.setdefault((name["occupation"], name["participant"]), {})[name["gender"]] = line.sentence
    schemas = []
    for (occupation, participant), wordings in found.items():
        if missing := [gender for gender in GENDERS if gender not in wordings]:
            raise InputError(
                _("{path} lacks a wording of {occupation}: {missing}.").format(
                    path=sentences, occupation=occupation, missing=", ".join(missing)
                ),
                _("Take the files whole, as they were published."),
            )
        known_of = known.get(occupation)
        schemas.append(
            Schema(
                occupation=occupation, participant=participant, **wordings,
                bls=known_of.bls_pct_female if known_of else None,
                bergsma=known_of.bergsma_pct_female if known_of else None,
            )
        )  # fmt: skip
    return schemas


def whole(path: Path) -> Path:
    """The sentences stand for both files."""
    return _both(path)[0]


def _both(path: Path) -> tuple[Path, Path | None]:
    """(sentences, statistics by occupation or None); whichever `path` is, the other one is looked for beside it."""
    beside = [path, *sorted(one for one in path.parent.glob("*.tsv") if one != path)]
    sentences = next((one for one in beside if _columns(one) >= {"sentid", "sentence"}), None)
    if not sentences:
        raise NotFoundError(
            _("Winogender's sentences are not beside {path}.").format(path=path),
            _("Lay the table of sentences (sentid, sentence) into the same folder."),
        )
    return sentences, next((one for one in beside if _columns(one) >= {"occupation", "bls_pct_female"}), None)


def _columns(path: Path) -> set[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return set(file.readline().rstrip("\r\n").split("\t"))


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """The sentences, or the statistics that belong to them."""
    sentences = _NAME.fullmatch(str(first.get("sentid", ""))) and "sentence" in first
    return bool(sentences) or {"occupation", "bergsma_pct_female", "bls_pct_female"} <= set(first)


KIND = Kind(
    name="winogender",
    title="Winogender",
    shows=N_(
        "Whether the model expects she or he according to the occupation, and how that goes with the share of women"
        " in it. A correlation can show bias and can't prove its absence: a model that says he of everybody has none."
    ),
    paper="R. Rudinger, J. Naradowsky, B. Leonard, B. Van Durme: Gender Bias in Coreference Resolution, NAACL 2018,"
    " arXiv:1804.09301",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
    whole=whole,
    picture=Picture(
        title=N_("Winogender: she or he, by occupation"),
        axis=N_("likelihood of “she” against “he”"),
        domain=(0, 1),
        even=0.5,
        ends=(N_("more “he”"), N_("more “she”")),
        known=N_("women among those employed (BLS)"),
        percent=True,
    ),
)
