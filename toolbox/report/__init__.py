"""A run's report.md and charts, from what lies in its directory, whatever its end (`runs report`)."""

from pathlib import Path

from toolbox import files
from toolbox.facts import Facts
from toolbox.report.sections import SECTIONS
from toolbox.runs import Run


def write_report(run: Run) -> Path:
    """Write report.md and plots/*.svg, atomically and in the language of the day; returns the report's path.

    Whatever the run directory lacks is left out, so that a run that failed before its first step has a report too.
    """
    facts = Facts.of(run)
    parts = [part for section in SECTIONS if (part := section(facts))]
    path = run.path / "report.md"
    files.write_text(path, "\n\n".join(parts) + "\n")
    return path
