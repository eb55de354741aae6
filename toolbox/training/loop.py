"""The training loop: one for all methods and stages; every decision is in the plan, every state in a checkpoint."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from toolbox.errors import MAY_LACK_MEMORY, DivergedError, Interrupted, lacks_memory
from toolbox.i18n import _
from toolbox.inference import that_fits
from toolbox.recipe import Training
from toolbox.runs import Reporter, Run
from toolbox.training import batches, checkpoints, optim, probe, seeds, state
from toolbox.training.callbacks import Callbacks
from toolbox.training.ladder import Ladder, release
from toolbox.training.meter import Meter
from toolbox.training.packing import Packs
from toolbox.training.rows import Item
from toolbox.training.stages import Experience, Stage
from toolbox.training.step import Forward, Outcome, Stepped, Stepper, culprits, diverged, mean_step, means
from toolbox.training.store import Items
from toolbox.training.trackers import Trackers
from toolbox.training.tuner import Tuner

Made = TypeVar("Made")


class Loop:
    """Trains on `samples` until the plan's last step, from the run's newest checkpoint where there is one."""

    def __init__(
        self,
        ladder: Ladder,
        run: Run,
        reporter: Reporter,
        forward: Forward,
        tuner: Tuner,
        stage: Stage,
        samples: Items | Packs,
        held_out: Items,
        meter: Meter,
    ) -> None:
        self.ladder, self.plan = ladder, ladder.plan
        self.run, self.reporter, self.tuner, self.stage = run, reporter, tuner, stage
        self.forward, self.samples, self.held_out, self.meter = forward, samples, held_out, meter
        training = self.plan.training
        self.steps = total_steps(training, len(samples))
        optimizer = optim.make(forward.model.named_parameters(), self.plan)
        self.stepper = Stepper(forward, stage, optimizer, training.max_grad_norm)
        self.callbacks = Callbacks(self.plan)
        self.state = state.State()
        self._eval_rows = training.per_device_eval_batch_size or training.per_device_train_batch_size
        self._saved_step = 0
        self._follows = False

    def probe(self) -> None:
        """Find out whether the heaviest micro-batch fits, where that is not sure; nothing is another afterwards.

        A run that goes on from a checkpoint knows it. What is learnt from answers is not there before the first step.
        """
        known = self.run.has_checkpoint() or self.stage.as_prompts
        if known or not (self.ladder.rungs or probe.worth(self.plan)):
            return
        self._follow()
        items = probe.heaviest(self.samples, self.steps, self.plan.training, self.plan.seed, self.forward)
        self.state.probe_peak_bytes = probe.rehearse(self.forward, self.stage, items, self.plan, self.meter)

    def _follow(self) -> None:
        """Let the tuner do from now on what its method asks for at each step."""
        if not self._follows:
            updates = self.steps * self.stage.updates
            self.tuner.follow(self.forward.model, self.stepper.optimizer, self.state.updates, updates)
            self._follows = True

    def train(self) -> state.State:
        """Raises Interrupted once a stop was asked for and saved, DivergedError where the loss is no number."""
        self._resume()
        self._follow()
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
        rows = self.held_out.by_size()[::-1]  # the longest first, so that a lack of memory shows at once
        if self.stage.measure:
            return {f"eval_{name}": value for name, value in self.stage.measure(self.forward, list(rows)).items()}
        done, parts = 0, list[tuple[Items, Outcome]]()

        def next_part(size: int) -> tuple[Items, Outcome]:
            items = rows[done : done + size]
            return items, self.stage.loss(self.forward, items, totals)

        self.forward.model.eval()
        with torch.no_grad():
            totals = self._fitted(lambda size: self.stage.totals(self.forward, rows.in_parts(size)))
            while done < len(rows):
                parts.append(self._fitted(next_part))
                done += len(parts[-1][0])
        self.forward.model.train()
        losses = [float(outcome.loss) for _items, outcome in parts]
        if bad := [items for (items, _outcome), loss in zip(parts, losses, strict=True) if not math.isfinite(loss)]:
            raise diverged(self.state.step, culprits(self.forward, self.stage, bad))
        figures = means([outcome for _items, outcome in parts])
        return {"eval_loss": sum(losses), **{f"eval_{name}": value for name, value in figures.items()}}

    def _fitted(self, work: Callable[[int], Made]) -> Made:
        """What `work` makes of so many held-out rows at once as fit; the training's micro-batch stays what it is."""
        size, made = that_fits(self._eval_rows, work)
        if size != self._eval_rows:
            self._eval_rows = size
            self.ladder.evaluate_with(size)
        return made

    def _step(self) -> dict[str, float]:
        """One step, of one optimizer step or as many as the stage makes; returns its metrics."""
        begun, training, now = time.monotonic(), self.plan.training, self.state
        micro_batches = batches.of_step(self.samples, now.step, training, self.plan.seed)
        rate = optim.learning_rate(training, now.step, self.steps)
        learnt, made = self._learn(micro_batches, rate)
        tokens = sum(item.size for update in learnt.updates for items in update for item in items)
        weight = self._weight(micro_batches)
        for items in (items for update in learnt.updates for items in update):
            self.meter.saw(items)
        elapsed_s = time.monotonic() - begun
        now.step, now.tokens, now.weight = now.step + 1, now.tokens + tokens, now.weight + weight
        now.updates += len(learnt.updates)
        now.loss_sum, now.elapsed_s = now.loss_sum + made.loss * weight, now.elapsed_s + elapsed_s
        self.ladder.reached = now.step
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
        kept, drawn = dict(self.stage.kept), seeds.snapshot(self.forward.device)
        try:
            learnt = self.stage.experience(self.forward, micro_batches, now, self._heed_stop)
            for update in learnt.updates:
                made.append(self.stepper.step(update, now + 1, rate))
        except (DivergedError, *MAY_LACK_MEMORY) as error:
            whole = not (made or self.stepper.changing)  # else the weights are no more those after the last whole step
            if whole and (isinstance(error, DivergedError) or lacks_memory(error)):
                release(error)
                self.stepper.optimizer.zero_grad(set_to_none=True)
                self.stage.kept.update(kept)
                seeds.restore(drawn, self.forward.device)
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
            self.ladder.reached = self.state.step
            self.reporter.phase(_("Going on after step {step}").format(step=self.state.step))
            self.reporter.resumable()
        self.reporter.resumed(self.state.step)


def total_steps(training: Training, rows: int) -> int:
    """Optimizer steps in all: `max_steps`, or as many as the epochs need, a part of an epoch rounded up."""
    if training.max_steps > 0:
        return training.max_steps
    return max(1, math.ceil(training.num_train_epochs * batches.epoch_steps(rows, training)))
