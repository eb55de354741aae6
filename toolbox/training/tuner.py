"""Tuners: which weights are trained, and how they are kept; `finetune --method` chooses one."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from toolbox import methods, plugins
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Tuner(Protocol):
    """One way of tuning. Weights on disk are safetensors, whole or absent."""

    def load(self, device: str) -> "PreTrainedModel":
        """The model of the plan on `device`, ready for training."""

    def follow(self, model: "PreTrainedModel", optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Called once, when `step` of `steps` are done: from now on, do what the method asks for at each step."""

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        """Write the trained weights into `folder`, exactly as they are."""

    def restore(self, model: "PreTrainedModel", folder: Path) -> None:
        """Bring back what `save` wrote."""

    def export(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        """Write what the run is for; returns its part of the result."""


def tuner_for(plan: FinetunePlan) -> Tuner:
    """The tuner of the plan's method, made of the plan."""
    method = methods.find(plan.method)
    tuner: Tuner = plugins.find("tuner", method.tuner or method.kind)(plan)
    if missing := [name for name in ("load", "follow", "save", "restore", "export") if not hasattr(tuner, name)]:
        raise plugins.wrong("tuner", method.tuner, _("it has no {names}").format(names=", ".join(missing)))
    return tuner
