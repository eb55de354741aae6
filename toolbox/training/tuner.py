"""Tuners: which weights are trained, and how they are kept: an adapter (LoRA, QLoRA) or all of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from toolbox import files, loading
from toolbox.plan import FinetunePlan
from toolbox.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "weights.safetensors"


class Tuner(Protocol):
    """One way of tuning. Weights on disk are safetensors, whole or absent."""

    def load(self, device: str) -> "PreTrainedModel":
        """The model of the plan on `device`, ready for training."""

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        """Write the trained weights into `folder`, exactly as they are."""

    def restore(self, model: "PreTrainedModel", folder: Path) -> None:
        """Bring back what `save` wrote."""

    def export(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        """Write what the run is for; returns its part of the result."""


def tuner_for(plan: FinetunePlan) -> Tuner:
    return FullTuner(plan) if plan.method == "full" else AdapterTuner(plan)


class AdapterTuner:
    """LoRA in float32 over a frozen base in the plan's dtype (arXiv:2106.09685) or in nf4 (QLoRA, arXiv:2305.14314)."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan

    def load(self, device: str) -> "PreTrainedModel":
        from peft import LoraConfig, get_peft_model

        plan = self._plan
        quantization = plan.BitsAndBytesConfig if plan.quantization != "none" else None
        base = loading.base_model(plan.model.path, plan.dtype, device, quantization)
        _keep_trainable(base)
        model = get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", **plan.LoraConfig}))
        return _ready(model, plan)

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)

    def restore(self, model: Any, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))

    def export(self, model: Any, tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        if not run.adapter.exists():  # else an earlier end of this same run made it whole
            with files.whole_folder(run.adapter) as folder:
                self.save(model, folder)
                _record_base(folder, self._plan)
        return {"adapter": str(run.adapter)}


class FullTuner:
    """Every weight, in float32 with the plan's dtype for the arithmetic: small updates would vanish in bfloat16."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan

    def load(self, device: str) -> "PreTrainedModel":
        model = loading.base_model(self._plan.model.path, "float32", device)
        model.requires_grad_(True)
        return _ready(model, self._plan)

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
        save_file(weights, folder / WEIGHTS)

    def restore(self, model: "PreTrainedModel", folder: Path) -> None:
        saved = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(saved[name])

    def export(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        destination = run.path / "model"
        if not destination.exists():
            model.to(getattr(torch, self._plan.model.dtype))
            with files.whole_folder(destination) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        return {"adapter": "", "model": str(destination)}


def _ready(model: Any, plan: FinetunePlan) -> Any:
    """Training mode; activations recomputed in the backward pass where the plan says so."""
    if plan.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _keep_trainable(model: Any) -> None:
    """Keep 4-bit weights as they are through evaluations.

    On processors with avx512_bf16, bitsandbytes repacks them for inference at the first forward in eval mode, for good,
    and gradients through them are silently lost from then on (bitsandbytes 0.50.2, nn/modules.py, Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _record_base(folder: Path, plan: FinetunePlan) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = str(plan.model.path)
    files.write_json(path, config)
