"""What `plan` and `finetune` show of a search: what it would cost, what was refused, and what would fit instead."""

from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Session
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.memory import Estimate
    from toolbox.nearest import Nearest
    from toolbox.plan import FinetunePlan
    from toolbox.search import Problem, Refusal

SHOWN = 4
"""Refusals in the table; `--json` has all."""
KINDS = {
    "batch": N_("fewer rows at once"), "method": N_("another method"), "length": N_("shorter rows"),
    "method and length": N_("another method, and shorter rows"), "model": N_("a smaller model"),
    "device": N_("another GPU"),
}  # fmt: skip
DISK = {
    "download": N_("download"), "checkpoints": N_("checkpoints"), "rows": N_("encoded rows"),
    "exported": N_("result"), "merged": N_("merged model"),
}  # fmt: skip


def costs(estimate: "Estimate", price_per_hour: float) -> list[tuple[str, str]]:
    """Time, speed, energy, money and disk, as lines of the plan's table."""
    from toolbox import units

    low, high = units.duration(estimate.time_low_s), units.duration(estimate.time_high_s)
    by = _("by {runs} runs here") if estimate.factors.time_high else _("by the data sheet")
    spread = f"({low} – {high}, {by.format(runs=estimate.factors.runs)})"
    time = f"{units.duration(estimate.time_s)} {spread}" if estimate.time_s else _("not known")
    drawn = _("Energy, by earlier runs") if estimate.factors.watts else _("Energy, at most")
    parts = " + ".join(
        f"{_(DISK[name])} {units.size(count)}" for name, count in estimate.disk_parts_bytes.items() if count
    )
    rows = [
        (_("Time, about"), time),
        (_("Tokens per second"), f"{estimate.tokens_per_s:,.0f}" if estimate.tokens_per_s else ""),
        (drawn, _("{kwh:.3g} kWh").format(kwh=estimate.energy_wh / 1e3) if estimate.energy_wh else ""),
        (_("Price"), f"{cost(estimate, price_per_hour):.2f}" if price_per_hour and estimate.time_s else ""),
        (_("Disk"), f"{units.size(estimate.disk_bytes)} ({parts})" if parts else units.size(estimate.disk_bytes)),
    ]
    return [(name, value) for name, value in rows if value]


def cost(estimate: "Estimate", price_per_hour: float) -> float:
    """What the time costs, in the money that the price is in; 0: not known."""
    return round(price_per_hour * estimate.time_s / 3600, 4)


def room(plan: "FinetunePlan", session: Session) -> dict[str, Any]:
    """What of the disk is free, against what the plan needs; said where it is too little. For `--json`."""
    from toolbox import files, units

    free = files.free_bytes(session.home.path)
    if free < plan.estimate.disk_bytes:
        session.say(
            _("The run takes up to {needed}, and {path} has {free} left.").format(
                needed=units.size(plan.estimate.disk_bytes), path=session.home.path, free=units.size(free)
            )
        )
    return {"disk_free_bytes": free}


def show(plan: "FinetunePlan", problem: "Problem", session: Session) -> dict[str, Any]:
    """What was refused, and where nothing fits what would; returns both for `--json`."""
    from toolbox import nearest, search

    found = search.search(problem)
    _show_refused(found.refused, session)
    near = [] if plan.estimate.fits else nearest.nearest(problem, found.choice)
    _show_nearest(near, session)
    runs = "runs" if plan.estimate.factors.time_high else "data sheet"
    return {
        "time_range_from": runs, "cost": cost(plan.estimate, session.settings.price_per_hour),
        "refused": msgspec.to_builtins(found.refused), "nearest": msgspec.to_builtins(near),
    }  # fmt: skip


def _show_refused(refused: "list[Refusal]", session: Session) -> None:
    from toolbox import units

    if not refused:
        return
    rows = [
        (
            item.recipe,
            item.method,
            f"{item.per_device_train_batch_size} × {item.gradient_accumulation_steps}",
            _("yes") if item.gradient_checkpointing else _("no"),
            units.size(item.peak_bytes),
            units.size(item.too_large_bytes),
            f"{item.tokens_per_s:,.0f}" if item.tokens_per_s else "",
        )
        for item in refused[:SHOWN]
    ]
    header = (
        _("Recipe"), _("Method"), _("Batch"), _("Checkpointing"), _("Peak"), _("Too large by"), _("Tokens per second"),
    )  # fmt: skip
    session.table(_("What was refused: {count}").format(count=len(refused)), header, rows)


def _show_nearest(near: "list[Nearest]", session: Session) -> None:
    from toolbox import units

    if not near:
        return
    rows = [
        (
            _(KINDS[item.kind]),
            item.option,
            f"{item.method}, {item.per_device_train_batch_size} × {item.max_length}",
            f"{units.size(item.peak_bytes)} / {units.size(item.device_bytes)}",
            f"{item.tokens_per_s:,.0f}" if item.tokens_per_s else "",
        )
        for item in near
    ]
    header = (_("What"), _("How"), _("Method, rows × tokens"), _("Peak"), _("Tokens per second"))
    session.table(_("What would fit"), header, rows)
