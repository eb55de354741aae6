"""The training loop: one for all methods; every decision is in the plan, every state in a checkpoint."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from toolbox import files
from toolbox.errors import DivergedError, Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.recipe import Training
from toolbox.runs import Reporter, Run
from toolbox.training import batches, checkpoints, optim, seeds
from toolbox.training.board import Board
from toolbox.training.meter import Meter
from toolbox.training.rows import Sample
from toolbox.training.step import Forward, Stepper, diverged
from toolbox.training.tuner import Tuner

STATE, TENSORS = "state.json", "state.safetensors"


class State(msgspec.Struct, kw_only=True):
    """How far a training is; with the weights, the optimizer and the generators, all that a resumed run needs."""

    step: int = 0
    tokens: int = 0
    label_tokens: int = 0
    loss_sum: float = 0.0
    elapsed_s: float = 0.0
    eval_loss_before: float | None = None
    eval_loss: float | None = None


class Loop:
    """Trains on `samples` until the plan's last step, from the run's newest checkpoint where there is one."""

    def __init__(
        self,
        plan: FinetunePlan,
        run: Run,
        reporter: Reporter,
        forward: Forward,
        tuner: Tuner,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        meter: Meter,
    ) -> None:
        self.plan, self.run, self.reporter, self.tuner = plan, run, reporter, tuner
        self.forward, self.samples, self.held_out, self.meter = forward, samples, held_out, meter
        self.steps = total_steps(plan.training, len(samples))
        self.stepper = Stepper(
            forward, optim.make(forward.model.parameters(), plan.training), plan.training.max_grad_norm
        )
        self.state = State()
        self._saved_step = 0

    def train(self) -> State:
        """Raises Interrupted once a stop was asked for and saved, DivergedError where the loss is no number."""
        self._resume()
        state, training = self.state, self.plan.training
        with Board(self.plan.tensorboard or self.run.path / "tensorboard", state.step) as board:
            if state.step == 0 and self.held_out:
                state.eval_loss_before = state.eval_loss = self.evaluate()
                self._report(board, {"eval_loss": state.eval_loss})
            self.reporter.phase(_("Training"))
            while state.step < self.steps:
                self._heed_stop()
                metrics = self._step()
                if self.held_out and (state.step % training.eval_steps == 0 or state.step == self.steps):
                    metrics["eval_loss"] = state.eval_loss = self.evaluate()
                self._report(board, metrics)
                if state.step % training.save_steps == 0 or state.step == self.steps:
                    self._save()
        return state

    def evaluate(self) -> float:
        """The mean loss over the label tokens of the held-out rows."""
        size = self.plan.training.per_device_train_batch_size
        rows = sorted(self.held_out, key=lambda sample: len(sample.input_ids))
        self.forward.model.eval()
        with torch.no_grad():
            total = sum(float(self.forward.loss_sum(rows[i : i + size])) for i in range(0, len(rows), size))
        self.forward.model.train()
        if not math.isfinite(total):
            raise diverged(self.state.step, [rows])
        return total / batches.label_tokens(rows)

    def _step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        begun, training, state = time.monotonic(), self.plan.training, self.state
        micro_batches = batches.of_step(self.samples, state.step, training, self.plan.seed)
        rate = optim.learning_rate(training, state.step, self.steps)
        try:
            loss_sum, grad_norm = self.stepper.step(micro_batches, state.step + 1, rate)
        except DivergedError:
            self._save()
            raise
        tokens = sum(len(sample.input_ids) for samples in micro_batches for sample in samples)
        labels = sum(batches.label_tokens(samples) for samples in micro_batches)
        elapsed_s = time.monotonic() - begun
        state.step, state.tokens, state.label_tokens = (
            state.step + 1,
            state.tokens + tokens,
            state.label_tokens + labels,
        )
        state.loss_sum, state.elapsed_s = state.loss_sum + loss_sum, state.elapsed_s + elapsed_s
        return {
            "loss": loss_sum / labels,
            "learning_rate": rate,
            **({"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}),  # float16: a step that was skipped
            "tokens_per_s": round(tokens / elapsed_s, 1),
            "memory_bytes": self.meter.peak_bytes(),
        }

    def _report(self, board: Board, metrics: dict[str, float]) -> None:
        self.reporter.progress(self.state.step, self.steps, **metrics)
        board.log(self.state.step, metrics)

    def _heed_stop(self) -> None:
        if self.reporter.stopping:
            self._save()
            raise Interrupted(
                _("Stopped after step {step} of {steps}; what was done is saved.").format(
                    step=self.state.step, steps=self.steps
                ),
                _("Go on with: runs resume {run}").format(run=self.run.id),
            )

    def _save(self) -> None:
        """A checkpoint of the state as it is, unless it is there already."""
        if self.state.step > self._saved_step:
            checkpoints.save(self.run.checkpoints, self.state.step, self._write)
            self._saved_step = self.state.step
            self.reporter.resumable()

    def _write(self, folder: Path) -> None:
        self.tuner.save(self.forward.model, folder)
        tensors: dict[str, torch.Tensor] = {}
        generators = seeds.snapshot(self.forward.device)
        live = {"optimizer": self.stepper.optimizer.state_dict(), "generators": generators}
        kept = optim.split(live, tensors)
        save_file(tensors, folder / TENSORS)
        scaler = self.stepper.scaler.state_dict()
        files.write_json(folder / STATE, {"training": self.state, "scaler": scaler, "tensors": kept})

    def _resume(self) -> None:
        """Bring back the newest checkpoint, if any; metrics past it are forgotten."""
        if path := checkpoints.newest(self.run.checkpoints):
            with checkpoints.reading(path):
                self._read(path)
            self._saved_step = self.state.step
            self.reporter.phase(_("Going on after step {step}").format(step=self.state.step))
            self.reporter.resumable()
        self.reporter.resumed(self.state.step)

    def _read(self, folder: Path) -> None:
        kept = msgspec.json.decode((folder / STATE).read_bytes())
        live = optim.join(kept["tensors"], load_file(folder / TENSORS))
        self.tuner.restore(self.forward.model, folder)
        self.stepper.optimizer.load_state_dict(live["optimizer"])
        self.stepper.scaler.load_state_dict(kept["scaler"])
        seeds.restore(live["generators"], self.forward.device)
        self.state = msgspec.convert(kept["training"], State)


def total_steps(training: Training, rows: int) -> int:
    """Optimizer steps in all: `max_steps`, or as many as the epochs need, a part of an epoch rounded up."""
    if training.max_steps > 0:
        return training.max_steps
    return max(1, math.ceil(training.num_train_epochs * batches.epoch_steps(rows, training)))
