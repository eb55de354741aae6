"""`plan --history`: what was predicted of each run here, what was measured, and how far both lay apart."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolbox.commands import Session
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.calibration import Figures, Line

SHOWN = 20
"""Runs in the table, the newest; `--json` has all."""
WHAT: dict[str, Callable[["Figures"], float]] = {
    "peak_bytes": lambda figures: figures.peak_bytes,
    "time_s": lambda figures: figures.time_s,
    "tokens_per_s": lambda figures: figures.tokens_per_s,
    "energy_wh": lambda figures: figures.energy_wh,
    "disk_bytes": lambda figures: figures.disk_bytes,
}


def show(session: Session) -> dict[str, Any]:
    """The table and the medians; returns all lines for `--json`."""
    from toolbox import calibration

    lines = calibration.read(session.home.path)
    if not lines:
        session.say(_("No run has been measured here yet."))
    else:
        _show_runs(lines, session)
        _show_medians(lines, session)
    return {"runs": [_as_dict(line) for line in lines], "median_errors": medians(lines)}


def errors(line: "Line", name: str) -> tuple[float, float] | None:
    """(predicted over measured less 1, by the formulas alone and with the factors of that day), where both are known.

    A plan's peak is for the largest micro-batch that might come; the error is for the largest that came.
    """
    measured, raw, said = (WHAT[name](figures) for figures in (line.measured, line.predicted, line.said))
    if name == "peak_bytes" and raw:
        raw, said = line.seen_bytes, line.seen_bytes * said / raw
    return (raw / measured - 1, said / measured - 1) if measured and raw and said and not line.out_of_memory else None


def medians(lines: "list[Line]") -> dict[str, dict[str, float | int]]:
    """The median absolute error of each figure, before and after the calibration, over all runs that say it."""
    found = {}
    for name in WHAT:
        pairs = [pair for line in lines if (pair := errors(line, name))]
        if pairs:
            found[name] = {
                "before_calibration": round(statistics.median(abs(before) for before, _after in pairs), 4),
                "calibrated": round(statistics.median(abs(after) for _before, after in pairs), 4),
                "runs": len(pairs),
            }
    return found


def _as_dict(line: "Line") -> dict[str, Any]:
    from toolbox.calibration import shown

    return {
        "run": line.run, "when": line.when, "device": line.device, "model": line.model, "stage": line.stage,
        "method": line.method, "batch": line.batch, "max_length": line.max_length,
        "out_of_memory": line.out_of_memory, "before_calibration": shown(line.predicted),
        "predicted": shown(line.said), "measured": shown(line.measured),
        "errors": {name: [round(error, 4) for error in pair] for name in WHAT if (pair := errors(line, name))},
    }  # fmt: skip


def _show_runs(lines: "list[Line]", session: Session) -> None:
    from toolbox import units

    header = (
        _("Run"), _("Model"), _("Method"), _("Peak: predicted / measured"), _("Error, alone → calibrated"),
        _("Time: predicted / measured"), _("Error, alone → calibrated"),
    )  # fmt: skip
    rows = [
        (
            line.run or time.strftime("%Y-%m-%d %H:%M", time.localtime(line.when)),
            Path(line.model).name,
            line.method,
            _pair(line, "peak_bytes", units.size),
            _("out of memory") if line.out_of_memory else _error(line, "peak_bytes"),
            _pair(line, "time_s", units.duration),
            _error(line, "time_s"),
        )
        for line in reversed(lines[-SHOWN:])
    ]
    session.table(_("Predicted and measured, the newest first"), header, rows)


def _pair(line: "Line", name: str, unit: Callable[[float], str]) -> str:
    said, measured = WHAT[name](line.said), WHAT[name](line.measured)
    return " / ".join(unit(value) if value else "—" for value in (said, measured))


def _error(line: "Line", name: str) -> str:
    pair = errors(line, name)
    return f"{pair[0]:+.0%} → {pair[1]:+.0%}" if pair else "—"


def _show_medians(lines: "list[Line]", session: Session) -> None:
    names = {
        "peak_bytes": _("Peak"), "time_s": _("Time"), "tokens_per_s": _("Tokens per second"),
        "energy_wh": _("Energy"), "disk_bytes": _("Disk"),
    }  # fmt: skip
    rows = [
        (names[name], f"{found['before_calibration']:.1%}", f"{found['calibrated']:.1%}", str(found["runs"]))
        for name, found in medians(lines).items()
    ]
    if rows:
        header = (_("Median error"), _("By the formulas alone"), _("Calibrated"), _("Runs"))
        session.table("", header, rows)
