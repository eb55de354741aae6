"""The optimizer, its learning rate as a pure function of the step, and its state without pickles."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
import torch

from toolbox import methods, plugins
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.recipe import Training
from toolbox.training.projected import ProjectedAdamW

TENSOR = "$tensor"
PROJECTED = {"galore_adamw": "GaloreConfig", "apollo_adamw": "ApolloConfig"}
"""The optimizers that project gradients, and their settings."""
Named = Sequence[tuple[str, torch.nn.Parameter]]
"""Weights that are trained, by name."""
IN_LAYER = re.compile(r"\.\d+\.")
"""The name of a weight within a numbered layer: embeddings and head are not projected."""


class MakeOptimizer(Protocol):
    """What an optimizer is, built in or a plugin's: a function that makes one."""

    def __call__(self, named_parameters: Named, plan: FinetunePlan) -> torch.optim.Optimizer:
        """An optimizer of the weights that are trained.

        Before each step a group's `lr` is set to the step's learning rate times its `rate`, by default 1. Its
        `state_dict` goes into checkpoints, so it holds tensors, numbers, texts, lists and dicts only.
        """


def make(named: Iterable[tuple[str, torch.nn.Parameter]], plan: FinetunePlan) -> torch.optim.Optimizer:
    """The optimizer that the plan's `optim` names; `named` are the model's weights, with a gradient or without."""
    kind = plan.training.optim
    build: MakeOptimizer = plugins.find("optimizer", kind)
    made = build([(name, weight) for name, weight in named if weight.requires_grad], plan)
    if not isinstance(made, torch.optim.Optimizer):
        raise plugins.wrong("optimizer", kind, _("it gives no torch.optim.Optimizer"))
    return made


def adamw_torch(named_parameters: Named, plan: FinetunePlan) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101); vectors and scalars (norms, biases) are not decayed."""
    fused = named_parameters[0][1].device.type != "mps"
    return torch.optim.AdamW(_groups(named_parameters, plan), lr=plan.training.learning_rate, fused=fused)


def adamw_8bit(named_parameters: Named, plan: FinetunePlan) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits (arXiv:2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(_groups(named_parameters, plan), lr=plan.training.learning_rate)


def paged_adamw_8bit(named_parameters: Named, plan: FinetunePlan) -> torch.optim.Optimizer:
    """The same, whose moments move to main memory where the GPU's is full (arXiv:2305.14314, section 3)."""
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(_groups(named_parameters, plan), lr=plan.training.learning_rate)


def projected(named_parameters: Named, plan: FinetunePlan) -> torch.optim.Optimizer:
    """GaLore and APOLLO."""
    return ProjectedAdamW(_groups(named_parameters, plan), lr=plan.training.learning_rate, seed=plan.seed)


galore_adamw = apollo_adamw = projected


def _groups(trained: Sequence[tuple[str, torch.nn.Parameter]], plan: FinetunePlan) -> list[dict[str, Any]]:
    """The weights by what they have in common: decay, rate, projection."""
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    ratio = methods.own(plan, "LoraPlusConfig").loraplus_lr_ratio if "LoraPlusConfig" in plan.blocks else 1.0
    projection = _projection(plan)
    for name, weight in trained:
        decayed, rate = weight.ndim >= 2, ratio if "lora_B" in name else 1.0
        projected = bool(projection) and weight.ndim == 2 and bool(IN_LAYER.search(name))
        new: dict[str, Any] = {
            "params": [],
            "weight_decay": plan.training.weight_decay if decayed else 0.0,
            "rate": rate,
        }
        group = groups.setdefault((decayed, rate, projected), new | (projection if projected else {}))
        group["params"].append(weight)
    return list(groups.values())


def _projection(plan: FinetunePlan) -> dict[str, Any]:
    """What a projected group says beside its weights; empty where gradients are not projected."""
    block = PROJECTED.get(plan.training.optim)
    if not block:
        return {}
    return {"projection": plan.training.optim.split("_")[0], **msgspec.to_builtins(methods.own(plan, block))}


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
        group["lr"] = rate * group.get("rate", 1.0)


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
