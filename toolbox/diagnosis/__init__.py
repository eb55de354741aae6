"""Why a run failed or is odd: every rule is tried on what the run left (`runs diagnose`, and at the end of a report).

A rule is a function from `Traces` to a `Cause` or None; more than one may hold, and the surest is named first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from toolbox.diagnosis import curves, ends, gpus, hubs, material, memory
from toolbox.diagnosis.causes import Cause, Certainty
from toolbox.diagnosis.traces import Traces
from toolbox.runs import Run

Rule = Callable[[Traces], Cause | None]

FAILURES: tuple[Rule, ...] = (
    memory.on_the_gpu,
    memory.in_main_memory,
    memory.killed_for_it,
    gpus.lost,
    gpus.old_driver,
    gpus.without_kernels,
    material.disk_full,
    material.tokenizer,
    material.chat_template,
    material.rows,
    material.corrupt,
    material.adapter_on_nothing,
    material.missing_package,
    hubs.gated,
    hubs.token,
    hubs.missing,
    hubs.network,
    curves.no_number,
    ends.port,
    ends.restarted,
    ends.by_hand,
    ends.crashed,
    ends.killed,
    ends.interrupted,
    ends.engine,
)
"""Tried where a run did not end well."""
ODDITIES: tuple[Rule, ...] = (curves.diverged, curves.no_gradient, curves.no_effect)
"""Tried on every training, also one that goes on or is done."""
UNEXPLAINED: tuple[Rule, ...] = (ends.refused,)
"""Tried where no other holds."""


def diagnose(run: Run) -> list[Cause]:
    """The causes found for a run, surest first; none where it is well, or where nothing known explains its end."""
    return explain(Traces.of(run))


def diagnose_log(log: Path, home: Path) -> list[Cause]:
    """The causes found in a log of which there is no run."""
    return explain(Traces.of_file(log, home))


def explain(traces: Traces) -> list[Cause]:
    """What the rules make of the traces."""
    failed = traces.status.state in ("failed", "lost", "interrupted")
    found = _tried((*(FAILURES if failed else ()), *ODDITIES), traces)
    found = found or (_tried(UNEXPLAINED, traces) if failed else [])
    return sorted(found, key=lambda cause: get_args(Certainty).index(cause.certainty))


def _tried(rules: tuple[Rule, ...], traces: Traces) -> list[Cause]:
    return [cause for rule in rules if (cause := rule(traces))]
