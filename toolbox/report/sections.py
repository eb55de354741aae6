"""The sections of report.md, each a function from the facts of a run to Markdown; an empty text is left out."""

import re
from pathlib import Path
from typing import Any

from toolbox import __version__, again, chains, diagnosis, embedded, units
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.report import markdown, numbers
from toolbox.report.markdown import code, plain
from toolbox.report.results import curves, results

VERBS = {
    "finetune": N_("Fine-tune"),
    "merge": N_("Merge"),
    "export": N_("Export"),
    "evaluate": N_("Evaluate"),
    "serve": N_("Serve"),
}
STATES = {
    "planned": N_("○ Planned, not started"),
    "running": N_("… Running"),
    "ready": N_("● Serving"),
    "done": N_("✓ Done"),
    "failed": N_("✗ Failed"),
    "interrupted": N_("‖ Interrupted"),
    "lost": N_("✗ Lost: the process ended without a word (killed, or the power failed)"),
}
LICENSE = re.compile(r"^license(?:_name)?:\s*([\w.+ -]+?)\s*$", re.MULTILINE)


FAULTS_SHOWN = 50
"""Rows left out that a report lists for a data set."""


def header(facts: Facts) -> str:
    """Title, state with its reason, and when."""
    verb, name = _(VERBS.get(facts.verb, facts.verb)) or _("Run"), facts.status.model_name or facts.run.id
    title = _("# {verb}: {name}").format(verb=verb, name=plain(name))
    status = facts.status
    lines = [f"**{_(STATES.get(status.state, status.state))}**"]
    if status.error:
        lines.append("> " + plain(status.error.get("message", "")))
        lines.append("> → " + plain(status.error.get("remedy", "")))
    if status.state in ("interrupted", "lost", "failed") and status.resumable:
        lines.append(
            _("It can go on where it stopped: {command}").format(command=code(again.line("runs resume", facts.run.id)))
        )
    if status.state in ("interrupted", "lost", "failed") and status.phase:
        lines.append(_("It was at: {phase}.").format(phase=plain(status.phase)))
    return "\n\n".join([title, *lines, _when(facts)])


def _when(facts: Facts) -> str:
    parts = [_("Run {run}").format(run=code(facts.run.id))]
    if facts.status.started_at:
        parts.append(_("started {moment}").format(moment=numbers.moment(facts.status.started_at)))
        if facts.status.finished and facts.status.elapsed_s:
            parts.append(_("took {duration}").format(duration=units.duration(facts.status.elapsed_s)))
    return " · ".join(parts)


def why(facts: Facts) -> str:
    """Why it failed, or what is odd about it."""
    told = []
    for cause in diagnosis.diagnose(facts.run):
        lines = [f"**{plain(cause.message)}**", "\n".join(f"- {code(line)}" for line in cause.evidence)]
        lines += [f"→ {plain(cause.remedy)}"] if cause.remedy else []
        lines += [markdown.block(cause.command, "bash")] if cause.command else []
        told.append("\n\n".join(filter(None, lines)))
    return markdown.section(_("Diagnosis"), *told)


def done(facts: Facts) -> str:
    """What was done, on which model and which data."""
    plan, model = facts.plan, facts.model
    rows = [
        (_("Base model"), _model(model)),
        (_("Lies in"), code(model["path"]) if model.get("path") else ""),
        (_("Method"), plain(_method(plan))),
        (_("Why"), plain(plan.get("why") or "")),
        (_("Adapter"), ", ".join(map(code, _adapters(plan)))),
        (_("From run"), code(plan["run"]) if plan.get("run") else ""),
        (_("Format"), plain(" ".join(str(plan.get(key) or "") for key in ("format", "type")))),
        (_("Suites"), plain(", ".join(map(str, plan.get("suites") or [])))),
        (_("Engine"), plain(plan.get("engine") or "")),
    ]
    table = markdown.table((_("What"), _("Which")), [(name, value) for name, value in rows if value])
    return markdown.section(_("What was done"), table if plan else "", _datasets(facts))


def _adapters(plan: dict[str, Any]) -> list[str]:
    one = plan.get("adapter")
    return [one] if one else [each["path"] for each in plan.get("adapters") or []]


def _model(model: dict[str, Any]) -> str:
    parts = [code(model.get("id", "?")), plain(model.get("architecture") or "")]
    if model.get("parameters"):
        parts.append(_("{count} parameters").format(count=numbers.count(model["parameters"])))
    if model.get("revision"):
        parts.append(_("revision {revision}").format(revision=code(model["revision"])))
    return ", ".join(part for part in parts if part)


def _method(plan: dict[str, Any]) -> str:
    parts = [plan.get("stage", "").upper(), plan.get("method", ""), plan.get("quantization", ""), plan.get("dtype", "")]
    return " · ".join(part for part in parts if part and part != "none")


def _datasets(facts: Facts) -> str:
    specs = [spec for spec in facts.plan.get("datasets") or [] if isinstance(spec, dict)]
    rows = [
        (
            code(spec.get("name", "?")),
            plain(spec.get("format", "")),
            str(spec.get("rows", "")),
            code(spec.get("sha256", "")),
        )
        for spec in specs
    ]
    table = markdown.table((_("Data set"), _("Format"), _("Rows"), "SHA-256"), rows) if rows else ""
    counted = {
        "rows": _("rows trained on"),
        "rows_held_out": _("held out for evaluation"),
        "rows_skipped": _("left out, as they can't be used"),
        "rows_left_out": _("the same as a held-out row"),
        "rows_cut": _("cut to max_length"),
        "rows_dropped": _("dropped, without an answer to learn"),
        "tokens": _("tokens"),
    }
    result = facts.result if facts.verb == "finetune" else {}
    told = [f"{name}: {numbers.number(result[key])}" for key, name in counted.items() if key in result]
    return "\n\n".join(part for part in (table, " · ".join(told), _left_out(specs)) if part)


