"""The last resort: peft's merge of the whole model in memory, for the few that read all of the base to begin."""

from pathlib import Path
from typing import Any

import torch

from toolbox import loading
from toolbox.plan import MergePlan


def merge(plan: MergePlan, base: Any, folder: Path) -> None:
    """Write the merged model into `folder`; `base` is what the adapter is merged onto, in 4 bits where it was so."""
    model = base
    if plan.dequantizes:
        model = model.dequantize(dtype=getattr(torch, plan.dtype))
        for key in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, key):
                delattr(model.config, key)
        model.is_loaded_in_4bit = False  # peft's IA3 asks this flag, not the weights
    adapted: Any = loading.with_adapter(model, plan.adapter)
    merged = adapted.merge_and_unload(safe_merge=True)
    if kept := getattr(getattr(merged, "score", None), "modules_to_save", None):
        merged.score = kept["default"]  # peft's LN tuning leaves a reward model's head wrapped
    merged.save_pretrained(folder, max_shard_size="4GB")
