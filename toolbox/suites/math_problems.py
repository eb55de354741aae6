"""MATH: competition problems whose answers are numbers, fractions, sets or formulas in LaTeX."""

import re
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import exact_match, numbers, rows
from toolbox.suites.kind import Kind

_DROPPED = re.compile(
    r"\\(?:[!,;: ]|left|right|displaystyle|quad|qquad|big|Big|bigl|bigr)(?![A-Za-z])|\\?[$%]|\^\s*\{?\\circ\}?|~"
)
_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_BARE = re.compile(r"\\(frac|sqrt)\s*([^\s\\{])")
_SECOND = re.compile(r"(\\frac\{[^{}]*\})\s*([^\s\\{])")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}|(-?\d+)/(\d+)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A row: a solution whose last `\\boxed{…}` is the answer, or the answer itself."""

    problem: str
    solution: str = ""
    answer: str | int | float | None = ""

    @property
    def wanted(self) -> str | None:
        return str("" if self.answer is None else self.answer).strip() or boxed(self.solution)


def read(path: Path) -> list[Problem]:
    """The problems of a file, or of a folder: the authors have a file a problem, by subject.

    Raises InputError naming the first row that can't be used.
    """
    if path.is_dir():
        return [problem for file in rows.files_of(path, looks_like) for problem in read(file)]
    found = []
    for number, problem in rows.numbered(path, Problem):
        if not problem.wanted:
            raise rows.unusable(path, number, _("it has neither an answer nor a solution with \\boxed{…}"), Problem)
        found.append(problem)
    return found


def boxed(text: str) -> str | None:
    """What the last \\boxed{…} or \\fbox{…} holds, however deep its braces; None without one."""
    for begin in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*(\{|(?=[^\s{$]))", text))):
        if not begin[1]:
            return text[begin.end() :].split("$")[0].split()[0]
        depth, place = 1, begin.end()
        while place < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            place += 1
        if not depth:
            return text[begin.end() : place - 1]
    return None


def same(found: str, wanted: str) -> bool:
    """Whether two answers are one, up to how it is written: spaces, units, kinds of fractions, "x =" before it.

    What the paper's own comparison lets pass (arXiv:2103.03874), and equal numbers besides.
    """
    return plain(found) == plain(wanted)


def plain(answer: str) -> str:
    """An answer in one way of writing; of a number its value."""
    text = unicodedata.normalize("NFKC", answer).replace("−", "-")
    text = _DROPPED.sub("", re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = _TEXT.sub(lambda unit: "" if text[: unit.start()].strip() else unit[1], text)
    text = re.sub(r"\s+", "", re.sub(r"^\s*[A-Za-z]\w?\s*=", "", text)).rstrip(".。")
    text = _SECOND.sub(r"\1{\2}", _BARE.sub(r"\\\1{\2}", text))
    if len(text) > numbers.LONGEST:
        return text
    if whole := _FRACTION.fullmatch(text):
        sign, above, below, left, right = whole.groups()
        if int(below or right):
            return str(Fraction(int(above or left), int(below or right)) * (-1 if sign else 1))
    if text.strip("+-") and _NUMBER.fullmatch(text):
        return str(Fraction(text.replace(",", "")))
    return text


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return isinstance(first.get("problem"), str) and bool({"answer", "solution"} & set(first))


KIND = Kind(
    name="math_problems",
    title=N_("MATH: competition problems"),
    shows=N_(
        "Whether the answer in \\boxed{…} is the right one, up to how it is written; one that is equal in another "
        "form can count as wrong, and the way to it is not looked at."
    ),
    paper="Hendrycks et al.: Measuring Mathematical Problem Solving With the MATH Dataset, arXiv:2103.03874",
    metrics=exact_match.METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
    folders=True,
)
