"""The optimizer, its learning rate as a pure function of the step, and its state without pickles."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from toolbox.recipe import Training

TENSOR = "$tensor"


def make(parameters: Iterable[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101); vectors and scalars (norms, biases) are not decayed."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optim == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit

        return PagedAdamW8bit(groups, lr=training.learning_rate)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=trained[0].device.type != "mps")


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: linear warmup, then constant, linear or cosine to 0."""
    warmup = math.ceil(training.warmup_ratio * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    passed = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
    return training.learning_rate * factor[training.lr_scheduler_type]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def split(value: Any, tensors: dict[str, torch.Tensor], name: str = "optimizer") -> Any:
    """`value` as JSON takes it; its tensors are moved into `tensors`, each leaving its name behind."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(key): split(item, tensors, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [split(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
    return value


def join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `split`, but for tuples, which come back as lists; keys that are numbers come back as numbers."""
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {int(key) if key.isdigit() else key: join(item, tensors) for key, item in value.items()}
    return [join(item, tensors) for item in value] if isinstance(value, list) else value
