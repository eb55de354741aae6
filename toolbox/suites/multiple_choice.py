"""Multiple choice: MMLU's, C-Eval's and CMMLU's tables, and a person's own questions with options."""

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox.datasets import reading
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "acc": Metric(N_("accuracy"), math.inf),
    "acc_norm": Metric(N_("accuracy, by likelihood a character"), math.inf),
    "acc_macro": Metric(N_("accuracy, mean of subjects"), math.inf),
}
LETTERS = "ABCDEFGHIJ"
ANSWER = ("answer", "answerkey", "label")
"""What the column of the right option may be called, in whatever case."""
SHOTS = 5
"""Solved examples before each question, where a dev split lies beside the file: as in the papers."""
SPLITS = ("test", "val", "validation", "dev")
WHOLE = "all"
"""The folder of a hub's repository that holds what lies in those of the subjects, too."""
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_SHARD = re.compile(r"-\d+-of-\d+")
"""How hubs number the parts of a split; their folder is then the subject."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question with its options. `lettered`: the model is shown all options and asked for a letter, as MMLU does;
    else each option is an answer of its own."""

    question: str
    options: list[str]
    answer: int
    """Index of the right option."""
    subject: str = ""
    lettered: bool = False


class Exam(msgspec.Struct, frozen=True, kw_only=True):
    """The questions of one subject, with the solved examples that stand before each."""

    subject: str
    questions: list[Question]
    examples: list[Question]

    @property
    def chinese(self) -> bool:
        return bool(_CHINESE.search(self.questions[0].question))


def read(path: Path) -> list[Question]:
    """The questions of a file; of a folder, those of its test files, else of val, else of all, subject by subject."""
    if path.is_dir():
        return [question for file in _of_folder(path) for question in read(file)]
    subject = _subject(path)
    table = _without_header(path)
    if table is not None:
        found = [_of_cells(path, number, cells, subject) for number, cells in table]
    else:
        found = [_of_row(path, number, row, subject) for number, row in rows.records(path)]
    return found


def exams(path: Path, questions: list[Question]) -> list[Exam]:
    """`questions` by subject, with up to SHOTS examples from the dev split beside the file, in the file's order."""
    examples: dict[str, list[Question]] = {}
    files = _of_folder(path) if path.is_dir() else [path]
    for dev in filter(None, map(_dev_of, files)):
        for question in read(dev):
            examples.setdefault(question.subject, []).append(question)
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        by_subject.setdefault(question.subject, []).append(question)
    return [
        Exam(subject=subject, questions=own, examples=examples.get(subject, [])[:SHOTS])
        for subject, own in by_subject.items()
    ]


