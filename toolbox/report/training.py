"""What came of trainings: losses, memory, time, speed, what was given up and what was tried (a report's section)."""

from collections.abc import Callable, Sequence
from typing import Any

from toolbox import rungs, strengths, tunings, units
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.memory import PARTS
from toolbox.report import markdown, numbers
from toolbox.report.markdown import plain
from toolbox.report.publishing import Mask
from toolbox.report.story import Story


def training(story: Story) -> str:
    """A part for each training of the chain."""
    runs = story.of_verb("finetune")
    return markdown.section(
        _("Training, memory and time"), *(part for facts in runs for part in _one(facts, story, len(runs) > 1))
    )


def _one(facts: Facts, story: Story, headed: bool) -> list[str]:
    parts = [_losses(facts), memory(facts), ladder(facts, story.hide), tuning(facts), strength(facts)]
    title = _("Step {number}: {run}").format(number=story.named(facts), run=plain(facts.run.id))
    return [f"### {title}" if headed and any(parts) else "", *parts]


def _losses(facts: Facts) -> str:
    losses = facts.curve("loss")
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
        (_("Tokens per second, on average"), _mean(facts.curve("tokens_per_s"))),
    ]
    shown = [(name, value) for name, value in rows if value]
    return markdown.table((_("What"), _("First → last")), shown, numbers=True) if shown else ""


def memory(facts: Facts) -> str:
    """Predicted against measured: the peak of memory with what the prediction was made of, then time, speed, energy."""
    estimate = facts.plan.get("estimate") or {}
    predicted = estimate.get("peak_bytes", 0)
    if not predicted:
        return ""
    measured = facts.result.get("peak_bytes") or max((value for _step, value in facts.curve("memory_bytes")), default=0)
    rows = [
        (plain(_(PARTS.get(name, name))), units.size(value)) for name, value in estimate.get("parts_bytes", {}).items()
    ]
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


def ladder(facts: Facts, hide: Mask) -> str:
    """What was given up because memory ran out, and when."""
    rows = [
        (str(rung.step), plain(rungs.named(rung)), units.size(rung.peak_bytes), plain(hide(rung.reason)))
        for rung in rungs.read(facts.run)
    ]
    columns = (_("After step"), _("Memory ran out; from there on"), _("Taken"), _("Why"))
    return markdown.table(columns, rows) if rows else ""


def strength(facts: Facts) -> str:
    """How strongly a repair acts, and what it was chosen by."""
    found = facts.result.get("strength")
    if not isinstance(found, dict):
        return ""
    table = markdown.table([*strengths.columns()], strengths.rows(found), numbers=True)
    told = _("How strongly the repair acts, chosen by {professions} professions (each language) and {answers} answers:")
    told = told.format(professions=found["professions"], answers=found["answers"])
    return "\n\n".join(filter(None, [told, table, strengths.advice(found)]))


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
