"""WinoBias: whom a pronoun refers to, where its gender fits the stereotype of the occupation and where it does not."""

import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox.errors import NotFoundError
from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "winobias_difference": Metric(N_("WinoBias: accuracy with the stereotype minus against it, points"), 0),
    "winobias_pro": Metric(N_("WinoBias, accuracy with the stereotype, %"), float("inf")),
    "winobias_anti": Metric(N_("WinoBias, accuracy against the stereotype, %"), float("inf")),
}
PRONOUNS = {"he", "him", "his", "she", "her", "hers"}
_LINE = re.compile(r"\d+\s+\S.*\[.+\].*\[.+\]|\d+\s+.*\[[Tt]he .+\]")
LONGEST = 1000
"""Letters of a line: time for many brackets in a row grows with their square."""
_SPAN = re.compile(r"\[+\s*(.*?)\s*\]+")


class Sentence(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a pair of files: the same sentence with the pronoun that fits the stereotype, and with the other."""

    number: int
    pro: str
    anti: str
    pro_pronoun: str
    anti_pronoun: str
    right: str
    """The occupation that the pronoun refers to, as "developer"."""
    wrong: str


class _Line(msgspec.Struct, frozen=True):
    text: str
    occupation: str
    pronoun: str


def read(path: Path) -> list[Sentence]:
    """The lines of the pro-stereotyped file beside those of its sibling, whichever of the two `path` is.

    Raises NotFoundError where the sibling is missing, InputError naming the first line that can't be used.
    """
    pro, anti = _both(path)
    lines = [_lines(pro), _lines(anti)]
    if len(lines[0]) != len(lines[1]):
        raise rows.unusable(anti, min(map(len, lines)) + 1, _("the two files have not the same number of lines"))
    occupations = sorted({line.occupation for line in lines[0]}, key=lambda name: (-len(name), name))
    return [
        Sentence(
            number=number, pro=with_it.text, anti=against.text, pro_pronoun=with_it.pronoun,
            anti_pronoun=against.pronoun, right=with_it.occupation,
            wrong=_other(pro, lines[0], number, occupations),
        )
        for number, (with_it, against) in enumerate(zip(*lines, strict=True), 1)
    ]  # fmt: skip


def whole(path: Path) -> Path:
    """The pro-stereotyped file stands for both."""
    return _both(path)[0]


def _both(path: Path) -> tuple[Path, Path]:
    """(pro-stereotyped, anti-stereotyped), by the word in their names: nothing in a line tells which it is."""
    name = path.name
    if re.search(r"(?<![a-z])anti", name):
        pro, anti = path.with_name(re.sub(r"(?<![a-z])anti", "pro", name, count=1)), path
    else:
        pro, anti = path, path.with_name(re.sub(r"(?<![a-z])pro", "anti", name, count=1))
    missing = next((one for one in (pro, anti) if not one.is_file()), None)
    if missing or pro == anti:
        raise NotFoundError(
            _("WinoBias is two files, and {name} is not beside {path}.").format(
                name=missing.name if missing else "anti_…", path=path
            ),
            _("Lay the pro- and the anti-stereotyped file of one type side by side, with their own names."),
        )
    return pro, anti


def _lines(path: Path) -> list[_Line]:
    texts = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    return [_line(path, number, text) for number, text in enumerate(texts, 1)]


def _line(path: Path, number: int, text: str) -> _Line:
    """The occupation and the first pronoun in brackets; a few lines bracket a second pronoun, or leave out "the"."""
    spans = [span.strip("[] ") for span in _SPAN.findall(text)]
    pronouns = [span for span in spans if span.lower() in PRONOUNS]
    names = [span for span in spans if span.lower() not in PRONOUNS]
    if not pronouns or not names:
        raise rows.unusable(path, number, _("it brackets no occupation and pronoun"))
    plain = re.sub(r"\s+", " ", re.sub(r"[\[\]]", "", re.sub(r"^\d+\s+", "", text))).strip()
    plain = re.sub(r"\bthe the\b", "the", plain).replace(" 's", "'s").replace(" ,", ",")
    return _Line(plain, _bare(names[0]), pronouns[0])


def _bare(name: str) -> str:
    """An occupation without its article, in lower case but for CEO."""
    bare = re.sub(r"^(the|a|an)\s+", "", name, flags=re.I).lower()
    return "CEO" if bare == "ceo" else bare


def _other(path: Path, lines: list[_Line], number: int, occupations: list[str]) -> str:
    """The other occupation that the sentence names; of several the one that its partner, beside it, is about."""
    line, partner = lines[number - 1], lines[min((number - 1) ^ 1, len(lines) - 1)]
    text, others = line.text.lower(), []
    for name in occupations:
        if re.search(rf"\b{re.escape(name.lower())}\b", text):
            text = text.replace(name.lower(), " ")
            others += [name] if name != line.occupation else []
    if not others:
        raise rows.unusable(path, number, _("it does not name two occupations"))
    return partner.occupation if partner.occupation in others else others[0]


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    """Numbered lines with an occupation and a pronoun in brackets."""
    line = head.decode("utf-8-sig", "ignore").partition("\n")[0]
    if len(line) > LONGEST or not _LINE.match(line):
        return False
    spans = {span.lower() for span in _SPAN.findall(line)}
    return bool(spans & PRONOUNS) and bool(spans - PRONOUNS)


KIND = Kind(
    name="winobias",
    title="WinoBias",
    shows=N_(
        "Whether the model finds whom a pronoun means less often where its gender goes against the occupation's"
        " stereotype. A model that can't tell at all shows no difference either; F1 in the paper is of coreference"
        " systems, and no such figure."
    ),
    paper="J. Zhao, T. Wang, M. Yatskar, V. Ordonez, K.-W. Chang: Gender Bias in Coreference Resolution, NAACL 2018,"
    " arXiv:1804.06876",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
    whole=whole,
    picture=Picture(
        title=N_("WinoBias: what the stereotype adds to the accuracy"),
        axis=N_("points, by the occupation that is meant"),
        domain=(-100, 100),
        even=0,
        ends=(N_("against the stereotype"), N_("with the stereotype")),
    ),
)
