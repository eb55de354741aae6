"""The report of a run and of the chain that it belongs to, from what lies in their folders, whatever their end
(`runs report`)."""

from pathlib import Path

from toolbox import chains, files
from toolbox.report import record
from toolbox.report.sections import SECTIONS
from toolbox.report.story import Story
from toolbox.runs import Run


def write_report(run: Run) -> Path:
    """Write report.md and plots/*.svg, atomically and in the language of the day; returns the report's path.

    Whatever the run directory lacks is left out, so that a run that failed before its first step has a report too.
    """
    return _write(Story.of(run))


def write_reports(run: Run) -> Path:
    """Write the report of a run that has just ended, and again those of the runs it was made from: they tell of it."""
    first = Story.of(run)
    path = _write(first)
    for earlier in chains.earlier(run):
        _write(Story.of(earlier, first.diagnosed))
    return path


def write_page(run: Run, output: Path | None = None) -> Path:
    """Write the report, and as one HTML file without scripts and addresses, to report.html in the run or `output`."""
    from toolbox.report.page import page

    story = Story.of(run)
    text = _write(story).read_text("utf-8")
    path = output or run.path / "report.html"
    files.write_text(path, page(text, story.graph, run.path), mode=0o600 if output is None else 0o644)
    return path


def _write(story: Story) -> Path:
    parts = [part for section in SECTIONS if (part := section(story))]
    text = "\n\n".join(parts) + "\n"
    path = story.run.path / "report.md"
    files.write_text(path, "\n".join(filter(None, (text, record.block(story.told, text)))) + "\n")
    return path
