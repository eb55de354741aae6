"""The training loop: one for all methods and stages; every decision is in the plan, every state in a checkpoint."""

import math
import time
from collections.abc import Sequence
from functools import partial

import torch

from toolbox.errors import DivergedError, Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.recipe import Training
from toolbox.runs import Reporter, Run
from toolbox.training import batches, checkpoints, optim, state
from toolbox.training.callbacks import Callbacks
from toolbox.training.meter import Meter
from toolbox.training.packing import Pack
from toolbox.training.rows import Item
from toolbox.training.stages import Experience, Stage
from toolbox.training.step import Forward, Stepped, Stepper, culprits, diverged, mean_step, means
from toolbox.training.store import Items
from toolbox.training.trackers import Trackers
from toolbox.training.tuner import Tuner


class Loop:
    """Trains on `samples` until the plan's last step, from the run's newest checkpoint where there is one."""

    def __init__(
        self,
        plan: FinetunePlan,
        run: Run,
        reporter: Reporter,
        forward: Forward,
        tuner: Tuner,
        stage: Stage,
        samples: Sequence[Item | Pack],
        held_out: Items,
        meter: Meter,
    ) -> None:
        self.plan, self.run, self.reporter, self.tuner, self.stage = plan, run, reporter, tuner, stage
        self.forward, self.samples, self.held_out, self.meter = forward, samples, held_out, meter
        self.steps = total_steps(plan.training, len(samples))
        self.stepper = Stepper(
            forward, stage, optim.make(forward.model.named_parameters(), plan), plan.training.max_grad_norm
        )
        self.callbacks = Callbacks(plan)
        self.state = state.State()
        self._saved_step = 0

    def train(self) -> state.State:
        """Raises Interrupted once a stop was asked for and saved, DivergedError where the loss is no number."""
        self._resume()
        updates = self.steps * self.stage.updates
        self.tuner.follow(self.forward.model, self.stepper.optimizer, self.state.updates, updates)
        now, training = self.state, self.plan.training
        self.callbacks.train_begins(self.forward.model, now.step, self.steps)
        with Trackers(self.plan, self.run, now.step, self.reporter) as trackers:
            if now.step == 0 and self.held_out and training.eval_on_start:
                now.before = self._evaluated()
                self._report(trackers, now.before)
            self.reporter.phase(_("Training"))
            while now.step < self.steps and not now.ended:
                self._heed_stop()
                metrics = self._step()
                now.ended = self.callbacks.step_ended(now.step, metrics)
                last = now.ended or now.step == self.steps
                if self.held_out and (now.step % training.eval_steps == 0 or last):
                    metrics |= self._evaluated()
                self._report(trackers, metrics)
                if now.step % training.save_steps == 0 or last or now.ended:
                    self._save()
        self.callbacks.train_ended(now.step)
        return now

    def _evaluated(self) -> dict[str, float]:
        """A new evaluation, with what callbacks make of it."""
        figures = self.evaluate()
        self.state.ended = self.callbacks.evaluated(self.state.step, figures) or self.state.ended
        self.state.evaluated = figures
        return figures

    def evaluate(self) -> dict[str, float]:
        """The stage's mean loss over the held-out rows, as `eval_loss`, and its figures, as `eval_…`."""
        rows = self.held_out.by_size()
        if self.stage.measure:
            return {f"eval_{name}": value for name, value in self.stage.measure(self.forward, list(rows)).items()}
        micro_batches = rows.in_parts(self.plan.training.per_device_train_batch_size)
        self.forward.model.eval()
        with torch.no_grad():
            totals = self.stage.totals(self.forward, micro_batches)
            outcomes = [self.stage.loss(self.forward, items, totals) for items in micro_batches]
        self.forward.model.train()
        losses = [float(outcome.loss) for outcome in outcomes]
        if bad := [items for items, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]:
            raise diverged(self.state.step, culprits(self.forward, self.stage, bad))
        return {"eval_loss": sum(losses), **{f"eval_{name}": value for name, value in means(outcomes).items()}}

    def _step(self) -> dict[str, float]:
        """One step, of one optimizer step or as many as the stage makes; returns its metrics."""
        begun, training, now = time.monotonic(), self.plan.training, self.state
        micro_batches = batches.of_step(self.samples, now.step, training, self.plan.seed)
        rate = optim.learning_rate(training, now.step, self.steps)
        learnt, made = self._learn(micro_batches, rate)
        tokens = sum(item.size for update in learnt.updates for items in update for item in items)
        weight = self._weight(micro_batches)
        elapsed_s = time.monotonic() - begun
        now.step, now.tokens, now.weight = now.step + 1, now.tokens + tokens, now.weight + weight
        now.updates += len(learnt.updates)
        now.loss_sum, now.elapsed_s = now.loss_sum + made.loss * weight, now.elapsed_s + elapsed_s
        return {
            "loss": made.loss,
            **learnt.figures,
            **made.figures,
            "learning_rate": rate,
            **({"grad_norm": made.grad_norm} if math.isfinite(made.grad_norm) else {}),  # float16: a step was skipped
            "tokens_per_s": round(tokens / elapsed_s, 1),
            "memory_bytes": self.meter.peak_bytes(),
        }

    def _learn(self, micro_batches: Sequence[Sequence[Item]], rate: float) -> tuple[Experience, Stepped]:
        """The optimizer steps of a step on what its stage makes of the rows; their means. Raises DivergedError."""
        now, made = self.state.step, list[Stepped]()
        try:
            learnt = self.stage.experience(self.forward, micro_batches, now, self._heed_stop)
            for update in learnt.updates:
                made.append(self.stepper.step(update, now + 1, rate))
        except DivergedError:
            if not made:  # else the weights are no more those after the last whole step
                self._save()
            raise
        return learnt, mean_step(made)

    def _weight(self, micro_batches: Sequence[Sequence[Item]]) -> int:
        """What a step counts in the training's mean loss."""
        items = [item for micro_batch in micro_batches for item in micro_batch]
        if self.stage.weighed_by == "rows":
            return len(items)
        return batches.label_tokens([item.sequences[0] for item in items])

    def _report(self, trackers: Trackers, metrics: dict[str, float]) -> None:
        self.reporter.progress(self.state.step, self.steps, **metrics)
        trackers.log(self.state.step, metrics)

    def _heed_stop(self) -> None:
        if not self.reporter.stopping:
            return
        self._save()
        told = _("Stopped after step {step} of {steps}; what was done is saved.").format(
            step=self.state.step, steps=self.steps
        )
        raise Interrupted(
            told if self.state.step else _("Stopped before the first step."),
            _("Go on with: {command}").format(command=self.run.command("runs", "resume")),
        )

    def _save(self) -> None:
        """A checkpoint of the state as it is, unless it is there already."""
        if self.state.step > self._saved_step:
            self.state.kept = dict(self.stage.kept)
            self.state.callbacks = self.callbacks.state_dict()
            write = partial(state.write, state=self.state, stepper=self.stepper, tuner=self.tuner)
            folder = checkpoints.save(self.run.checkpoints, self.state.step, write)
            self.callbacks.saved(self.state.step, folder)
            self._saved_step = self.state.step
            self.reporter.resumable()

    def _resume(self) -> None:
        """Bring back the newest checkpoint, if any; metrics past it are forgotten."""
        if path := checkpoints.newest(self.run.checkpoints):
            with checkpoints.reading(path):
                self.state = state.read(path, self.stepper, self.tuner)
            self.callbacks.load_state_dict(self.state.callbacks)
            self._saved_step = self.state.step
            self.stage.kept.update(self.state.kept)
            self.reporter.phase(_("Going on after step {step}").format(step=self.state.step))
            self.reporter.resumable()
        self.reporter.resumed(self.state.step)


def total_steps(training: Training, rows: int) -> int:
    """Optimizer steps in all: `max_steps`, or as many as the epochs need, a part of an epoch rounded up."""
    if training.max_steps > 0:
        return training.max_steps
    return max(1, math.ceil(training.num_train_epochs * batches.epoch_steps(rows, training)))
