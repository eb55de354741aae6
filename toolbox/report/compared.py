"""A comparison of runs as tables, Markdown and pictures (`runs compare`)."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolbox import files
from toolbox.comparison import Group, Line, Measured, difference
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.report import markdown, numbers
from toolbox.report.charts import Dot, Series, dot_chart, line_chart
from toolbox.report.curves import caption, smooth
from toolbox.report.evaluation import TITLES, VERDICTS
from toolbox.report.evaluation import measured as as_measured
from toolbox.report.figures import CAME, shown
from toolbox.suites import kinds, metrics

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, columns, rows."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RELATIVE = {
    "train_loss": "↓", "eval_loss": "↓", "tokens_per_s": "↑", "peak_bytes": "↓", "elapsed_s": "↓", "max_abs_diff": "↓",
}  # fmt: skip
"""Outcomes that are drawn as a share of the first run's, and where better is."""


def letters(groups: Sequence[Group]) -> dict[str, str]:
    """A letter for each run's id, in the order of the groups: ids are too long for columns and legends."""
    ids = [facts.run.id for group in groups for facts in group.runs]
    return {id: LETTERS[place] if place < len(LETTERS) else str(place + 1) for place, id in enumerate(ids)}


def tables(group: Group, names: dict[str, str]) -> list[Table]:
    """What was planned differently, what came out, what was measured; those that hold nothing are left out."""
    own = tuple(names[facts.run.id] for facts in group.runs)
    two = len(own) == 2
    change = (_("{after} against {before}").format(before=own[0], after=own[1]),) if two else ()
    planned = [(line.key, *(_cell(line.key, value) for value in line.values)) for line in group.planned]
    came = [
        (
            _(CAME.get(line.key, N_("Steps"))),
            *(_cell(line.key, value) for value in line.values),
            *([_change(line)] if two else []),
        )
        for line in group.came
    ]
    measured = [
        (name, *(as_measured(one) or "–" for one in row.rows), *([_verdict(row)] if two else []))
        for name, row in zip(_named(group.measured), group.measured, strict=True)
    ]
    every: list[Table] = [
        (_("Planned differently"), (_("Key"), *own), planned),
        (_("What came out"), (_("What"), *own, *change), came),
        (_("Evaluations, with intervals of 95 %"), (_("Suite"), *own, *change), measured),
    ]
    return [table for table in every if table[2]]


def legend(group: Group, names: dict[str, str]) -> Table:
    """Which run each letter is."""
    rows: list[tuple[str, ...]] = [
        (names[facts.run.id], facts.run.id, facts.status.stage or facts.verb, str(facts.model.get("id", "")))
        for facts in group.runs
    ]
    return _("Runs of {verb}").format(verb=group.verb), ("", _("Run"), _("Kind"), _("Model")), rows


def write(groups: Sequence[Group], folder: Path, tensorboard: str) -> Path:
    """comparison.md and its pictures into `folder`; returns the Markdown's path."""
    names = letters(groups)
    parts = ["# " + _("Comparison of {count} runs").format(count=len(names))]
    for group in groups:
        parts += [_as_markdown(table) for table in [legend(group, names), *tables(group, names)]]
        for stem, svg in pictures(group, names):
            file = folder / f"{group.verb}-{stem}.svg"
            files.write_text(file, svg)
            parts.append(markdown.image(caption(svg), file.name))
    if tensorboard:
        parts += ["## TensorBoard", markdown.block(tensorboard, "bash")]
    path = folder / "comparison.md"
    files.write_text(path, "\n\n".join(parts) + "\n")
    return path


def _as_markdown(table: Table) -> str:
    title, columns, rows = table
    cells = [tuple(markdown.plain(cell) for cell in row) for row in rows]
    return f"## {markdown.plain(title)}\n\n" + markdown.table([markdown.plain(column) for column in columns], cells)


