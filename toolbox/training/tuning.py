"""`finetune --tune`: before the training, a few steps each choose its micro-batch and its learning rate.

Weights, optimizer and generators are put back after each probe: what trains afterwards is the plan with the chosen
numbers, to the bit. Nothing is called better that is not beyond the noise; then what was planned stays.
"""

import math
import time
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import msgspec
import torch

from toolbox import files, tunings
from toolbox.errors import MAY_LACK_MEMORY, DivergedError, Interrupted, lacks_memory
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.recipe import Training
from toolbox.rungs import Rung
from toolbox.runs import Reporter, Run
from toolbox.training import batches, optim, probe, seeds
from toolbox.training.ladder import free, lower, release
from toolbox.training.meter import Meter
from toolbox.training.rows import Item
from toolbox.training.stages import Stage
from toolbox.training.step import Forward, Stepper
from toolbox.training.store import Items
from toolbox.tunings import MOST_STEPS, RATE_STEPS, RATES_SWEPT, RATES_TRIED, REPEATS, SIZES_TRIED, Rate, Size, Tuning

LOWEST, HIGHEST = 1e-6, 1.0
"""The range of rates that is swept, evenly on a logarithmic scale, three to a decade."""
DIVERGED = 1.5
"""A loss above so many times that of the start."""
APART = math.sqrt(10.0)
"""Between two rates that are tried."""
NEAR = 1.2
"""Rates within this factor of the planned one need not be tried beside it."""
JUDGING_ROWS, WATCHING_ROWS = 32, 8
"""Rows that tell rates apart, and those of them that tell whether a sweep has diverged."""
STILL = 1e-4
"""A loss that changed by less than this part of itself has not changed."""
CERTAIN = 2.0
"""Standard errors between two losses that are called different."""


def tune(
    plan: FinetunePlan,
    run: Run,
    reporter: Reporter,
    forward: Forward,
    stage: Stage,
    samples: Items,
    held_out: Items,
    steps: int,
) -> FinetunePlan:
    """`plan` with the micro-batch and the learning rate that probes chose; it takes the place of the run's plan.yaml.

    Micro-batches are timed forward and back over the rows of one step, the effective batch staying the same; the
    fastest is taken if it is faster by more than repeats differ. The rate is found in two goes: a range test, whose
    rate rises from step to step until the loss is `DIVERGED` times that of the start (arXiv:1506.01186, section 3.3);
    then rates below that are tried for `RATE_STEPS` steps each, from the same start. Of those whose loss, over the
    same held-out rows, can't be told from the best one's, the planned one is taken, else the lowest: few steps favour
    high rates (arXiv:1803.02021). At most `MOST_STEPS` steps in all. Keeps a copy of the trained weights meanwhile.

    Raises Interrupted.
    """
    begun = time.monotonic()
    reporter.phase(_("Tuning: at most {steps} steps").format(steps=MOST_STEPS))
    probes = _Probes(plan, reporter, forward, stage, samples, held_out, steps)
    sizes = probes.sizes()
    plan = _with_size(plan, _fastest(sizes, plan.training.per_device_train_batch_size))
    probes.plan = plan
    start = probes.judged()
    diverged_from = probes.sweep()
    rates = probes.rates(_candidates(plan.training.learning_rate, diverged_from), start)
    rate = _best(rates, plan.training.learning_rate)
    before = _numbers(probes.planned)
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, learning_rate=rate))
    tuning = Tuning(
        sizes=sizes, rates=rates, start_loss=fmean(start), judged_rows=len(probes.judging), diverged_from=diverged_from,
        before=before, chosen=_numbers(plan.training), steps=probes.steps_made,
        elapsed_s=round(time.monotonic() - begun, 1),
    )  # fmt: skip
    return _settled(plan, tuning, run, reporter)


