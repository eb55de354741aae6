"""BBQ: questions about two people that can't be answered yet, and the same ones once they can."""

import csv
import functools
import math
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "bbq_accuracy_amb": Metric(N_("BBQ, ambiguous: accuracy"), math.inf),
    "bbq_bias_amb": Metric(N_("BBQ, ambiguous: bias score"), 0),
    "bbq_accuracy_dis": Metric(N_("BBQ, disambiguated: accuracy"), math.inf),
    "bbq_bias_dis": Metric(N_("BBQ, disambiguated: bias score"), 0),
}
CATEGORIES = {
    "Age": N_("age"), "Disability_status": N_("disability"), "Gender_identity": N_("gender"),
    "Nationality": N_("nationality"), "Physical_appearance": N_("appearance"),
    "Race_ethnicity": N_("race and ethnicity"), "Race_x_SES": N_("race and status"),
    "Race_x_gender": N_("race and gender"), "Religion": N_("religion"), "SES": N_("social and economic status"),
    "Sexual_orientation": N_("sexual orientation"),
}  # fmt: skip
METADATA = "additional_metadata.csv"
"""The authors' table of which answer is the biased one, where it lies beside the rows or as in their repository."""
_BESIDE = (".", "../supplemental", "../analysis_scripts", "..")
_SAME = {
    "man": "m", "men": "m", "boy": "m", "boys": "m", "male": "m",
    "woman": "f", "women": "f", "girl": "f", "girls": "f", "female": "f",
    "poor": "lowses", "rich": "highses",
}  # fmt: skip
"""Words for a group that the rows' own labels write otherwise."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question with three options, one of which is that it can't be known; CBBQ's are the same thing in Chinese."""

    category: str
    language: Literal["en", "zh"]
    ambiguous: bool
    negative: bool
    """Whether it asks for somebody bad: then naming the stereotyped group is the biased answer, else the other one."""
    context: str
    question: str
    options: tuple[str, str, str]
    label: int
    """Which option is right."""
    unknown: int
    """Which option says that it can't be known."""
    biased: int | None
    """Which option follows the stereotype; None where the row does not say whom it is about."""


class _Metadata(msgspec.Struct, frozen=True):
    stereotyped_groups: list[str] = []


class _Row(msgspec.Struct, frozen=True):
    category: str
    context_condition: Literal["ambig", "disambig"]
    question_polarity: Literal["neg", "nonneg"]
    context: str
    question: str
    ans0: str
    ans1: str
    ans2: str
    label: int
    answer_info: dict[str, list[str]]
    example_id: int = -1
    additional_metadata: _Metadata = _Metadata()


def read(path: Path) -> list[Question]:
    """The questions of a file, or of a folder of the authors' categories.

    Raises InputError naming the first row that can't be used.
    """
    if path.is_dir():
        return [question for file in rows.files_of(path, looks_like) for question in read(file)]
    known = _metadata(path)
    found = []
    for number, row in rows.numbered(path, _Row):
        groups = [_groups(row.answer_info.get(name, [])) for name in ("ans0", "ans1", "ans2")]
        unknown = [place for place, group in enumerate(groups) if "unknown" in group]
        if len(unknown) != 1 or not 0 <= row.label < 3:
            raise rows.unusable(path, number, _("its answers are not two people and one that says unknown"))
        negative = row.question_polarity == "neg"
        biased = known.get((row.category, row.example_id))
        if biased not in {0, 1, 2} - set(unknown):  # of a few intersections the table names nobody, or the unknown one
            stereotyped = _groups(row.additional_metadata.stereotyped_groups)
            biased = biased_option([bool(group & stereotyped) for group in groups], unknown[0], negative)
        found.append(
            Question(
                category=row.category, language="en", ambiguous=row.context_condition == "ambig", negative=negative,
                context=row.context, question=row.question, options=(row.ans0, row.ans1, row.ans2), label=row.label,
                unknown=unknown[0], biased=biased,
            )
        )  # fmt: skip
    return found


def biased_option(stereotyped: list[bool], unknown: int, negative: bool) -> int | None:
    """Which option follows the stereotype: its group in a negative question, the other person in a harmless one.

    None where not exactly one of the two people is of the stereotyped group.
    """
    people = [place for place in range(3) if place != unknown]
    inside = [place for place in people if stereotyped[place]]
    if len(inside) != 1:
        return None
    return inside[0] if negative else next(place for place in people if place != inside[0])


def _groups(words: list[str]) -> set[str]:
    """What a label says of a person, in one spelling: "F-Black" is of two groups, "low SES" and "lowSES" are one."""
    parts = [part for word in words for part in re.split(r"[,_-]", word)]
    plain = {re.sub(r"\s+", "", part.strip(" {}\"'").casefold()) for part in parts}
    return {_SAME.get(word, word) for word in plain if word}


def _metadata(path: Path) -> dict[tuple[str, int], int]:
    """(category, example_id) → the place of the biased answer.

    The authors' `target_loc` is that already, in both polarities (nyu-mll/BBQ, issue 11).
    """
    places = (path.parent / folder / METADATA for folder in _BESIDE)
    table = next((place.resolve() for place in places if place.is_file()), None)
    return _targets(table, table.stat().st_mtime_ns) if table else {}


@functools.lru_cache(maxsize=1)
def _targets(table: Path, changed_ns: int) -> dict[tuple[str, int], int]:
    """Read once for the eleven files beside it."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {
            (row["category"], int(row["example_id"])): int(float(row["target_loc"]))
            for row in csv.DictReader(file)
            if row.get("target_loc", "").replace(".", "", 1).isdigit() and row.get("example_id", "").isdigit()
        }


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return {"context_condition", "question_polarity", "answer_info", "ans0"} <= set(first)


KIND = Kind(
    name="bbq",
    title="BBQ",
    shows=N_(
        "Whether the model falls back on stereotypes when it can't know who is meant, and whether they override a text"
        " that says it; from -1 (always against) to 1 (always with). It is about stereotypes in the U.S., and a model"
        " that guesses blindly scores near 0 too: read it beside the accuracy."
    ),
    paper="A. Parrish et al.: BBQ, Findings of ACL 2022, arXiv:2110.08193",
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
    folders=True,
    picture=Picture(
        title=N_("BBQ: bias where the answer can't be known"),
        axis=N_("bias score"),
        domain=(-1, 1),
        even=0,
        ends=(N_("against the stereotype"), N_("with the stereotype")),
        names=CATEGORIES,
    ),
)
