"""All that a resumed training needs, written to and read from a checkpoint's folder: safetensors and JSON."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file

from toolbox import files
from toolbox.training import optim, seeds
from toolbox.training.stages import scoring
from toolbox.training.step import Stepper
from toolbox.training.tuner import Tuner

STATE, TENSORS = "state.json", "state.safetensors"


class State(msgspec.Struct, kw_only=True):
    """How far a training is. Sums are over its optimizer steps."""

    step: int = 0
    updates: int = 0
    """Optimizer steps: a step makes one, or as many as its stage does."""
    tokens: int = 0
    weight: int = 0
    """Of all steps, what the stage weighs them by: label tokens or rows."""
    loss_sum: float = 0.0
    """Each step's mean loss by its weight."""
    elapsed_s: float = 0.0
    before: dict[str, float] = {}
    """The evaluation before the first step: its loss and the stage's figures."""
    evaluated: dict[str, float] = {}
    """The newest evaluation."""
    probe_peak_bytes: int = 0
    """What the probe before the first step measured; 0: there was none."""
    kept: dict[str, float] = {}
    """What the stage remembers."""
    ended: bool = False
    """Whether a callback ended the training before its last step."""
    callbacks: dict[str, dict[str, Any]] = {}
    """What callbacks keep, by name."""


def write(folder: Path, state: State, stepper: Stepper, tuner: Tuner) -> None:
    """The trained weights, the optimizer, the loss scaler, the random generators, and `state`."""
    forward = stepper.forward
    tuner.save(forward.model, folder)
    scoring.save(forward.model, folder)
    tensors: dict[str, torch.Tensor] = {}
    live = {"optimizer": stepper.optimizer.state_dict(), "generators": seeds.snapshot(forward.device)}
    kept = optim.split(live, tensors)
    save_file(tensors, folder / TENSORS)
    files.write_json(folder / STATE, {"training": state, "scaler": stepper.scaler.state_dict(), "tensors": kept})


def read(folder: Path, stepper: Stepper, tuner: Tuner) -> State:
    """Bring everything back to what `write` saw; returns its state."""
    forward = stepper.forward
    kept = msgspec.json.decode((folder / STATE).read_bytes())
    live = optim.join(kept["tensors"], load_file(folder / TENSORS))
    tuner.restore(forward.model, folder)
    scoring.restore(forward.model, folder)
    stepper.optimizer.load_state_dict(live["optimizer"])
    stepper.scaler.load_state_dict(kept["scaler"])
    seeds.restore(live["generators"], forward.device)
    return msgspec.convert(kept["training"], State)