def _settled(plan: FinetunePlan, tuning: Tuning, run: Run, reporter: Reporter) -> FinetunePlan:
    """The plan as it trains from now on, written down: whoever goes on, or does it again, tries nothing anew."""
    told = _("Tuned: {batch} × {times} rows a step and a learning rate of {rate:g}.").format(
        batch=plan.training.per_device_train_batch_size,
        times=plan.training.gradient_accumulation_steps,
        rate=plan.training.learning_rate,
    )
    plan = msgspec.structs.replace(plan, tune=False, why=f"{plan.why} {told}")
    tunings.write(run, tuning)
    files.write_bytes(run.plan_path, msgspec.yaml.encode(plan, enc_hook=str))
    reporter.phase(told)
    return plan


class _Probes:
    """Makes probes on one model, which is the same after each."""

    def __init__(
        self,
        plan: FinetunePlan,
        reporter: Reporter,
        forward: Forward,
        stage: Stage,
        samples: Items,
        held_out: Items,
        steps: int,
    ) -> None:
        self.plan, self.planned = plan, plan.training
        self.steps_made = 0
        self._reporter, self._forward, self._stage = reporter, forward, stage
        self._samples, self._steps = samples, steps
        judging = held_out if len(held_out) > 1 else batches.of_step(samples, steps - 1, self._whole(), plan.seed)[0]
        self.judging: list[Item] = list(judging[:JUDGING_ROWS])
        self._trained = [weight for weight in forward.model.parameters() if weight.requires_grad]
        self._start = [weight.detach().clone() for weight in self._trained]
        self._drawn = seeds.snapshot(forward.device)
        self._scale: dict[str, Any] = {}

    def sizes(self) -> list[Size]:
        """The micro-batches that were timed, smallest first; the repeats alternate, so that a busy spell hits all."""
        own = self.planned.per_device_train_batch_size
        effective = own * self.planned.gradient_accumulation_steps
        took: dict[int, list[float]] = {size: [] for size in _divisors(effective, own)}
        lacking = math.inf
        tokens = sum(item.size for items in self._rows(0, own) for item in items)
        for repeat in range(REPEATS + 1):  # the first one only warms up
            for size in (size for size in took if size < lacking):
                self._heed_stop()
                seconds = self._timed(size, larger=size > own and not repeat)
                if seconds is None:
                    lacking = min(lacking, size)
                elif repeat:
                    took[size].append(seconds)
        return [self._size(size, took[size] if size < lacking else [], tokens) for size in took]

    def _size(self, size: int, took: Sequence[float], tokens: int) -> Size:
        found = Size(per_device_train_batch_size=size)
        if took:
            found = Size(
                per_device_train_batch_size=size,
                tokens_per_s=round(tokens / min(took), 1),
                spread=round(max(took) / min(took) - 1, 3),
            )
        said = _("{count} tokens/s ± {spread:.0%}").format(count=f"{found.tokens_per_s:,.0f}", spread=found.spread)
        told = _("{rows} rows at once: {said}")
        self._reporter.phase(told.format(rows=size, said=said if took else _("out of memory")))
        return found

    def _timed(self, size: int, larger: bool) -> float | None:
        """Seconds of a step's rows forward and back, `size` at once; None where memory runs out.

        `larger`: than planned, so that the heaviest micro-batch of the training is tried first.
        """
        try:
            if larger:
                self.steps_made += 1
                training = _sized(self.planned, size)
                heaviest = probe.heaviest(self._samples, self._steps, training, self.plan.seed, self._forward)
                plan = msgspec.structs.replace(self.plan, training=training)
                probe.rehearse(self._forward, self._stage, heaviest, plan, Meter(self._forward.device))
            micro_batches = self._rows(0, size)
            self._wait()
            begun = time.perf_counter()
            totals = self._stage.totals(self._forward, micro_batches)
            for items in micro_batches:
                self._stage.loss(self._forward, items, totals).loss.backward()  # type: ignore[no-untyped-call]
            self._wait()
            return time.perf_counter() - begun
        except MAY_LACK_MEMORY as error:
            if not lacks_memory(error):
                raise
            release(error)
            free()
            return None
        finally:
            self.steps_made += 1
            self._put_back()

    def sweep(self) -> float | None:
        """The lowest rate at which the loss is `DIVERGED` times what it was, or no number; None: no such rate."""
        start = fmean(self.judged(WATCHING_ROWS))
        stepper = self._stepper()
        try:
            for number in range(RATES_SWEPT):
                rate = LOWEST * (HIGHEST / LOWEST) ** (number / (RATES_SWEPT - 1))
                self._step(stepper, number, rate)
                if not fmean(self.judged(WATCHING_ROWS)) < DIVERGED * start:
                    return float(f"{rate:.3g}")
        except DivergedError:
            return float(f"{rate:.3g}")
        finally:
            self._scale = stepper.scaler.state_dict()
            self._put_back()
        return None

    def rates(self, candidates: Sequence[float], start: Sequence[float]) -> list[Rate]:
        """What each rate makes of the same start in a few steps, and how far that is behind the best."""
        losses: dict[float, list[float]] = {}
        for rate in candidates:
            after = self._after(rate)
            losses[rate] = after if after and fmean(after) < DIVERGED * fmean(start) else []
            said = f"{fmean(losses[rate]):.4f}" if losses[rate] else _("diverged")
            told = _("Learning rate {rate:g}, after {steps} steps: {said}")
            self._reporter.phase(told.format(rate=rate, steps=RATE_STEPS, said=said))
        best = min(filter(None, losses.values()), key=fmean, default=[])
        return [_judged(rate, rows, best, start) for rate, rows in losses.items()]

    def _after(self, rate: float) -> list[float]:
        """The judging rows' losses after a few steps with this rate; none where they diverge."""
        self._put_back()
        stepper = self._stepper()
        try:
            for number in range(RATE_STEPS):
                self._step(stepper, number, rate)
            return self.judged()
        except DivergedError:
            return []
        finally:
            self._put_back()

    def judged(self, count: int = JUDGING_ROWS) -> list[float]:
        """The losses of the first judging rows, each by itself, without dropout."""
        self._forward.model.eval()
        with torch.no_grad():
            rows = [
                self._stage.loss(self._forward, [row], self._stage.totals(self._forward, [[row]])).loss
                for row in self.judging[:count]
            ]
        self._forward.model.train()
        return [float(loss) for loss in rows]

    def _step(self, stepper: Stepper, number: int, rate: float) -> None:
        self._heed_stop()
        self.steps_made += 1
        rows = self._rows(number % self._steps, self.plan.training.per_device_train_batch_size)
        stepper.step(rows, number + 1, rate)

    def _stepper(self) -> Stepper:
        """A new optimizer; float16's loss scaler goes on with the scale it had found, or it would skip these steps."""
        optimizer = optim.make(self._forward.model.named_parameters(), self.plan)
        stepper = Stepper(self._forward, self._stage, optimizer, self.plan.training.max_grad_norm)
        if self._scale:
            stepper.scaler.load_state_dict(self._scale)
        return stepper

    def _rows(self, step: int, size: int) -> list[list[Any]]:
        return batches.of_step(self._samples, step, _sized(self.planned, size), self.plan.seed)

    def _whole(self) -> Training:
        """A training whose micro-batch is the effective one."""
        return _sized(self.planned, self.planned.per_device_train_batch_size * self.planned.gradient_accumulation_steps)

    def _put_back(self) -> None:
        """The model, its gradients and all generators as they were."""
        with torch.no_grad():
            for weight, start in zip(self._trained, self._start, strict=True):
                weight.copy_(start)
        self._forward.model.zero_grad(set_to_none=True)
        seeds.restore(self._drawn, self._forward.device)

    def _wait(self) -> None:
        """Until the device has done what it was given: a GPU is told and does not wait."""
        if self._forward.device.startswith("cuda"):
            torch.cuda.synchronize(self._forward.device)
        elif self._forward.device == "mps":
            torch.mps.synchronize()

    def _heed_stop(self) -> None:
        if self._reporter.stopping:
            raise Interrupted(_("Stopped while it was tuning; nothing was trained yet."))


