"""RUN/ladder.jsonl: what a training gave up because memory ran out, a line a step down (training/ladder.py takes them).

Whoever resumes or reproduces the run heeds it; the report shows it.
"""

from typing import Literal

import msgspec

from toolbox import files
from toolbox.i18n import N_, _
from toolbox.runs import Run

FILE = "ladder.jsonl"
NAMES = {
    "micro_batch": N_("{per_device_train_batch_size} rows at once"),
    "checkpointing": N_("gradient checkpointing"),
    "4bit": N_("the base in 4 bits"),
    "shorter": N_("rows of {max_length} tokens"),
    "evaluation": N_("evaluation with {per_device_eval_batch_size} rows at once"),
}


class Rung(msgspec.Struct, kw_only=True, frozen=True):
    """A step down that was taken."""

    kind: Literal["micro_batch", "checkpointing", "4bit", "shorter", "evaluation"]
    training: dict[str, int | bool] = {}
    """What changes of the plan's `training`."""
    step: int = 0
    """Steps that were done by then."""
    reason: str = ""
    """The library's own words."""
    peak_bytes: int = 0
    """The most memory that was taken until then, as training/meter.py counts it."""
    predicted_peak_bytes: int = 0


def read(run: Run) -> list[Rung]:
    """The rungs that the run has come down. Raises nothing: a line that can't be read is left out, and said."""
    try:
        lines = (run.path / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Rung))
        except msgspec.DecodeError:
            print(_("{path} has a line that can't be read, which is left out.").format(path=run.path / FILE))
    return found


def write(run: Run, rungs: list[Rung]) -> None:
    files.write_bytes(run.path / FILE, b"".join(msgspec.json.encode(rung) + b"\n" for rung in rungs))


def inherit(run: Run, old: Run) -> None:
    """Let `run`, which has not begun, know what the same plan came to as `old`."""
    if known := read(old):
        write(run, known)
    if old.killed_for_memory(old.status()):
        status = run.status()
        status.killed_for_memory = True
        run.write_status(status)


def named(rung: Rung) -> str:
    """A rung in a few words."""
    return _(NAMES[rung.kind]).format(**rung.training)
