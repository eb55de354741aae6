"""The results of a run and its curves, as Markdown and SVG."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

from toolbox import files, rungs, tunings, units
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.report import markdown, numbers
from toolbox.report.charts import Series, line_chart
from toolbox.report.markdown import code, plain
from toolbox.suites import kinds

TITLES = {"base": N_("base"), "tuned": N_("tuned"), "difference": N_("Difference")}
ROLES = {"base": N_("Base model"), "adapter": N_("Adapter"), "output": N_("Output")}
"""What the columns of an evaluation and the weights of a merge are called."""
BASES = {
    "trained": N_("the base in 4 bits, as in training"),
    "dequantized": N_("the same, dequantised"),
    "original": N_("the original in 16 bits"),
}
"""The bases of an adapter that was trained on 4 bits."""


def results(facts: Facts) -> str:
    """What came of it; of a run that did not end, as far as it got."""
    by_verb = {"finetune": _finetune, "merge": _merge, "evaluate": _evaluate, "export": _export,
               "serve": _serve}  # fmt: skip
    parts = by_verb[facts.verb](facts) if facts.verb in by_verb else []
    return markdown.section(_("Results"), *parts)


def _finetune(facts: Facts) -> list[str]:
    losses, result = facts.curve("loss"), facts.result
    rows = [
        (_("Steps"), f"{facts.status.step} / {facts.status.steps}" if facts.status.steps else ""),
        (_("Training loss"), _from_to(losses)),
        (_("Evaluation loss"), _from_to(facts.curve("eval_loss"))),
        (_("Reward margin"), _from_to(facts.curve("rewards/margins"))),
        (_("Reward margin, held-out rows"), _from_to(facts.curve("eval_rewards/margins"))),
        (_("Held-out pairs told apart"), _from_to(facts.curve("eval_rewards/accuracies"))),
        (_("Reward"), _from_to(facts.curve("reward"))),
        (_("Reward, held-out rows"), _from_to(facts.curve("eval_reward"))),
        (_("Tokens an answer"), _from_to(facts.curve("completions/mean_length"))),
        (_("Divergence from the reference, a token"), _from_to(facts.curve("kl"))),
        (_("Tokens per second"), _mean(facts.curve("tokens_per_s"))),
        (_("Adapter"), code(result["adapter"]) if result.get("adapter") else ""),
    ]
    shown = [(name, value) for name, value in rows if value]
    table = markdown.table((_("What"), _("How much")), shown) if shown else ""
    return [table, memory(facts), ladder(facts), tuning(facts)]


def memory(facts: Facts) -> str:
    """Predicted against measured: the peak of memory with what the prediction was made of, then time, speed, energy."""
    estimate = facts.plan.get("estimate") or {}
    predicted = estimate.get("peak_bytes", 0)
    if not predicted:
        return ""
    measured = facts.result.get("peak_bytes") or max((value for _, value in facts.curve("memory_bytes")), default=0)
    rows = [(plain(name), units.size(value)) for name, value in estimate.get("parts_bytes", {}).items()]
    rows.append((f"**{_('Predicted peak')}**", f"**{units.size(predicted)}**"))
    if probed := facts.result.get("probe_peak_bytes"):
        rows.append((_("Probe before the first step"), units.size(probed)))
    if measured:
        rows.append((f"**{_('Measured peak')}**", f"**{units.size(measured)}** ({measured / predicted:.0%})"))
    return markdown.table((_("Memory"), _("How much")), rows, numbers=True) + _compared(facts.result)


COMPARED: dict[str, tuple[str, Callable[[float], str]]] = {
    "peak_bytes": (N_("Peak of the whole process"), units.size),
    "allocated_bytes": (N_("Allocated at most"), units.size),
    "reserved_bytes": (N_("Reserved by the allocator"), units.size),
    "process_bytes": (N_("Held by the process, as the driver says"), units.size),
    "time_s": (N_("Time"), units.duration),
    "tokens_per_s": (N_("Tokens per second"), lambda value: f"{value:,.0f}"),
    "energy_wh": (N_("Energy, Wh"), lambda value: f"{value:.3g}"),
    "disk_bytes": (N_("Disk"), units.size),
}
"""Keys of `predicted` and `measured` in result.json, with their names and units."""


def _compared(result: dict[str, Any]) -> str:
    """A table of what was predicted and what was measured; empty where either is missing."""
    predicted, measured = result.get("predicted"), result.get("measured")
    if not isinstance(predicted, dict) or not isinstance(measured, dict):
        return ""
    rows = []
    for key, (name, unit) in COMPARED.items():
        said, found = predicted.get(key), measured.get(key)
        if isinstance(found, int | float):
            share = f" ({found / said:.0%})" if isinstance(said, int | float) and said else ""
            rows.append((_(name), unit(said) if isinstance(said, int | float) else "—", unit(found) + share))
    header = (_("What"), _("Predicted"), _("Measured"))
    return "\n\n" + markdown.table(header, rows, numbers=True) if rows else ""


def ladder(facts: Facts) -> str:
    """What was given up because memory ran out, and when."""
    rows = [
        (str(rung.step), plain(rungs.named(rung)), units.size(rung.peak_bytes), plain(rung.reason))
        for rung in rungs.read(facts.run)
    ]
    columns = (_("After step"), _("Memory ran out; from there on"), _("Taken"), _("Why"))
    return markdown.table(columns, rows) if rows else ""


def tuning(facts: Facts) -> str:
    """What `--tune` tried before the training, and what it took."""
    found = tunings.read(facts.run)
    if not found:
        return ""
    chosen = found.chosen
    sizes = [
        (
            _mark(str(size.per_device_train_batch_size), size.per_device_train_batch_size, chosen),
            f"{size.tokens_per_s:,.0f} ± {size.spread:.0%}" if size.tokens_per_s else _("out of memory"),
        )
        for size in found.sizes
    ]
    rates = [
        (
            _mark(f"{rate.learning_rate:g}", rate.learning_rate, chosen),
            f"{rate.loss:.4f}" if rate.loss is not None else _("diverged"),
            f"+{rate.behind:.4f} ± {rate.error:.4f}" if rate.loss is not None else "",
        )
        for rate in found.rates
    ]
    told = _("Tried before the training, in {steps} steps ({time}); what was taken is bold. Losses are of {rows} rows.")
    swept = _("In the sweep of rates the loss rose by half at {rate:g}.") if found.diverged_from else ""
    return "\n\n".join(
        [
            told.format(steps=found.steps, time=units.duration(found.elapsed_s), rows=found.judged_rows)
            + (" " + swept.format(rate=found.diverged_from) if swept else ""),
            markdown.table((_("Rows at once"), _("Tokens per second")), sizes, numbers=True),
            markdown.table((_("Learning rate"), _("Loss"), _("Above the best")), rates, numbers=True),
        ]
    )


def _mark(text: str, value: float, chosen: dict[str, float]) -> str:
    return f"**{text}**" if value in (chosen["per_device_train_batch_size"], chosen["learning_rate"]) else text


def _from_to(points: Sequence[tuple[float, float]]) -> str:
    return f"{points[0][1]:.4g} → {points[-1][1]:.4g}" if points else ""


def _mean(points: Sequence[tuple[float, float]]) -> str:
    return numbers.count(sum(value for _, value in points) / len(points)) if points else ""


def _merge(facts: Facts) -> list[str]:
    result = facts.result
    if not result:
        return []
    proof = result.get("proof")
    rows = [
        (plain(check.get("name", "")), "✓" if check.get("passed") else "✗", plain(check.get("detail", "")))
        for check in (proof if isinstance(proof, list) else [])
        if isinstance(check, dict)
    ]
    table = markdown.table((_("Proof"), "", _("Detail")), rows) if rows else ""
    where = _("The merged model lies in {output}.").format(output=code(result.get("output", "?")))
    onto = [row for row in result.get("bases") or [] if isinstance(row, dict)]
    bases = markdown.table(onto_header(), [tuple(map(plain, row)) for row in onto_rows(onto)]) if onto else ""
    return [where, table, bases, _hashes(result.get("hashes"))]


def onto_header() -> tuple[str, ...]:
    return ("", _("Adapter on"), _("Logits differ from training by up to"), _("Perplexity of the rows"))


def onto_rows(bases: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for the model as it was trained, and one for each base that the adapter could be merged onto."""
    return [
        (
            "✓" if row.get("chosen") else "",
            _(BASES.get(str(row.get("base")), str(row.get("base")))),
            f"{row.get('max_abs_diff', 0):.3g}",
            f"{row.get('perplexity', 0):.4g}",
        )
        for row in bases
    ]


