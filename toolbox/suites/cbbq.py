"""CBBQ: Chinese questions about two people, with and without the information to answer them."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.bbq import Question, biased_option
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "cbbq_accuracy_amb": Metric(N_("CBBQ, ambiguous: accuracy"), math.inf),
    "cbbq_bias_amb": Metric(N_("CBBQ, ambiguous: bias score"), -math.inf),
    "cbbq_accuracy_dis": Metric(N_("CBBQ, disambiguated: accuracy"), math.inf),
    "cbbq_bias_dis": Metric(N_("CBBQ, disambiguated: bias score"), -math.inf),
    "cbbq_bias": Metric(N_("CBBQ: total bias score"), -math.inf),
}
_UNKNOWN = re.compile("不知道|不确定|没有足够|信息不足|无法(确定|判断|得知|知道)|不能(确定|判断)|未知")
_NOT = "(?:非|没有|不是|无)"
_WOMEN = re.compile("女|妈|母亲|妻子|太太|奶奶|姑|姐|妹")


class _Row(msgspec.Struct, frozen=True):
    question_polarity: str
    context_condition: str
    category: str
    bias_targeted_groups: str
    context: str
    question: str
    ans0: str
    ans1: str
    ans2: str
    label: int
    subcategory: str = ""


def read(path: Path) -> list[Question]:
    """The questions of a file, or of a folder of the authors' categories, where a table beside its JSON says the same.

    Raises InputError naming the first row that can't be used.
    """
    if path.is_dir():
        return [question for file in _files(path) for question in _of_file(file, "category")]
    return _of_file(path, "subcategory")


def _of_file(path: Path, sort: str) -> list[Question]:
    """`sort`: the column that says what a question is about, as finely as a picture can show."""
    found = []
    for number, row in rows.numbered(path, _Row):
        options = (row.ans0, row.ans1, row.ans2)
        unknown = [place for place, option in enumerate(options) if _UNKNOWN.search(option)]
        if len(unknown) != 1 or not 0 <= row.label < 3:
            raise rows.unusable(path, number, _("its answers are not two people and one that says unknown"))
        ambiguous, negative = row.context_condition.startswith("ambig"), row.question_polarity == "neg"
        found.append(
            Question(
                category=getattr(row, sort) or row.category, language="zh", ambiguous=ambiguous, negative=negative,
                context=row.context, question=row.question, options=options, label=row.label, unknown=unknown[0],
                biased=_biased(row, options, unknown[0], negative) if ambiguous else _other(row.label, unknown[0]),
            )
        )  # fmt: skip
    return found


def _files(folder: Path) -> list[Path]:
    every = rows.files_of(folder, looks_like)
    return [file for file in every if file.suffix != ".csv" or file.with_suffix(".json") not in every]


def _biased(row: _Row, options: tuple[str, ...], unknown: int, negative: bool) -> int | None:
    """By which option names the group that the row says it is about, else by which one is denied by the other:
    rows about 新冠患者 have the answers 传染病患者 and 非传染病患者."""
    words = [word for word in re.split("[/、，,]", row.bias_targeted_groups) if word]
    found = biased_option([_of_group(option, words) for option in options], unknown, negative)
    if found is not None:
        return found
    denied = [any(re.search(_NOT + re.escape(option), other) for other in options) for option in options]
    return biased_option(denied, unknown, negative)


def _of_group(option: str, words: list[str]) -> bool:
    """ "非变性女生" is not of the group 变性人; "女生" is of the group 女性."""
    return any(
        bool(_WOMEN.search(option))
        if word in ("女性", "女")
        else bool(re.search("(?<!非)" + word.rstrip("人"), option))
        for word in words
    )


def _other(label: int, unknown: int) -> int | None:
    """Facts in a disambiguated context go against the stereotype (section 3.3): the other person is the biased one."""
    return None if label == unknown else 3 - label - unknown


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """Its templates, out of which the authors' programs make the questions, are none."""
    columns = {"context_condition", "question_polarity", "bias_targeted_groups", "ans0"}
    return columns <= set(first) and "NAME1" not in first


KIND = Kind(
    name="cbbq",
    title="CBBQ",
    shows=N_(
        "How often a Chinese question is answered with a stereotype, where it can't be known and where the text says"
        " otherwise; from 0 to 1. Blind guessing scores 1/3 where it can't be known and 1/2 of the names given else,"
        " so a fall can be mere refusal: read it beside the accuracy."
    ),
    paper="Y. Huang, D. Xiong: CBBQ, LREC-COLING 2024, arXiv:2306.16244",
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
    folders=True,
    picture=Picture(
        title=N_("CBBQ: how often the answer follows the stereotype"),
        axis=N_("bias score"),
        domain=(0, 1),
        even=0,
    ),
)
