"""Adapters that peft makes: LoRA and its kin, OFT, IA3 and the rest; all but their own weights stay as they are."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from toolbox import files, loading, methods
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Run
from toolbox.training import adapted
from toolbox.training.tuners import WEIGHTS, adalora, ready, restore_exactly, save_exactly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_model.safetensors"
UNSUITED = ("CrossAttention", "Indexer", "Router", "GroupedLinear")
"""In the names of classes that text does not pass, that choose without a gradient, or that are no plain product."""


class AdapterTuner:
    """An adapter in float32 over a frozen base in the plan's dtype, or in nf4."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan
        self._settings = methods.settings(plan)
        self._adalora = methods.find(plan.method).block == "AdaLoraConfig"
        self._begun: dict[str, torch.Tensor] = {}
        """The adapter before the first step, where it was taken off the base."""

    def load(self, device: str) -> "PreTrainedModel":
        plan = self._plan
        quantization = plan.BitsAndBytesConfig if plan.quantization != "none" else None
        base = loading.base_model(plan.model.path, plan.dtype, device, quantization)
        model = self._adapted(base)
        if plan.method == "lora-fa":
            _freeze_a(model)
        if methods.changes_base(plan):
            self._begun = {name: tensor.clone() for name, tensor in _state(model).items()}
        adapted.adapt(model)
        return ready(model, plan)

    def _adapted(self, base: "PreTrainedModel") -> Any:
        """`base` with the adapter. Raises InputError with peft's own words where it refuses the settings."""
        import peft

        settings = {"task_type": "CAUSAL_LM", **self._settings}
        block = methods.find(self._plan.method).block
        if settings.get("target_modules") == "all-linear" and "exclude_modules" not in settings:
            settings |= _all_linear(base, block)
        if self._adalora:
            settings = adalora.settled(settings)
        try:
            return peft.get_peft_model(base, getattr(peft, block)(**settings))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(
                _("peft refuses these settings of {block}: {reason}").format(block=block, reason=error),
                _("Change them with --set {block}.KEY=VALUE.").format(block=block),
            ) from error

    def follow(self, model: Any, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        if self._adalora:
            adalora.follow(model, optimizer, step, steps, self._settings)

    def save(self, model: Any, folder: Path) -> None:
        """A complete adapter; beside it the bare weights where that holds them changed."""
        self._save_adapter(model, folder)
        if self._begun or self._adalora:
            extra = adalora.state(model) if self._adalora else {}
            save_exactly({**_trained(model), **extra}, folder)

    def restore(self, model: Any, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        if not (folder / WEIGHTS).exists():
            set_peft_model_state_dict(model, load_file(folder / ADAPTER))
            loading.fill_adapter(model, folder)
            return
        restore_exactly(_trained(model), folder)
        if self._adalora:
            adalora.restore(model, load_file(folder / WEIGHTS))

    def export(self, model: Any, tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        if not run.adapter.exists():  # else an earlier end of this same run made it whole
            with files.whole_folder(run.adapter) as folder:
                self._save_adapter(model, folder)
                _change_config(folder, base_model_name_or_path=str(self._plan.model.path))
        return {"adapter": str(run.adapter)}

    def _save_adapter(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)
        if self._begun:
            _as_plain_lora(folder, self._begun)


def _all_linear(base: Any, block: str) -> dict[str, Any]:
    """`target_modules` and `exclude_modules` for "all-linear": every linear that text passes, but the head.

    Left out are towers; modules in UNSUITED; of selective state spaces (arXiv:2312.00752, arXiv:2405.21060) all but
    in_proj, as fused kernels take the other weights past any adapter, which would train on a processor and be ignored
    on a GPU; and fused experts, see `_linears_alone`.
    """
    left_out = loading.towers(base)
    for name, module in base.named_modules():
        if any(word in type(module).__name__ for word in UNSUITED):
            left_out.append(name)
        if hasattr(module, "A_log") and hasattr(module, "D"):
            left_out += [f"{name}.{part}" for part, _child in module.named_children() if part != "in_proj"]
    pattern = "|".join(rf"{re.escape(name)}(\..*)?" for name in left_out)
    chosen = _linears_alone(base, pattern) if block == "LoraConfig" else []
    return {
        **({"exclude_modules": pattern} if pattern else {}),
        **({"target_modules": chosen} if chosen else {}),
    }


def _linears_alone(base: Any, left_out: str) -> list[str]:
    """The names of all linears where peft would take "all-linear" for fused experts too; none where it would not.

    An adapter of theirs allows no dropout, adds up whole matrices of all experts at each step, and no engine serves it.
    What is called as an expert's matrix is ("gate_proj" of a shared expert) stays without one: peft takes it for it.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules="all-linear")
    convert_peft_config_for_transformers(config, base, None)
    if not config.target_parameters:
        return []
    linears = {
        name.split(".")[-1]
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and not re.fullmatch(left_out, name)
    }
    return sorted(linears & set(config.target_modules or []))


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """Every weight of the adapter itself."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _state(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def _freeze_a(model: Any) -> None:
    """LoRA-FA (arXiv:2308.03303, section 3.1): A stays as it was drawn, so its input need not be kept."""
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            weight.requires_grad_(False)


def _as_plain_lora(folder: Path, begun: dict[str, torch.Tensor]) -> None:
    """Turn the saved adapter into one for the untouched base: [B, −B₀]·[A; A₀] of twice the rank.

    B·A − B₀·A₀ is what was learnt (as peft's `subtract_mutated_init`). So any engine serves it, no singular value is
    computed again, and merging is plain LoRA's.
    """
    tensors = load_file(folder / ADAPTER)
    for name, tensor in tensors.items():
        if "lora_A" in name or "lora_B" in name:
            before = begun[name].to(tensor)
            tensors[name] = torch.cat([tensor, before], 0) if "lora_A" in name else torch.cat([tensor, -before], 1)
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    growth = math.sqrt(2) if config.get("use_rslora") else 2
    _change_config(
        folder,
        init_lora_weights=True,
        r=2 * config["r"],
        lora_alpha=growth * config["lora_alpha"],
        rank_pattern={name: 2 * r for name, r in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={name: growth * alpha for name, alpha in (config.get("alpha_pattern") or {}).items()},
    )


def _change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    files.write_json(path, {**json.loads(path.read_text("utf-8")), **values})
