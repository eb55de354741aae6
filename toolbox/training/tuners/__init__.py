"""The kinds of tuners, one a file; `tuner.tuner_for` picks one by the plan's method."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toolbox.plan import FinetunePlan

WEIGHTS = "weights.safetensors"


def ready(model: Any, plan: FinetunePlan) -> Any:
    """Training mode; activations recomputed in the backward pass where the plan says so."""
    if plan.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def save_exactly(tensors: dict[str, torch.Tensor], folder: Path, name: str = WEIGHTS) -> None:
    save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, folder / name)


def restore_exactly(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Copy what `save_exactly` wrote into `tensors`. Raises KeyError where one is not in the file."""
    saved = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
