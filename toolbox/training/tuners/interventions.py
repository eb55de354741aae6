"""LoReFT: interventions on hidden states are trained, and no weight of the model (arXiv:2404.03592)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toolbox import files, loading, loreft, methods
from toolbox.plan import FinetunePlan
from toolbox.runs import Run
from toolbox.training.tuners import ready, restore_exactly, save_exactly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LoreftTuner:
    """Interventions in float32 over a frozen base in the plan's dtype, or in nf4."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan

    def load(self, device: str) -> "PreTrainedModel":
        plan = self._plan
        quantization = plan.BitsAndBytesConfig if plan.quantization != "none" else None
        model = loading.base_model(plan.model.path, plan.dtype, device, quantization)
        model.requires_grad_(False)
        loreft.attach(model, methods.own(plan, "LoreftConfig"))
        return ready(model, plan)

    def follow(self, model: Any, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Every step is alike."""

    def save(self, model: Any, folder: Path) -> None:
        """A complete adapter; beside it the reflections that R is made of, which training goes on from."""
        loreft.save(model, folder, self._plan.model.path)
        save_exactly(dict(getattr(model, loreft.NAME).named_parameters()), folder)

    def restore(self, model: Any, folder: Path) -> None:
        restore_exactly(dict(getattr(model, loreft.NAME).named_parameters()), folder)

    def export(self, model: Any, tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        if not run.adapter.exists():
            with files.whole_folder(run.adapter) as folder:
                loreft.save(model, folder, self._plan.model.path)
        return {"adapter": str(run.adapter)}
