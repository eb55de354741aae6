"""A LoRA adapter alone, in peft's layout without what engines stumble over; loaded again on its base (`export`)."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file

from toolbox import files, templates
from toolbox.errors import InputError
from toolbox.exporting import checking
from toolbox.exporting.checking import Questions, Said
from toolbox.i18n import _
from toolbox.plan import ExportPlan

if TYPE_CHECKING:
    from toolbox.exporting import Step

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
KEPT = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "task_type", "peft_type")
"""What of adapter_config.json an engine computes with; the rest is how it was trained."""
RANKS = 16
"""vLLM's --max-lora-rank where it is not said (vllm 0.32, config/lora.py)."""
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", templates.FILE, templates.GENERATION,
)  # fmt: skip


class Pair(msgspec.Struct, frozen=True):
    """What is added to a module: scaling · B·A; `a` is r × in, `b` out × r."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


def pairs(adapter: Path, config: LoraConfig) -> dict[str, Pair]:
    """The adapter's matrices by module. Raises InputError for what is no matrix of a LoRA on a linear module."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        match = KEY.fullmatch(key)
        if not match or tensor.ndim != 2:
            raise InputError(
                _("{path} is more than LoRA ({what}), which engines don't load unmerged.").format(
                    path=adapter, what=key
                ),
                _("Leave out --adapter-only: the adapter is merged first."),
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    return {
        module: Pair(pair["A"], pair["B"], _scaling(config, module, pair["A"].shape[0]))
        for module, pair in sides.items()
    }


def _scaling(config: LoraConfig, module: str, r: int) -> float:
    """lora_alpha / r, or lora_alpha / √r for rsLoRA (arXiv:2312.03732); a pattern that fits the module comes first."""
    fitting = (alpha for name, alpha in (config.alpha_pattern or {}).items() if re.match(rf".*\.?{name}$", module))
    alpha = next(fitting, config.lora_alpha)
    return float(alpha) / (math.sqrt(r) if config.use_rslora else r)


def write(plan: ExportPlan, source: Path, folder: Path, step: "Step") -> list[str]:
    """Write adapter_config.json, adapter_model.safetensors, tokenizer and template. Returns what engines must be told.

    `base_model_name_or_path` becomes the base's id: a hub's name where it has one, else its folder.
    """
    assert plan.adapter
    config = PeftConfig.from_pretrained(str(plan.adapter))
    assert isinstance(config, LoraConfig)
    found = pairs(plan.adapter, config)
    said: dict[str, Any] = json.loads((plan.adapter / "adapter_config.json").read_text("utf-8"))
    base = plan.model.id if plan.model.source in ("modelscope", "huggingface") else str(plan.model.path)
    kept = {name: said[name] for name in KEPT if name in said}
    kept |= {
        "base_model_name_or_path": base, "inference_mode": True, "bias": "none", "modules_to_save": None,
        "lora_dropout": 0.0, "target_modules": sorted({module.rpartition(".")[2] for module in found}),
    }  # fmt: skip
    files.write_json(folder / "adapter_config.json", kept, mode=0o644)
    stored = {
        f"base_model.model.{module}.lora_{side}.weight": tensor.to(DTYPES[plan.type]).contiguous()
        for module, pair in found.items()
        for side, tensor in (("A", pair.a), ("B", pair.b))
    }
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for name in BESIDE:
        if (plan.adapter / name).is_file():
            shutil.copyfile(plan.adapter / name, folder / name)
    step(1, 1)
    rank = max(pair.a.shape[0] for pair in found.values())
    return [_("Tell vLLM --max-lora-rank {rank}.").format(rank=rank)] if rank > RANKS else []


def ask(plan: ExportPlan, source: Path, folder: Path, questions: Questions) -> dict[str, Said]:
    """What peft makes of it, on the base."""
    return {"peft": checking.ask_transformers(plan, source, questions, folder)}