def pictures(group: Group, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(name, SVG): the loss curves over each other, the outcomes beside the first run's, what evaluations found."""
    own = [f"{names[facts.run.id]} {_short(facts)}" for facts in group.runs]
    for metric, title in (("loss", _("Training loss")), ("eval_loss", _("Evaluation loss"))):
        curves = [facts.curve(metric) for facts in group.runs]
        if any(curves):
            series = [one for name, curve in zip(own, curves, strict=True) for one in _series(name, curve, metric)]
            yield metric, line_chart(title, series, _("step"), _("loss"))
    relative = [
        (f"{_(CAME[line.key])} {RELATIVE[line.key]}", _relative(line)) for line in group.came if line.key in RELATIVE
    ]
    relative = [(label, dots) for label, dots in relative if sum(dot is not None for dot in dots) > 1]
    if relative:
        first = _("Outcomes, {first} = 100%").format(first=own[0].partition(" ")[0])
        yield "outcome", dot_chart(first, relative, own, reference=1.0)
    shares = [row for row in group.measured if _is_share(row)]
    if shares:
        rows = [(name, [_as_dot(one) for one in row.rows]) for name, row in zip(_named(shares), shares, strict=True)]
        yield "evaluation", dot_chart(_("Evaluations, with intervals of 95 %"), rows, own, domain=(0.0, 1.0))


def _series(name: str, curve: list[tuple[float, float]], metric: str) -> list[Series]:
    if metric == "eval_loss":
        return [Series(name, curve, dots=True)]
    return [Series(name, smooth(curve)), Series("", curve, faint=True)]


def _short(facts: Facts) -> str:
    """A run's id without the year: 1121-1530-sft-demo."""
    return facts.run.id[4:] if facts.run.id[:8].isdigit() else facts.run.id


def _relative(line: Line) -> list[Dot | None]:
    first = line.values[0]
    return [Dot(value / first) if first and value is not None else None for value in line.values]


def _is_share(row: Measured) -> bool:
    """Whether all of it lies between 0 and 1."""
    return all(0 <= one["low"] <= one["high"] <= 1 for one in row.rows if one)


def _as_dot(row: dict[str, Any] | None) -> Dot | None:
    return Dot(row["value"], row["low"], row["high"]) if row else None


def _cell(key: str, value: Any) -> str:
    """A value in the unit that its key says."""
    if value is None:
        return "–"
    if isinstance(value, bool) or value == "":
        return numbers.number(value) or "–"
    return shown(key.rpartition(".")[2], value) or str(value)


def _change(line: Line) -> str:
    """By how much the second lies above the first, in per cent of it."""
    before, after = line.values
    if before is None or after is None:
        return ""
    return "=" if after == before else f"{after / before - 1:+.1%}" if before else ""


def _named(measured: Sequence[Measured]) -> list[str]:
    """Suite and metric of each, and which model where it is not the same everywhere."""
    several = len({row.model for row in measured}) > 1
    return [
        f"{Path(row.suite).stem} · {kinds.metric(row.any_row).title}"
        + (f" · {_(TITLES[row.model])}" if several else "")
        for row in measured
    ]


def _verdict(row: Measured) -> str:
    """The difference of two, whether it is more than chance, and what says so."""
    change = difference(row)
    if change is None:
        return ""
    before, after = row.rows
    told = metrics.verdict({"base": before or {}, "tuned": after or {}, "difference": change})
    shown = f"{change['value']:+.3g} [{change['low']:+.3g}, {change['high']:+.3g}] {_(VERDICTS[told])}"
    if not row.paired:
        return f"{shown} ({_('intervals apart')})"
    return f"{shown} ({_('paired')}, p {change['p_holm']:.2g})"


def tensorboard(groups: Sequence[Group]) -> str:
    """The line that opens the event files of all runs that have some; empty where none has."""
    names = letters(groups)
    folders = {}
    for facts in (facts for group in groups for facts in group.runs):
        folder = Path(str(facts.plan.get("tensorboard") or facts.run.path / "tensorboard"))
        if any(folder.glob("events.out.tfevents.*")):
            folders[f"{names[facts.run.id]}-{facts.run.id}"] = folder
    return _line(folders) if folders else ""


def _line(folders: dict[str, Path]) -> str:
    """TensorBoard takes several folders only under names, and parts them by commas and colons."""
    spec = ",".join(f"{name}:{folder}" for name, folder in folders.items())
    return shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir_spec", spec])
