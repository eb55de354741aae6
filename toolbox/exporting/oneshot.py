"""The half of a gptq, awq or fp8 export that runs in llmcompressor's own interpreter: `python oneshot.py WORK.json`.

Nothing of this package can be imported there; compressed.py writes WORK.json (its `Work`) and reads the bars that the
library draws. What it took is written into `work["said"]`.
"""

import json
import resource
import sys
from typing import Any

import llmcompressor
import torch

SHARD = "4GB"


def main(work: dict[str, Any]) -> None:
    """Compress `work["model"]` into the folder `work["output"]`."""
    if work["method"] == "fp8":
        round_weights(work)
    else:
        calibrate(work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(work["said"], "w", encoding="utf-8") as file:
        json.dump({"version": llmcompressor.__version__, "peak_bytes": peak}, file)


def round_weights(work: dict[str, Any]) -> None:
    """A file of weights at a time; the model itself is never built. Activations are rounded while it is served."""
    llmcompressor.model_free_ptq(
        work["model"], work["output"], scheme="FP8_DYNAMIC", ignore=work["ignore"], device=work["device"]
    )


def calibrate(work: dict[str, Any]) -> None:
    """Layer by layer: each sees the rows as the compressed layers before it left them."""
    from datasets import Dataset
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    if not torch.accelerator.is_available():
        # 0.14.0.1 pins memory for an accelerator also where there is none, and torch refuses (awq/base.py, 507).
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None
    torch.manual_seed(work["seed"])
    model = AutoModelForCausalLM.from_pretrained(
        work["model"], dtype=getattr(torch, work["dtype"]), use_safetensors=True, local_files_only=True,
        trust_remote_code=False,
    )  # fmt: skip
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in work["rows"]]
    llmcompressor.oneshot(
        model=model, dataset=Dataset.from_list(rows), recipe=recipe(work), num_calibration_samples=len(rows),
        max_seq_length=max(map(len, work["rows"])), shuffle_calibration_samples=False,
    )  # fmt: skip
    model.save_pretrained(work["output"], save_compressed=True, max_shard_size=SHARD)


def recipe(work: dict[str, Any]) -> list[Any]:
    """GPTQ (arXiv:2210.17323), or AWQ's scales (arXiv:2306.00978) and then plain rounding."""
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    weights = {
        "num_bits": work["bits"], "type": "int", "symmetric": work["symmetric"], "strategy": "group",
        "group_size": work["group_size"],
    }  # fmt: skip
    how = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": work["ignore"]}
    if work["method"] == "gptq":
        return [GPTQModifier(**how)]
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(**how)]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