def _left_out(specs: list[dict[str, Any]]) -> str:
    """The rows that could not be used, with their places, as far as the plan lists them."""
    rows = [
        (code(fault.get("file", "")), str(fault.get("number", "")), plain(str(fault.get("reason", ""))))
        for spec in specs
        for fault in (spec.get("faults") or [])[:FAULTS_SHOWN]
    ]
    return markdown.table((_("Left out of"), _("Row"), _("Why")), rows) if rows else ""


def parameters(facts: Facts) -> str:
    """The numbers that mattered, as a table, with the libraries' own names."""
    blocks = []
    others = facts.plan.get("blocks")
    plan = {**(others if isinstance(others, dict) else {}), **facts.plan}
    for name in ("training", "options", "LoraConfig", *(others or {}), "BitsAndBytesConfig"):
        values = plan.get(name)
        if isinstance(values, dict) and values:
            rows = [(code(key), code(_value(value))) for key, value in values.items()]
            blocks.append(f"**{name}**\n\n" + markdown.table((_("Parameter"), _("Value")), rows))
    if blocks and "seed" in facts.plan:
        blocks.append(_("Seed {seed}.").format(seed=facts.plan["seed"]))
    return markdown.section(_("Parameters"), *blocks)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def later(facts: Facts) -> str:
    """Runs made from this one: merges, evaluations, servers."""
    rows = []
    for other in map(Facts.of, chains.later(facts.run)):
        link = f"[{plain(other.run.id)}](../{other.run.id}/report.md)"
        rows.append((link, _(VERBS.get(other.verb, other.verb)), _(STATES.get(other.status.state, other.status.state))))
    return markdown.section(
        _("Made from it later"), markdown.table((_("Run"), _("What"), _("State")), rows) if rows else ""
    )


def repeated(facts: Facts) -> str:
    """How to do it again: the script beside the report, and the command line."""
    if not facts.plan:
        return ""
    script = _("From the plan beside this report, with nothing to edit:")
    line = _("Or decided anew, on whatever machine it runs:")
    return markdown.section(
        _("Run it again"),
        script,
        markdown.block("bash run.sh", "bash"),
        line,
        markdown.block(again.line(*again.words(facts.verb, facts.plan)), "bash"),
    )


def hardware(facts: Facts) -> str:
    """The device that was planned for, and the environment as the job found it."""
    device = facts.plan.get("device")
    rows = []
    if isinstance(device, dict):
        rows.append((_("Device"), plain(device.get("name", ""))))
        rows.append((_("Memory"), units.size(device.get("memory_total_bytes", 0))))
    rows += [(plain(name), code(_value(value))) for name, value in _flat(facts.env)]
    rows.append((_("Planned with"), f"yichuidingyin {plain(facts.plan.get('version') or __version__)}"))
    return markdown.section(_("Hardware and versions"), markdown.table((_("What"), _("Which")), rows))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += (
            _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)] if value not in ("", None) else []
        )
    return pairs


def limits(facts: Facts) -> str:
    """What these figures can't say."""
    told = []
    if facts.verb == "finetune":
        told.append(_("A falling loss shows that the data was learnt, not that the model got better: evaluate it."))
        if facts.plan.get("quantization") == "nf4":
            told.append(_("The adapter was trained on 4-bit weights, and is merged onto their dequantised values."))
        if not facts.plan.get("eval_rows") and not facts.plan.get("eval_datasets"):
            told.append(_("No rows were held out, so overfitting would not be seen."))
    if facts.verb == "evaluate":
        told.append(_("Small suites leave wide intervals: differences inside them are chance."))
        told.append(
            _("The gender probe sees two pronouns and the listed professions, nothing else of what bias can be.")
        )
    if facts.verb == "merge":
        told.append(_("The proof covers the rows it names; other texts were not compared."))
    if facts.verb == "export":
        told.append(_("Perplexity is of the rows that were measured with; on other texts it may have changed more."))
    return markdown.section(_("Known limits"), "\n".join(f"- {line}" for line in told))


def sources(facts: Facts) -> str:
    """Where model and data come from, and under which licence, as far as their own pages say."""
    model = facts.model
    named = [(code(model.get("id", "?")), str(model.get("source", "")), model.get("path"))] if model else []
    named += [
        (code(spec.get("name", "?")), "", Path(str(spec["path"])).parent)
        for spec in facts.plan.get("datasets") or []
        if isinstance(spec, dict) and spec.get("path")
    ]
    rows = [(name, plain(source), plain(_license(Path(str(folder))))) for name, source, folder in named]
    return markdown.section(
        _("Sources and licences"), markdown.table((_("What"), _("Source"), _("Licence")), rows) if rows else ""
    )


def _license(folder: Path) -> str:
    """The licence that a folder's README.md states in its front matter; what is shipped here has ours."""
    if folder.is_relative_to(embedded.FOLDER):
        return "Apache-2.0"
    try:
        found = LICENSE.search((folder / "README.md").read_text("utf-8", errors="replace")[:4000])
    except OSError:
        found = None
    return found.group(1) if found else _("not stated here")


SECTIONS = (header, why, results, curves, done, later, repeated, parameters, hardware, limits, sources)
