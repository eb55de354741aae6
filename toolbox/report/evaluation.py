"""What evaluations say: base, tuned and their difference, and what each suite shows (a report's section)."""

import re
from pathlib import Path
from typing import Any

from toolbox import repairing
from toolbox.backends import BACKENDS
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.report import curves, markdown, numbers
from toolbox.report.markdown import plain
from toolbox.report.story import Story
from toolbox.suites import kinds
from toolbox.suites.metrics import verdict

TITLES = {"base": N_("Base"), "tuned": N_("Tuned"), "difference": N_("Difference")}
"""The columns of an evaluation."""
VERDICTS = {"better": N_("better"), "worse": N_("worse"), "chance": N_("within chance")}

Line = dict[str, dict[str, Any]]
"""A metric's rows by model: base, tuned, difference."""


def evaluations(story: Story) -> str:
    """Every evaluation of the chain, with the plain sentence of what each suite shows and the paper it is from."""
    parts: list[str] = []
    found = story.of_verb("evaluate")
    for facts in found:
        if table := _table(lines(facts)):
            title = _("Step {number}: {run}").format(number=story.named(facts), run=plain(facts.run.id))
            parts += [
                f"### {title}" if len(found) > 1 else "",
                table,
                *_left(facts),
                *_repaired(facts),
                *curves.shown(story, facts),
            ]
    if parts:
        parts.append(
            _(
                "In brackets: 95 % intervals; p: of the paired test, adjusted by Holm. Better or worse is said "
                "only where both leave chance out."
            )
        )
        parts.append(_shown(line for facts in found for line in lines(facts).values()))
    return markdown.section(_("Evaluation and bias"), *parts)


def lines(facts: Facts) -> dict[tuple[str, str], Line]:
    """The rows of an evaluation by suite and metric; what is no row is passed over."""
    found: dict[tuple[str, str], Line] = {}
    for row in facts.result.get("results") or []:
        if isinstance(row, dict) and isinstance(row.get("metric"), str):
            if "ideal" not in row and (known := kinds.METRICS.get(row["metric"])):  # as earlier versions left it
                row = {**row, "ideal": known.told}
            found.setdefault((str(row.get("suite")), row["metric"]), {})[str(row.get("model"))] = row
    return found


def judged(line: Line) -> str:
    """better, worse or chance; empty where two models were not compared."""
    difference = line.get("difference")
    if not difference or not {"base", "tuned"} <= line.keys():
        return ""
    known = all(isinstance(difference.get(key), int | float) for key in ("value", "low", "high"))
    return verdict(line) if known else ""


def _table(found: dict[tuple[str, str], Line]) -> str:
    if not found:
        return ""
    models = [model for model in TITLES if any(model in line for line in found.values())]
    tested = any(_p(line) for line in found.values())
    compared = "difference" in models
    header = [_("Suite"), _("Metric"), "n", *(_(TITLES[model]) for model in models)]
    header += ["p"] if tested else []
    rows = []
    for (suite, _metric), line in found.items():
        first = next(iter(line.values()))
        cells = [plain(Path(suite).name), plain(titled(first)), str(first.get("n", ""))]
        cells += [measured(line.get(model), signed=model == "difference") for model in models]
        cells += [_p(line)] if tested else []
        rows.append([*cells, _(VERDICTS.get(judged(line), ""))] if compared else cells)
    return markdown.table([*header, ""] if compared else header, rows)


def titled(row: dict[str, Any]) -> str:
    """A metric's name, whose arrow begins no line."""
    return re.sub(r" (?=[↑↓→])", "\u00a0", kinds.metric(row).title)


def measured(row: dict[str, Any] | None, signed: bool = False) -> str:
    """A value with its interval."""
    if not row:
        return ""
    value, low, high = row.get("value"), row.get("low"), row.get("high")
    text = ("+" if signed and isinstance(value, int | float) and value > 0 else "") + numbers.number(value)
    if low is None or high is None:
        return text
    return f"{text} " + numbers.unbroken(f"[{numbers.number(low)}, {numbers.number(high)}]")


def _p(line: Line) -> str:
    """Of the paired test, adjusted by Holm for all that was tested beside it."""
    p = line.get("difference", {}).get("p_holm")
    return "" if not isinstance(p, int | float) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def _left(facts: Facts) -> list[str]:
    """What else the evaluation says of itself: who measured, its limit, figures that have no interval."""
    limit, backend = facts.plan.get("limit"), facts.result.get("backend")
    said = (
        [_("At most {limit} items of each suite, taken evenly.").format(limit=limit)] if limit and not backend else []
    )
    if isinstance(backend, dict):
        name, version = str(backend.get("name")), str(backend.get("version"))
        title = BACKENDS[name].title if name in BACKENDS else name
        said.append(_("Measured by {title} {version}.").format(title=plain(title), version=plain(version)))
        said += [_("At most {limit} items of each suite.").format(limit=limit)] if limit else []
    for row in facts.result.get("stated") or []:
        told = ", ".join(plain(Path(str(row.get(key))).name) for key in ("suite", "model", "metric"))
        said.append(
            _("Without an interval: {told}: {value}.").format(told=told, value=numbers.number(row.get("value")))
        )
    return said


def _repaired(facts: Facts) -> list[str]:
    """What a repair promised, and whether it held."""
    repair = facts.result.get("repair")
    if not isinstance(repair, dict) or not repair.get("checks"):
        return []
    rows = [[plain(cell) for cell in row] for row in repairing.claims(repair)]
    return [_("What the repair did:"), markdown.table([*repairing.claim_columns()], rows), repairing.turned(repair)]


def _shown(found: Any) -> str:
    """What each kind of suite does and does not show, once."""
    told: dict[str, None] = {}
    for line in found:
        row = next(iter(line.values()))
        kind = next((kind for kind in kinds.KINDS.values() if _is_of(row, kind)), None)
        if kind:
            paper = f" ({plain(kind.paper)})" if kind.paper else ""
            told[f"- **{plain(_(kind.title))}**: {plain(_(kind.shows))}{paper}"] = None
    return "\n".join([_("What these suites show, and what they don't:"), "", *told]) if told else ""


def _is_of(row: dict[str, Any], kind: Any) -> bool:
    return row["kind"] == kind.name if row.get("kind") else row["metric"] in kind.metrics
