"""RUN/tuning.json: what `finetune --tune` tried before the training, and chose (training/tuning.py writes it)."""

import msgspec

from toolbox import files
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.runs import Run

FILE = "tuning.json"
UNTRIED = ("kto", "ppo", "grpo")
"""Stages whose rows can't be judged one by one beforehand: KTO's need each other, the others' are not there yet."""
RATES_SWEPT, RATES_TRIED, RATE_STEPS = 19, 5, 6
SIZES_TRIED, REPEATS = 5, 2
MOST_STEPS = RATES_SWEPT + RATES_TRIED * RATE_STEPS + SIZES_TRIED * (REPEATS + 2)
"""What it costs at most, in steps of the training; evaluations of a few rows come on top."""


class Size(msgspec.Struct, kw_only=True):
    """A micro-batch that was timed."""

    per_device_train_batch_size: int
    tokens_per_s: float = 0.0
    """The better of the repeats; 0: out of memory."""
    spread: float = 0.0
    """By how much the repeats differ, as a part."""


class Rate(msgspec.Struct, kw_only=True):
    """A learning rate that was tried for a few steps, from the same start and over the same rows."""

    learning_rate: float
    loss: float | None = None
    """Of the judging rows afterwards; None: it diverged."""
    behind: float = 0.0
    """By how much the loss is above the best one's, a row's mean."""
    error: float = 0.0
    """The standard error of that difference over the rows."""
    learnt: bool = False
    """Whether the loss is below that of the start by more than twice its standard error."""
    moved: bool = False
    """Whether it is another than that of the start at all."""


class Tuning(msgspec.Struct, kw_only=True):
    """All that was tried, and what came of it."""

    sizes: list[Size] = []
    rates: list[Rate] = []
    start_loss: float = 0.0
    """Of the judging rows before any step."""
    judged_rows: int = 0
    diverged_from: float | None = None
    """The lowest rate of the sweep at which the loss was half as large again as at the start; None: none was."""
    before: dict[str, float] = {}
    chosen: dict[str, float] = {}
    """Micro-batch and learning rate as they were planned, and as they were chosen."""
    steps: int = 0
    elapsed_s: float = 0.0


def read(run: Run) -> Tuning | None:
    try:
        return msgspec.json.decode((run.path / FILE).read_bytes(), type=Tuning)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write(run: Run, tuning: Tuning) -> None:
    files.write_json(run.path / FILE, tuning)


def refuse(stage: str, packing: bool) -> None:
    """Raise InputError where probes can't tell what is best."""
    if stage in UNTRIED:
        raise InputError(
            _("--tune can't try rates at the stage {stage}: its rows can't be judged one by one.").format(stage=stage),
            _("Leave out --tune; the stages sft, pt, rm, dpo, orpo, simpo and cpo can be tuned."),
        )
    if packing:
        raise InputError(
            _("--tune can't compare micro-batches of packs."), _("Leave out --packing: rows take no padding anyway.")
        )
