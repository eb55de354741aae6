"""Measures any trainer built on transformers' `Trainer`: a JSON line a step into BENCH_STEPS (`bench/train.py`).

Python imports this by itself where its folder is on PYTHONPATH. A line is written before a step, so that the difference
of two lines is all that a step costs: data, forward, backward, clipping, optimizer, logging. The adapter's weights are
replaced by those in BENCH_ADAPTER before the first step, so that all begin alike.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from typing import Any

MODULE = "transformers.trainer"


class Finder(importlib.abc.MetaPathFinder):
    """Wraps `Trainer.training_step` once its module is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                measure(module.Trainer)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def measure(trainer: Any) -> None:
    step, steps = trainer.training_step, 0

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 1:
            begin_alike(model)
        mask, labels = inputs.get("attention_mask"), inputs.get("labels")
        line = {
            "at": time.time(),
            "cpu_s": time.process_time(),
            "tokens": int(mask.sum()) if mask is not None else None,
            "labels": int((labels[:, 1:] != -100).sum()) if labels is not None else None,
            "places": inputs["input_ids"].numel() if "input_ids" in inputs else None,
        }
        loss = step(self, model, inputs, *rest, **options)
        with open(os.environ["BENCH_STEPS"], "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "loss": float(loss), "done_at": time.time()}) + "\n")
        return loss

    trainer.training_step = training_step


def begin_alike(model: Any) -> None:
    """Give the adapter the weights in BENCH_ADAPTER. Raises KeyError where it is built otherwise."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(os.environ["BENCH_ADAPTER"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights.pop(name))
    if weights:
        raise KeyError(f"not in the model: {sorted(weights)[:3]}")


if os.environ.get("BENCH_STEPS"):
    sys.meta_path.insert(0, Finder())
