"""`data check`: what is wrong with a data set, in tables; toolbox/datasets/checking.py finds it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolbox.commands import Session
from toolbox.datasets import STAGES, addresses, checking, columns, contents, finding, load, resolve
from toolbox.errors import DONE, REFUSED, InputError
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.commands.data import CheckOptions, SearchOptions
    from toolbox.datasets.checking import Finding, Tally, Wanted
    from toolbox.datasets.contents import Contents

LISTED = 200
"""Findings of a kind that are listed under --json; more are only counted."""
SHOWN = 5
"""Findings of a kind that are shown in the table."""
CLASSES, BAR = 12, 40
"""Of the picture of lengths: its lines, and the characters of its longest bar."""


def run(options: "CheckOptions", session: Session) -> dict[str, Any]:
    held = look(options.dataset, options.columns, session)
    counts: Counter[str] = Counter()
    listed: list[Finding] = []

    def tell(found: "Finding") -> None:
        counts[found.problem] += 1
        if counts[found.problem] <= LISTED:
            listed.append(found)

    tally = checking.examine(
        held, wanted(options, session, _tokenizer(options.model, session), options.max_length), tell
    )
    _show(options.dataset, held, tally, counts, listed, session)
    return {
        "dataset": options.dataset,
        "files": [str(source.path) for source in held.sources],
        "format": held.form.format,
        "kind": held.form.kind,
        "stages": list(STAGES[held.form.kind]),
        "columns": held.form.columns,
        "notes": held.form.notes,
        "rows": tally.values,
        "usable": tally.usable,
        "problems": {problem: counts[problem] for problem in checking.PROBLEMS},
        "findings": [{"row": f.number, "problem": f.problem, "detail": f.detail} for f in listed],
        "lengths": {"unit": _unit(tally), **figures(tally.lengths)},
        "exit_status": REFUSED if counts["unusable"] else DONE,
    }


def look(name: str, pairs: Sequence[str], session: Session) -> "Contents":
    """The contents that an address means, with the columns that were named."""
    found = finding.find(addresses.parse(name), session.home)
    return contents.look(found.paths, {**found.columns, **columns.parse(pairs)})


def wanted(
    options: "SearchOptions", session: Session, tokenizer: Path | None = None, max_length: int | None = None
) -> "Wanted":
    """What is to be looked for."""
    against = load(resolve(options.against, session.home, skip_broken=True)) if options.against else []
    return checking.Wanted(near=options.near, against=against, tokenizer=tokenizer, max_length=max_length)


def figures(lengths: Sequence[int]) -> dict[str, float]:
    """The usual figures of some lengths; none where there are none."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    last = len(ordered) - 1
    places = {"min": 0, "median": last // 2, "p95": round(last * 0.95), "max": last}
    return {"mean": round(sum(ordered) / len(ordered), 1), **{name: ordered[place] for name, place in places.items()}}


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, to, rows) of equal classes up to the 99th percentile, and one above it where longer rows are."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    most = ordered[round((len(ordered) - 1) * 0.99)]
    width = max(1, -(-(most + 1) // CLASSES))
    counts = Counter(min(length // width, CLASSES) for length in ordered)
    top = {CLASSES: ordered[-1]}
    return [
        (part * width, top.get(part, (part + 1) * width - 1), counts[part])
        for part in range(CLASSES + 1)
        if part * width <= ordered[-1]
    ]


def _show(
    name: str, held: "Contents", tally: "Tally", counts: Counter[str], listed: "list[Finding]", session: Session
) -> None:
    form = held.form
    rows = [
        (_("Format"), form.format),
        (_("Columns"), ", ".join(f"{key}={column}" for key, column in form.columns.items())),
        (_("Stages that fit"), " ".join(STAGES[form.kind])),
        (_("Rows"), str(tally.values)),
        (_("Usable"), str(tally.usable)),
    ]
    session.table(name, ("", ""), rows)
    for note in form.notes:
        session.say(note)
    found = [
        (str(counts[problem]), _(words), _examples([f for f in listed if f.problem == problem], counts[problem]))
        for problem, words in checking.PROBLEMS.items()
        if counts[problem]
    ]
    if found:
        session.table(_("What was found"), (_("Rows"), "", _("Where")), found)
    else:
        session.say(_("Nothing is wrong with it."))
    session.table(
        _("Lengths, in {unit}").format(unit=_unit_name(tally)), (_("From"), _("To"), _("Rows"), ""), bars(tally)
    )


def bars(tally: "Tally") -> list[tuple[str, str, str, str]]:
    """The picture of lengths: a bar a class."""
    classes = histogram(tally.lengths)
    most = max((rows for _from, _to, rows in classes), default=1)
    return [
        (str(low), str(high), str(rows), "█" * round(rows / most * BAR) or ("▏" if rows else ""))
        for low, high, rows in classes
    ]


def _examples(found: "list[Finding]", count: int) -> str:
    lines = [f"{finding.number}: {finding.detail}" for finding in found[:SHOWN]]
    return "\n".join([*lines, *(["…"] if count > SHOWN else [])])


def _unit(tally: "Tally") -> str:
    return "tokens" if tally.in_tokens else "characters"


def _unit_name(tally: "Tally") -> str:
    return _("tokens of the texts, without the template") if tally.in_tokens else _("characters")


def _tokenizer(model: str, session: Session) -> Path | None:
    """The tokenizer.json of a model. Raises InputError where it has none."""
    from toolbox import models

    if not model:
        return None
    path = models.resolve(model, session.home).path / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            _("{model} has no tokenizer.json, so its tokens can't be counted.").format(model=model),
            _("Leave out --model: lengths are counted in characters."),
        )
    return path