def _of_row(path: Path, number: int, row: Any, subject: str) -> Question:
    """From named columns, in whatever case: options as A, B, C …, as a list, or as {text, label}."""
    row = {str(key).lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
    if isinstance(row.get("question"), dict):  # ARC's authors: the options inside the question
        row |= {"question": row["question"].get("stem"), "choices": row["question"].get("choices")}
    question, options, labels = row.get("question"), *options_of(row)
    answer = next((row[name] for name in ANSWER if name in row), None)
    if unanswered(answer) and isinstance(question, str) and options:
        raise without_answer(path, number)
    place = _place(answer, options, labels)
    if not isinstance(question, str) or len(options) < 2 or place is None:
        reason = _("it lacks a question, two options, or an answer that is one of them")
        raise rows.unusable(path, number, reason)
    subject = str(row.get("subject") or row.get("category") or subject)
    lettered = "a" in row or "subject" in row
    return Question(question=question, options=options, answer=place, subject=subject, lettered=lettered)


def options_of(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(options, what the answer column may call them)"""
    if "a" in row:
        letters = [letter for letter in LETTERS if row.get(letter.lower()) not in (None, "")]
        return [str(row[letter.lower()]) for letter in letters], letters
    listed: Any = next((row[name] for name in ("choices", "options") if row.get(name)), [])
    if isinstance(listed, dict) and isinstance(listed.get("text"), list):
        return list(map(str, listed["text"])), list(map(str, listed.get("label") or LETTERS))
    if isinstance(listed, dict):
        return list(map(str, listed.values())), list(map(str, listed))
    if isinstance(listed, list) and listed and all(isinstance(one, dict) and "text" in one for one in listed):
        return [str(one["text"]) for one in listed], [str(one.get("label", "")) for one in listed]
    return list(map(str, listed)) if isinstance(listed, list) else [], list(LETTERS)


def _place(answer: Any, options: list[str], labels: list[str]) -> int | None:
    """Which option is right: told by its index from 0, its letter or label, or its text."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(options) else None
    text = str(answer if answer is not None else "").strip()
    for names in (labels[: len(options)], [option.strip() for option in options]):
        if text in names:
            return names.index(text)
    return int(text) if text.isdecimal() and int(text) < len(options) else None


def _of_cells(path: Path, number: int, cells: list[str], subject: str) -> Question:
    """A line of MMLU's CSV files, which have no header: question, options, letter."""
    question, options, letter = cells[0], cells[1:-1], cells[-1]
    place = _place(letter, options, list(LETTERS))
    if len(options) < 2 or place is None:
        raise rows.unusable(path, number, _("its last cell is no letter of an option"))
    return Question(question=question, options=options, answer=place, subject=subject, lettered=True)


def _without_header(path: Path) -> list[tuple[int, list[str]]] | None:
    """(line, cells) of a CSV file whose first row is a question already; None of any other file."""
    with reading.opened(path) as file:
        if not _is_question(file.read(rows.HEAD)):
            return None
        file.seek(0)
        encoding = "gb18030" if reading.look(path).encoding == "gb18030" else "utf-8-sig"
        text = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")
        reader = csv.reader(text)
        try:
            return [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise rows.unusable(path, reader.line_num, _("a quotation mark is never closed")) from error


def _is_question(head: bytes) -> bool:
    """Whether a CSV file's first row, which may have several lines, ends with the letter of a cell between."""
    if head.startswith((b"{", b"[", b"PAR1")):
        return False
    try:
        cells = next(csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"), newline="")), [])
    except csv.Error:
        return False
    names_columns = "question" in {cell.strip().lower() for cell in cells}  # C-Eval's test files end with D
    return len(cells) >= 4 and not names_columns and cells[-1].strip() in LETTERS[: len(cells) - 2]


def _subject(path: Path) -> str:
    """By a file's name without its split: abstract_algebra of abstract_algebra_test.csv; law of a hub's
    law/val-00000-of-00001.parquet."""
    stem = _stem(path)
    if stem in (*SPLITS, "train"):
        return path.parent.name if _SHARD.search(path.name) else ""
    head, _bar, split = stem.rpartition("_")
    return head if split in SPLITS else stem


def _stem(path: Path) -> str:
    return _SHARD.sub("", path.name.partition(".")[0])


def _dev_of(path: Path) -> Path | None:
    """The dev split of a file: X_dev beside X_test, or dev/ beside test/, or dev.EXT beside test.EXT."""
    own = path.name
    for split in SPLITS[:-1]:
        own = (
            own.replace(f"_{split}.", "_dev.")
            if f"_{split}." in own
            else f"dev{own[len(split) :]}"
            if own.startswith((f"{split}.", f"{split}-"))
            else own
        )
    beside = [path.with_name(own), path.parent.parent / "dev" / own, path.parent.parent / "dev" / path.name]
    return next((file for file in beside if file.is_file() and file != path), None)


def _of_folder(folder: Path) -> list[Path]:
    """The files of a folder that hold what is asked: test/ or *_test, else val, else all but dev and train.

    C-Eval's test files have no answers, so that there it is val.
    """
    every = rows.files_of(folder, looks_like)
    every = [file for file in every if file.parent.name == WHOLE] or every
    for split in ("test", "val", "validation"):
        chosen = [file for file in every if _split(file) == split]
        if chosen and _is_answered(chosen[0]):
            return chosen
    rest = [file for file in every if _split(file) not in ("dev", "train", "auxiliary_train", "test")]
    return rest or [file for file in every if _split(file) == "test"]  # reading these says what they lack


def _is_answered(file: Path) -> bool:
    """Whether its first question has an answer."""
    head, first = rows.beginning(file)
    if _is_question(head):
        return True
    return any(not unanswered(value) for name, value in first.items() if str(name).lower() in ANSWER)


def unanswered(answer: Any) -> bool:
    return answer is None or str(answer).strip() in ("", "-1")


def without_answer(path: Path, number: int) -> InputError:
    return InputError(
        _("Row {number} of {path} has no answer.").format(number=number, path=path),
        _("Authors often keep the answers of their test split: name the one called val, validation or dev."),
    )


def _split(file: Path) -> str:
    tail = _SHARD.sub("", file.name.partition(".")[0]).rpartition("_")[2]
    return tail if tail in (*SPLITS, "train") else file.parent.name


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """A test split without answers too: that they lack is told where they are read."""
    if _is_question(head):
        return True
    if isinstance(first.get("question"), dict):
        return {"stem", "choices"} <= set(first["question"])
    columns = {str(name).lower() for name in first}
    return "question" in columns and bool({"a", "b"} <= columns or {"choices", "options"} & columns)


KIND = Kind(
    name="multiple_choice",
    title=N_("Multiple choice by likelihood"),
    shows=N_(
        "Whether the right option seems likeliest to the model; a fixed prompt and few choices, so 25% of four options "
        "is chance, and not whether it would write the right answer."
    ),
    paper="Hendrycks et al.: Measuring Massive Multitask Language Understanding, arXiv:2009.03300; "
    "Huang et al.: C-Eval, arXiv:2305.08322; Li et al.: CMMLU, arXiv:2306.09212",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
    folders=True,
)
