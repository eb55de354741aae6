"""`plan --exact`: the plan's peak counted by a job, in a dry run of its training step, beside the memory model's."""

from typing import TYPE_CHECKING, Any

from toolbox.commands import Session
from toolbox.errors import InputError, Interrupted
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.plan import FinetunePlan


PHASES = {"forward": N_("going forward"), "backward": N_("going backward"), "optimizer": N_("the weights' update")}


def count(plan: "FinetunePlan", session: Session) -> dict[str, Any]:
    """Show both figures by parts; returns what `--json` has beside the plan. Raises what the job ended with.

    What a dry run does not have (the process, a GPU's context) is added as the memory model says it.
    """
    from toolbox import runs
    from toolbox.plan import ExactPlan

    values = {name: getattr(plan, name) for name in plan.__struct_fields__}
    job = ExactPlan(**values | {"entry": "toolbox.training.exact:run", "config": _config(plan, session)})
    run = runs.create(session.home.prepare().runs, f"exact-{plan.model.id.rstrip('/').rpartition('/')[2]}", job)
    run.start()
    try:
        session.follow(run)
    except (InputError, Interrupted):
        run.remove()
        raise
    found = run.result()
    run.remove()
    fast = plan.estimate.parts_bytes
    parts = found["parts_bytes"] | {name: size for name, size in fast.items() if name not in found["parts_bytes"]}
    result = {
        "exact_peak_bytes": sum(parts.values()),
        "exact_parts_bytes": parts,
        "exact_operation": found["operation"],
        "exact_phase": found["phase"],
    }
    show(fast, result, session)
    return result


def _config(plan: "FinetunePlan", session: Session) -> dict[str, Any]:
    """What is known of a model's config.json that is not here; empty where it is."""
    from toolbox import registry
    from toolbox.registry import shapes

    known = registry.find(plan.model.id, session.home) if plan.model.source == "registry" else None
    return {"model_type": plan.model.model_type, **shapes.config_of(known)} if known else {}


def show(fast: dict[str, int], result: dict[str, Any], session: Session) -> None:
    """Both peaks by parts, and by how much the memory model is off."""
    from toolbox import units
    from toolbox.memory import PARTS

    exact = result["exact_parts_bytes"]
    rows = [
        (_(PARTS[name]), units.size(fast.get(name, 0)), units.size(size))
        for name, size in exact.items()
        if size or fast.get(name)
    ]
    estimated, counted = sum(fast.values()), result["exact_peak_bytes"]
    rows.append((_("Sum"), units.size(estimated), units.size(counted)))
    session.table(_("Peak of memory"), ("", _("Predicted"), _("Counted")), rows)
    session.say(
        _("The memory model is off by {error:+.1%}. The highest moment is {phase}, at {operation}.").format(
            error=estimated / counted - 1, phase=_(PHASES[result["exact_phase"]]), operation=result["exact_operation"]
        )
        + "\n"
    )