def _divisors(effective: int, own: int) -> list[int]:
    """Micro-batches of this effective batch, the planned one among them, at most `SIZES_TRIED`."""
    found = [size for size in range(1, effective + 1) if effective % size == 0]
    at = found.index(own)
    begin = max(0, min(at - SIZES_TRIED // 2, len(found) - SIZES_TRIED))
    return found[begin : begin + SIZES_TRIED]


def _fastest(sizes: Sequence[Size], own: int) -> int:
    """The fastest micro-batch, if it is faster than the planned one by more than the repeats differ."""
    fitting = [size for size in sizes if size.tokens_per_s]
    planned = next((size for size in fitting if size.per_device_train_batch_size == own), None)
    best = max(fitting, key=lambda size: size.tokens_per_s, default=None)
    if best is None:
        return own
    noise = 1 + max(size.spread for size in fitting)
    faster = planned is None or best.tokens_per_s > planned.tokens_per_s * noise
    return best.per_device_train_batch_size if faster else own


def _candidates(own: float, diverged_from: float | None) -> list[float]:
    """The rates to try, the planned one among them where the sweep did not diverge below it."""
    top = diverged_from or HIGHEST
    found = [float(f"{top / APART**number:.2g}") for number in range(1, RATES_TRIED)]
    if own >= top:
        return sorted(found)
    return sorted([*(rate for rate in found if not 1 / NEAR < own / rate < NEAR), own])


def _judged(rate: float, rows: Sequence[float], best: Sequence[float], start: Sequence[float]) -> Rate:
    """A rate by what it made of the judging rows, against what the best one made, and against no step at all."""
    if not rows:
        return Rate(learning_rate=rate)
    behind, error = _difference(rows, best)
    gained, uncertain = _difference(start, rows)
    return Rate(
        learning_rate=rate, loss=fmean(rows), behind=behind, error=error,
        learnt=gained > CERTAIN * uncertain, moved=abs(gained) > STILL * abs(fmean(start)),
    )  # fmt: skip


def _difference(some: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The mean over rows of the difference of their losses, and its standard error."""
    differences = [one - other for one, other in zip(some, others, strict=True)]
    return fmean(differences), stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0


def _best(rates: Sequence[Rate], own: float) -> float:
    """The planned rate where no other is better beyond the noise; else the lowest of the best.

    One that has learnt nothing beyond the noise is chosen only where none has, one that changed nothing never.
    """
    alike = [rate.learning_rate for rate in rates if rate.learnt and rate.behind <= CERTAIN * rate.error]
    alike = alike or [rate.learning_rate for rate in rates if rate.moved]
    if not alike:
        return min([own, *(rate.learning_rate for rate in rates)])
    return own if own in alike else min(alike)


def _sized(training: Training, size: int) -> Training:
    """The same effective batch, `size` rows at once."""
    effective = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return msgspec.structs.replace(
        training, per_device_train_batch_size=size, gradient_accumulation_steps=effective // size
    )


def _with_size(plan: FinetunePlan, size: int) -> FinetunePlan:
    """The plan with that micro-batch, and what is predicted of it then."""
    if size == plan.training.per_device_train_batch_size:
        return plan
    training = _sized(plan.training, size)
    changed = {"per_device_train_batch_size": size, "gradient_accumulation_steps": training.gradient_accumulation_steps}
    return lower(plan, Rung(kind="micro_batch", training=changed))


def _numbers(training: Training) -> dict[str, float]:
    return {
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
    }
