"""The pictures of a report: curves drawn from the metrics, and every chart that a run's work left in its plots/."""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import unescape

from toolbox import files
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.report import markdown, pictured, pipeline
from toolbox.report.charts import Series, line_chart
from toolbox.report.markdown import plain
from toolbox.report.story import Story

NAME = re.compile(r"[\w.-]+")
"""Of a chart's file: what needs no quoting in an address."""


def curves(story: Story) -> str:
    """The charts of the chain's runs; those of evaluations stand beside their tables."""
    parts = []
    for facts in story.chain:
        charts = shown(story, facts) if facts.verb != "evaluate" else []
        parts += [f"### {plain(_step(story, facts))}", *charts] if charts and len(story.chain) > 1 else charts
    return markdown.section(_("Charts"), *parts)


def shown(story: Story, facts: Facts) -> list[str]:
    """A run's charts as Markdown, put into plots/ of the report's run; others' in a folder of their own."""
    folder = Path("plots") if facts.run.id == story.run.id else Path("plots") / facts.run.id
    charts = pictures(facts)
    for name, svg in charts.items():
        files.write_text(story.run.path / folder / f"{name}.svg", svg)
    return [markdown.image(caption(svg) or name, str(folder / f"{name}.svg")) for name, svg in charts.items()]


def _step(story: Story, facts: Facts) -> str:
    return f"{story.named(facts)}. {pipeline.step(facts)}"


def pictures(facts: Facts) -> dict[str, str]:
    """A run's charts as SVG, by name: its curves and an evaluation's, drawn anew, and others that its work left."""
    drawn = dict(_drawn(facts)) | pictured.charts(facts.run.path / "evaluation", bool(facts.result.get("repair")))
    left = sorted(path for path in (facts.run.path / "plots").glob("*.svg") if path.stem not in drawn)
    return drawn | {path.stem: path.read_text("utf-8", errors="replace") for path in left if NAME.fullmatch(path.stem)}


def _drawn(facts: Facts) -> list[tuple[str, str]]:
    rates = facts.curve("learning_rate")
    drawn = []
    for file, title, axis, metric in (
        ("loss", _("Loss"), _("loss"), "loss"),
        ("margin", _("Reward margin"), _("chosen − rejected"), "rewards/margins"),
        ("reward", _("Reward"), _("reward"), "reward"),
        ("length", _("Length of answers"), _("tokens"), "completions/mean_length"),
        ("kl", _("Divergence from the reference"), _("nats a token"), "kl"),
        ("entropy", _("Entropy of the policy"), _("nats a token"), "entropy"),
    ):
        trained, held_out = facts.curve(metric), facts.curve(f"eval_{metric}")
        if trained or held_out:
            train = [Series(_("training"), smooth(trained)), Series("", trained, faint=True)]
            series = [*train, Series(_("evaluation"), held_out, dots=True)]
            drawn.append((file, line_chart(title, series, _("step"), axis)))
    if rates:
        chart = line_chart(_("Learning rate"), [Series(_("learning rate"), rates)], _("step"), _("learning rate"))
        drawn.append(("learning_rate", chart))
    return drawn


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The centred running mean over about a twentieth of the curve; the ends average over what there is."""
    points = [point for point in points if math.isfinite(point[1])]
    reach, sums = len(points) // 40, [0.0, *itertools.accumulate(y for _, y in points)]
    ends = [(max(0, i - reach), min(len(points), i + reach + 1)) for i in range(len(points))]
    return [(x, (sums[end] - sums[start]) / (end - start)) for (x, _), (start, end) in zip(points, ends, strict=True)]


def caption(svg: str) -> str:
    """A chart's own title."""
    return unescape(svg.partition('<title id="title">')[2].partition("</title>")[0], {"&quot;": '"'})