def _export(facts: Facts) -> list[str]:
    result = facts.result
    if not result:
        return []
    where = _("The export lies in {output}.").format(output=code(result.get("output", "?")))
    header, rows = exported(result)
    notes = [f"- {plain(note)}" for note in result.get("notes") or []]
    return [where, markdown.table(header, rows), "\n".join(notes), _hashes(result.get("hashes"))]


def exported(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) of an export: the model before, and the export as each program that loaded it again found it."""
    header = ("", _("Size"), _("Perplexity"), _("Greedy answers equal"), _("Their tokens equal, from the beginning"))
    readers = [reader for reader in result.get("readers") or [] if isinstance(reader, dict)]
    before = numbers.number(result.get("perplexity_before"))
    rows: list[tuple[str, ...]] = [(_("Before"), units.size(result.get("bytes_before", 0)), before, "", "")]
    rows += [
        (
            _("After, by {reader}").format(reader=plain(str(reader.get("loaded_by", "?")))),
            units.size(result.get("bytes", 0)),
            numbers.number(reader.get("perplexity")),
            f"{reader.get('answers_equal', '?')} / {result.get('prompts', '?')}",
            f"{reader.get('answer_tokens_equal', '?')} / {reader.get('answer_tokens', '?')}",
        )
        for reader in readers
    ]
    return header, rows


def _hashes(hashes: Any) -> str:
    if not isinstance(hashes, dict):
        return ""
    rows = [
        (_(ROLES.get(role, plain(role))), code(name), code(digest))
        for role, digests in hashes.items()
        if isinstance(digests, dict)
        for name, digest in digests.items()
    ]
    return markdown.table((_("Of"), _("File"), "SHA-256"), rows) if rows else ""


def _evaluate(facts: Facts) -> list[str]:
    rows = [row for row in facts.result.get("results") or [] if isinstance(row, dict)]
    models = list(dict.fromkeys(str(row.get("model")) for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((str(row.get("suite")), str(row.get("metric"))), {})[str(row.get("model"))] = _measured(row)
    titles = {str(row.get("metric")): kinds.metric(row).title for row in rows}
    lines = [
        (plain(suite), plain(titles[metric]), *(by_model.get(model, "") for model in models))
        for (suite, metric), by_model in cells.items()
    ]
    return [
        markdown.table((_("Suite"), _("Metric"), *(plain(_(TITLES.get(model, model))) for model in models)), lines)
        if lines
        else ""
    ]


def _measured(row: dict[str, Any]) -> str:
    """A value with its interval and its number of items."""
    text = numbers.number(row.get("value"))
    if row.get("low") is not None and row.get("high") is not None:
        text += f" [{numbers.number(row['low'])}, {numbers.number(row['high'])}]"
    return text + (f" (n = {row['n']})" if row.get("n") else "")


def _serve(facts: Facts) -> list[str]:
    url = facts.result.get("url")
    return [_("Address: {url}").format(url=code(url))] if url else []


def curves(facts: Facts) -> str:
    """Draw the metrics that there are into plots/, and show every chart that lies there."""
    folder = facts.run.path / "plots"
    drawn = dict(_drawn(facts))
    for name, svg in drawn.items():
        files.write_text(folder / f"{name}.svg", svg)
    others = sorted(path.stem for path in folder.glob("*.svg") if path.stem not in drawn)
    charts = [folder / f"{name}.svg" for name in (*drawn, *others)]
    return markdown.section(_("Charts"), *(markdown.image(_caption(path), f"plots/{path.name}") for path in charts))


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
            train = [Series(_("training"), _smooth(trained)), Series("", trained, faint=True)]
            series = [*train, Series(_("evaluation"), held_out, dots=True)]
            drawn.append((file, line_chart(title, series, _("step"), axis)))
    if rates:
        chart = line_chart(_("Learning rate"), [Series(_("learning rate"), rates)], _("step"), _("learning rate"))
        drawn.append(("learning_rate", chart))
    return drawn


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The centred running mean over about a twentieth of the curve; the ends average over what there is."""
    reach = len(points) // 40
    windows = (points[max(0, i - reach) : i + reach + 1] for i in range(len(points)))
    return [(points[i][0], sum(y for _, y in window) / len(window)) for i, window in enumerate(windows)]


def _caption(path: Path) -> str:
    """A chart's own title."""
    text = path.read_text("utf-8", errors="replace")
    return unescape(text.partition('<title id="title">')[2].partition("</title>")[0], {"&quot;": '"'}) or path.stem
