"""Where a chain ran and what it began with: hardware, versions, models, data and licences (report sections)."""

from collections.abc import Iterator
from typing import Any

from toolbox import __version__, registry, units
from toolbox.chains import Origin
from toolbox.config import Home
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.report import markdown, numbers
from toolbox.report.markdown import code, plain
from toolbox.report.story import Story
from toolbox.report.words import SOURCES

FAULTS_SHOWN = 50
"""Rows left out that a report lists for a data set."""
HASHES_SHOWN = 40
FIRST = (
    "device", "device_memory_bytes", "driver", "cpu", "cores", "ram_bytes", "platform", "python", "toolbox", "revision",
)  # fmt: skip
"""What is told first of an environment."""


def hardware(story: Story) -> str:
    """The environment as the jobs found it; where runs of the chain differ, each value with the steps it is of."""
    found: dict[str, dict[str, list[str]]] = {}
    for facts in story.chain:
        for name, value in environment(facts).items():
            found.setdefault(name, {}).setdefault(value, []).append(story.named(facts))
    order = [*(name for name in FIRST if name in found), *(name for name in found if name not in FIRST)]
    rows = [(code(name) if name not in FIRST else plain(_named(name)), _values(found[name])) for name in order]
    told = markdown.table((_("What"), _("Which")), rows) if rows else ""
    version = _("Planned with {version}.").format(
        version=f"yichuidingyin {plain(story.own.plan.get('version') or __version__)}"
    )
    return markdown.section(_("Hardware and versions"), told, version)


def environment(facts: Facts) -> dict[str, str]:
    """A run's environment, flat; sizes with their units."""
    device = facts.plan.get("device")
    found: dict[str, str] = {}
    if isinstance(device, dict):
        found["device"] = str(device.get("name", ""))
        found["device_memory_bytes"] = units.size(device.get("memory_total_bytes") or 0)
    for name, value in _flat({name: value for name, value in facts.env.items() if name != "seed"}):
        bare = name.removeprefix("packages.")
        found[bare] = units.size(value) if bare.endswith("_bytes") and isinstance(value, int | float) else str(value)
    return {name: value for name, value in found.items() if value}


def _named(name: str) -> str:
    names = {
        "device": _("Device"), "device_memory_bytes": _("Memory of the device"), "driver": _("Driver"),
        "cpu": _("Processor"), "cores": _("Cores"), "ram_bytes": _("Main memory"), "platform": _("System"),
        "python": "Python", "toolbox": "yichuidingyin", "revision": _("Git revision"),
    }  # fmt: skip
    return names[name]


def _values(by_value: dict[str, list[str]]) -> str:
    if len(by_value) == 1:
        return code(next(iter(by_value)))
    return ", ".join(f"{code(value)} ({_('step')} {', '.join(steps)})" for value, steps in by_value.items())


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in ("", None):
            yield f"{prefix}{key}", value


def data(story: Story) -> str:
    """The rows of the trainings: how many there were, how many were used, which could not be."""
    parts = []
    for facts in story.of_verb("finetune"):
        specs = [spec for spec in facts.plan.get("datasets") or [] if isinstance(spec, dict)]
        rows = [
            (code(spec.get("name", "?")), plain(spec.get("format", "")), str(spec.get("rows", "")))
            for spec in specs
        ]  # fmt: skip
        parts.append(markdown.table((_("Data set"), _("Format"), _("Rows")), rows) if rows else "")
        parts.append(_counted(facts.result))
        parts.append(markdown.folded(_("Rows left out"), _left_out(specs)))
    return markdown.section(_("Data of the training"), *parts)


def _counted(result: dict[str, Any]) -> str:
    counted = {
        "rows": _("rows trained on"),
        "rows_held_out": _("held out for evaluation"),
        "rows_skipped": _("left out, as they can't be used"),
        "rows_left_out": _("the same as a held-out row"),
        "rows_cut": _("cut to max_length"),
        "rows_dropped": _("dropped, without an answer to learn"),
        "tokens": _("tokens"),
    }
    return " · ".join(f"{name}: {numbers.number(result[key])}" for key, name in counted.items() if key in result)


def _left_out(specs: list[dict[str, Any]]) -> str:
    """The rows that could not be used, with their places, as far as the plan lists them."""
    rows = [
        (code(fault.get("file", "")), str(fault.get("number", "")), plain(str(fault.get("reason", ""))))
        for spec in specs
        for fault in (spec.get("faults") or [])[:FAULTS_SHOWN]
    ]
    return markdown.table((_("Left out of"), _("Row"), _("Why")), rows) if rows else ""


def sources(story: Story) -> str:
    """Where models and data come from, and under which licence, as their own pages and the registry say."""
    home = Home(story.home)
    rows = []
    for origin in story.origins:
        name = story.hide(origin.name)
        rows.append((
            code(name),
            _("model") if origin.kind == "model" else _("data set"),
            plain(_(SOURCES.get(origin.source, origin.source))),
            code(origin.revision) if origin.revision else "",
            plain(_licence(origin, home)),
            _verified(origin),
        ))  # fmt: skip
    header = (_("What"), "", _("Source"), _("Revision"), _("Licence"), _("Hashes"))
    table = markdown.table(header, rows) if rows else ""
    return markdown.section(_("Sources and licences"), table, markdown.folded("SHA-256", _hashes(story)))


def _licence(origin: Origin, home: Home) -> str:
    if origin.licence:
        return origin.licence
    known = registry.find(origin.name, home) if origin.kind == "model" and "/" in origin.name.strip("/") else None
    return _("{licence} (says the registry)").format(licence=known.licence) if known and known.licence else _(
        "not stated here"
    )  # fmt: skip


def _verified(origin: Origin) -> str:
    """Whether what was read is what a hub lists."""
    if not origin.hashes:
        return ""
    return _("as the hub lists them") if origin.verified else _("noted when it was read")


def _hashes(story: Story) -> str:
    rows = [
        (code(story.hide(origin.name)), code(file), code(sha256))
        for origin in story.origins
        for file, sha256 in list(origin.hashes.items())[:HASHES_SHOWN]
    ]
    return markdown.table((_("What"), _("File"), "SHA-256"), rows) if rows else ""
