"""Common sense: HellaSwag, WinoGrande, PIQA, BoolQ and OpenBookQA, as their authors and hubs lay them out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import multiple_choice, rows
from toolbox.suites.kind import Kind

METRICS = {name: multiple_choice.METRICS[name] for name in ("acc", "acc_norm")}


class Item(msgspec.Struct, frozen=True):
    """What is compared: how likely each continuation is after its context."""

    pairs: list[tuple[str, str]]
    """(context, continuation) of each option."""
    answer: int
    """Index of the right one."""
    by_length: bool = True
    """Whether options differ in length, so that their likelihood by character is a figure too."""


Row = dict[str, Any]


def _hellaswag(row: Row) -> Item:
    begun = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if "ctx_a" in row else row["ctx"]
    about = f"{row['activity_label']}: " if row.get("activity_label") else ""
    context = _cleaned(about + begun)
    return Item([(context, f" {_cleaned(ending)}") for ending in row["endings"]], int(row["label"]))


def _cleaned(text: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _winogrande(row: Row) -> Item:
    """What follows the blank, after the sentence with each name in it ("partial evaluation", arXiv:1806.02847)."""
    before, after = row["sentence"].split("_", 1)
    options = (row["option1"], row["option2"])
    return Item([(before + option, f" {after.strip()}") for option in options], int(row["answer"]) - 1, by_length=False)


def _piqa(row: Row) -> Item:
    context = f"Question: {row['goal']}\nAnswer:"
    return Item([(context, f" {row[name]}") for name in ("sol1", "sol2")], int(row["label"]))


def _boolq(row: Row) -> Item:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    answer = row["answer"] if "answer" in row else row["label"]
    right = {"false": 0, "0": 0, "true": 1, "1": 1}[str(answer).strip().lower()]
    return Item([(context, " no"), (context, " yes")], right, by_length=False)


def _openbookqa(row: Row) -> Item:
    options, labels = multiple_choice.options_of(row)
    context = row["question_stem"]
    return Item([(context, f" {option}") for option in options], labels.index(str(row["answerKey"]).strip()))


LAYOUTS: dict[tuple[str, ...], tuple[Callable[[Row], Item], str]] = {
    ("endings", "ctx"): (_hellaswag, "label"),
    ("endings", "ctx_a", "ctx_b"): (_hellaswag, "label"),
    ("sentence", "option1", "option2"): (_winogrande, "answer"),
    ("goal", "sol1", "sol2"): (_piqa, "label"),
    ("passage", "question"): (_boolq, "answer"),
    ("question_stem", "choices"): (_openbookqa, "answerKey"),
}
"""By the columns of a row: how it is read, and the column of the right answer, which test splits lack. The contexts
are lm-evaluation-harness', whose figures are the ones that people publish."""


def read(path: Path) -> list[Item]:
    """Raises InputError naming the first row that can't be used."""
    found, labels = [], _labels(path)
    for place, (number, row) in enumerate(rows.records(path)):
        layout = _layout(row) if isinstance(row, dict) else None
        if not layout:
            raise rows.unusable(path, number, _("it has not the columns of the rows before it"))
        of_row, column = layout
        if labels and column not in row:
            row = {**row, column: labels[place] if place < len(labels) else None}
        if multiple_choice.unanswered(row.get(column, row.get("label"))):
            raise multiple_choice.without_answer(path, number)
        try:
            item = of_row(row)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise rows.unusable(path, number, _("its columns do not hold what they should")) from error
        if not 0 <= item.answer < len(item.pairs):
            raise rows.unusable(path, number, _("its answer is none of its options"))
        found.append(item)
    return found


def _labels(path: Path) -> list[str]:
    """PIQA's and WinoGrande's authors have the answers beside: valid-labels.lst of valid.jsonl."""
    beside = path.with_name(f"{path.name.partition('.')[0]}-labels.lst")
    return beside.read_text("utf-8").split() if beside.is_file() else []


def _layout(first: Row) -> tuple[Callable[[Row], Item], str] | None:
    return next((layout for columns, layout in LAYOUTS.items() if set(columns) <= set(first)), None)


def looks_like(path: Path, head: bytes, first: Row) -> bool:
    return bool(_layout(first)) and not {"answers", "context"} & set(first)


KIND = Kind(
    name="commonsense",
    title=N_("Common sense: the likeliest ending"),
    shows=N_(
        "Whether what people find obvious seems likeliest to the model: 25% of four options, 50% of two is chance; many"
        " items are known to have doubtful answers, and all are in training data by now."
    ),
    paper="Zellers et al.: HellaSwag, arXiv:1905.07830; Sakaguchi et al.: WinoGrande, arXiv:1907.10641; "
    "Bisk et al.: PIQA, arXiv:1911.11641; Clark et al.: BoolQ, arXiv:1905.10044; "
    "Mihaylov et al.: OpenBookQA, arXiv:1809.02789",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
)
