"""The ladder: what `finetune` does when memory runs out, one rung at a time, so that the training goes on all the same.

A smaller micro-batch with the same effective batch, then gradient checkpointing; then, only where the person allowed
it, the base in 4 bits, and shorter rows. RUN/ladder.jsonl has a line a rung: whoever resumes the run heeds it.
"""

import gc
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from toolbox import calibration, memory, methods, planning, rungs
from toolbox.errors import OutOfMemoryError, lacks_memory
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.rungs import Rung
from toolbox.runs import Reporter, Run
from toolbox.stages import Rewarded
from toolbox.training.meter import Meter
from toolbox.wishes import NF4

REASON_CHARS = 300
MIN_LENGTH = 128
"""Rows cut shorter than this are of no use."""
PEAK_OF_PROCESS, FORGET_PEAK = Path("/proc/self/clear_refs"), "5"
"""Linux: writing it makes VmHWM what is resident now (proc(5))."""


class Ladder:
    """The rungs of one training, and the plan as they have left it."""

    def __init__(self, plan: FinetunePlan, run: Run, reporter: Reporter) -> None:
        """As far down as earlier starts of the run have come. Raises CorruptError where that can't be read."""
        self._run, self._reporter = run, reporter
        self.plan, self.rungs = lowered(plan, run), rungs.read(run)
        self.reached: int | None = None
        """Steps done in this attempt; None while no model is loaded."""
        self.longest = 0
        """Tokens of the longest row."""
        self._meter: Meter | None = None

    def heed_kill(self) -> None:
        """Take a rung where the kernel ended the start before this one for want of memory: no error told of that."""
        rung = next(self._below(alone=False), None) if self._run.status().killed_for_memory else None
        if rung:
            self._take(rung, MemoryError(_("the system ended the job, as its memory was full")))
            self._reporter.phase(told(rung, self.plan))

    def begin(self, meter: Meter) -> Meter:
        """A new attempt, measured by `meter`, which is given back."""
        self.reached, self._meter = None, meter
        return meter

    def descend(self, error: Exception) -> None:
        """Take the next rung because of `error`, say so and write it down.

        Raises `error` itself where it is about something else, OutOfMemoryError where there is no rung left.
        """
        if not lacks_memory(error):
            raise error
        # Neither what is loaded nor what a single row takes depends on how many rows there are at once.
        alone = self.reached is None or isinstance(error, OutOfMemoryError)
        rung = next(self._below(alone), None)
        if rung is None:
            raise self._at_the_bottom(error) from error
        if self._meter and self.reached is not None:
            calibration.lacked(self.plan, self._run, self._meter.measured())
        self._take(rung, error)
        self._reporter.phase(told(rung, self.plan))

    def evaluate_with(self, rows: int) -> None:
        """The evaluation's own ladder: it takes `rows` at once from here on, the training what it took before."""
        self._take(Rung(kind="evaluation", training={"per_device_eval_batch_size": rows}), None)

    def _take(self, rung: Rung, error: Exception | None) -> None:
        rung = msgspec.structs.replace(
            rung,
            step=self.reached or 0,
            reason=" ".join(str(error).split())[:REASON_CHARS] if error else "",
            peak_bytes=self._meter.peak_bytes() if self._meter else 0,
            predicted_peak_bytes=self.plan.estimate.peak_bytes,
        )
        self.rungs.append(rung)
        self.plan = lower(self.plan, rung)
        rungs.write(self._run, self.rungs)

    def _below(self, alone: bool) -> Iterator[Rung]:
        """The rungs that are left, the next one first."""
        plan, training = self.plan, self.plan.training
        micro = training.per_device_train_batch_size
        effective = micro * training.gradient_accumulation_steps
        if not alone:
            for rows in (rows for rows in range(micro - 1, 0, -1) if effective % rows == 0):
                smaller = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": effective // rows}
                yield Rung(kind="micro_batch", training=smaller)
            if not training.gradient_checkpointing:
                yield Rung(kind="checkpointing", training={"gradient_checkpointing": True})
        if plan.allow_4bit and self._can_round:
            yield Rung(kind="4bit")
        length = min(training.max_length, self.longest) // 2
        if plan.allow_shorter and self._can_shorten and length >= MIN_LENGTH:
            yield Rung(kind="shorter", training={"max_length": length})

    def _at_the_bottom(self, error: Exception) -> OutOfMemoryError:
        """That nothing is left to try, with what was."""
        tried = [rung for rung in self.rungs if rung.kind != "evaluation"]
        message = _("The device ran out of memory.")
        if tried:
            message = _("The device ran out of memory, also after this: {rungs}.").format(
                rungs=_(", ").join(rungs.named(rung) for rung in tried)
            )
        elif isinstance(error, OutOfMemoryError):
            message = error.message
        others = [] if self.plan.allow_4bit or not self._can_round else ["--allow-4bit"]
        others += [] if self.plan.allow_shorter or not self._can_shorten else ["--allow-shorter"]
        return OutOfMemoryError(
            message,
            _("Free its memory, take a smaller model, or use {options}.").format(
                options=_(" or ").join(others or ["--max-length"])
            ),
        )

    @property
    def _can_round(self) -> bool:
        """Whether the base can be put into 4 bits under what is tuned already."""
        return (
            self.plan.quantization == "none"
            and methods.find(self.plan.method).nf4
            and not methods.changes_base(self.plan)
        )

    @property
    def _can_shorten(self) -> bool:
        """Whether rows can be cut: questions are whole, or are none."""
        return not isinstance(self.plan.options, Rewarded)


def lowered(plan: FinetunePlan, run: Run) -> FinetunePlan:
    """`plan` as far down as the run has come."""
    for rung in rungs.read(run):
        plan = lower(plan, rung)
    return plan


def lower(plan: FinetunePlan, rung: Rung) -> FinetunePlan:
    """`plan` after a step down, with what is predicted of it now."""
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **rung.training))
    if rung.kind == "4bit":
        method = "qlora" if plan.method == "lora" else plan.method
        rounded = {**NF4, "bnb_4bit_compute_dtype": plan.dtype}
        plan = msgspec.structs.replace(plan, method=method, quantization="nf4", BitsAndBytesConfig=rounded)
    predicted = memory.estimate(plan.model, plan, plan.device, planning.load_of(plan))
    return msgspec.structs.replace(plan, estimate=calibration.corrected(predicted, plan.estimate.factors))


def told(rung: Rung, plan: FinetunePlan) -> str:
    """What is said when a rung is taken; `plan` as it is after it."""
    if rung.kind == "micro_batch":
        rows, times = plan.training.per_device_train_batch_size, plan.training.gradient_accumulation_steps
        return _("Out of memory: going on with {rows} × {times} = {effective} rows a step").format(
            rows=rows, times=times, effective=rows * times
        )
    return _("Out of memory: going on with {rung}").format(rung=rungs.named(rung))


def release(error: BaseException | None) -> None:
    """Let go of what the frames that `error` came through still hold: activations, gradients, a whole model."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free() -> None:
    """Give back the memory of a failed attempt, and forget its peak where the system counts it.

    Its models are tied into cycles, and were frozen by `startup.end`.
    """
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    with suppress(OSError):
        PEAK_OF_PROCESS.write_text(FORGET_PEAK)
