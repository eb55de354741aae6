"""bitsandbytes: weights in nf4 or int8, rounded as they are read, and stored so (`export --format bnb`)."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolbox import loading, merging
from toolbox.plan import ExportPlan

if TYPE_CHECKING:
    from toolbox.exporting import Step

SHARD = "4GB"


def write(plan: ExportPlan, source: Path, folder: Path, step: "Step") -> list[str]:
    """Write the model in `source` into `folder`, with all that belongs to it. Nothing is left to say of it."""
    step(0, 2)
    device = loading.torch_device(plan.device.kind, plan.device.index)
    model: Any = loading.base_model(source, plan.dtype, device, settings(plan))
    step(1, 2)
    model.save_pretrained(folder, max_shard_size=SHARD)
    add_texts(source, folder)
    step(2, 2)
    return []


def settings(plan: ExportPlan) -> dict[str, Any]:
    """What transformers' `BitsAndBytesConfig` takes: nf4 with its scales rounded too (QLoRA, arXiv:2305.14314), or
    LLM.int8() (arXiv:2208.07339)."""
    if plan.type == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": plan.dtype,
    }  # fmt: skip


def add_texts(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, generation settings and licence, as they lie beside the weights."""
    for name in merging.COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
