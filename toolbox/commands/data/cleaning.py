"""`data clean`: a new file without unusable rows, duplicates and test rows, and a record of what was left out."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import files
from toolbox.commands import Session
from toolbox.commands.data.checking import look, wanted
from toolbox.datasets import Fault, checking
from toolbox.errors import InputError
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.commands.data import CleanOptions
    from toolbox.datasets.checking import Finding
    from toolbox.datasets.contents import Contents


def run(options: "CleanOptions", session: Session) -> dict[str, Any]:
    """Go through the data twice: to find what has to go, and to write what stays."""
    held = look(options.dataset, options.columns, session)
    output = _output(options.output, held)
    record = output.with_suffix(".changes.jsonl")
    if record.exists():
        raise _taken(record)
    counts: Counter[str] = Counter()
    dropped: set[int] = set()
    with open(os.devnull, "wb") if session.dry_run else files.whole_file(record) as changes:

        def tell(found: "Finding") -> None:
            if found.index in dropped:
                return
            dropped.add(found.index)
            counts[found.problem] += 1
            line = {"row": found.number, "dropped": found.problem, "detail": found.detail}
            changes.write(msgspec.json.encode(line) + b"\n")

        tally = checking.examine(held, wanted(options, session), tell)
        kept = tally.values - len(dropped)
        if not kept:
            raise InputError(_("Nothing would be left of {name}.").format(name=options.dataset), _("Look: data check"))
        if not session.dry_run:
            _write(held, output, dropped)
    _show(tally.values, kept, counts, session)
    if not session.dry_run:
        session.say(_("Written: {output}; what was left out: {record}").format(output=output, record=record))
    return {
        "output": "" if session.dry_run else str(output),
        "record": "" if session.dry_run else str(record),
        "rows": tally.values,
        "kept": kept,
        "dropped": dict(counts),
    }


def _write(held: "Contents", output: Path, dropped: set[int]) -> None:
    with files.whole_file(output) as file:
        for index, row in enumerate(held.rows()):
            if index not in dropped and not isinstance(row, Fault):
                file.write(msgspec.json.encode(checking.as_value(row)) + b"\n")


def _show(rows: int, kept: int, counts: Counter[str], session: Session) -> None:
    lines = [(_("Rows"), str(rows)), (_("Kept"), str(kept))]
    lines += [(_(words), str(counts[problem])) for problem, words in checking.PROBLEMS.items() if counts[problem]]
    session.table(_("Cleaned"), ("", ""), lines)


def _output(named: str, held: "Contents") -> Path:
    """The file to write: as named, or a free name beside the old one. Raises InputError where something is there."""
    first = held.sources[0].path
    if not named:
        return files.free_path(Path.cwd() / f"{first.name.partition('.')[0]}.clean.jsonl")
    path = Path(named).expanduser().absolute()
    if path.exists():
        raise _taken(path)
    return path


def _taken(path: Path) -> InputError:
    return InputError(
        _("{path} is there already, and nothing is overwritten.").format(path=path),
        _("Name another file with --output."),
    )
