"""A plugin for tests: memory that runs out as the variable PRESSURE says, in the model of a training or its optimizer.

PRESSURE: {"place": forward | backward | optimizer | evaluation, "tokens": 200} for micro-batches of more tokens;
{"place": …, "steps": [2, 5]}: at these steps, counted from 1, once each, however little is asked for.
"""

import json
import os
import weakref
from typing import Any

import torch

from toolbox.plugins import Callback, register

MODELS: list[Any] = []
"""A weak reference to the model of each attempt."""
KEPT: list[bool] = []
"""Whether any earlier one was still there when an attempt began."""
FIRED: set[tuple[str, int]] = set()
"""The wish and the step of each lack of memory that comes but once."""


class Now:
    """Where the training is."""

    step = 0
    largest = 0
    """Tokens of the largest micro-batch since the last optimizer step."""


def lacks(place: str, tokens: int) -> bool:
    said = os.environ.get("PRESSURE", "{}")
    wish, here = json.loads(said), (said, Now.step + 1)
    if place != wish.get("place") or tokens <= wish.get("tokens", 0):
        return False
    if "steps" not in wish:
        return True
    first = here[1] in wish["steps"] and here not in FIRED
    FIRED.add(here)
    return first


def run_out(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@register("callback", "pressure")
class Pressure(Callback):
    """Puts hooks into the model of each attempt."""

    def on_train_begin(self, model: Any, step: int, steps: int) -> None:
        KEPT.append(any(ref() is not None for ref in MODELS))
        MODELS.append(weakref.ref(model))
        Now.step = step
        model.register_forward_pre_hook(before, with_kwargs=True)
        model.register_forward_hook(after, with_kwargs=True)

    def on_step_end(self, step: int, metrics: dict[str, float]) -> None:
        Now.step = step


def before(model: Any, args: Any, options: dict[str, Any]) -> None:
    tokens = options["input_ids"].numel()
    Now.largest = max(Now.largest, tokens) if model.training else Now.largest
    if lacks("forward" if model.training else "evaluation", tokens):
        run_out()


def after(model: Any, args: Any, options: dict[str, Any], output: Any) -> None:
    if output.logits.requires_grad and lacks("backward", options["input_ids"].numel()):
        output.logits.register_hook(run_out)


@register("optimizer", "fragile")
def fragile(named_parameters: Any, plan: Any) -> torch.optim.Optimizer:
    """AdamW that has changed some weights already when memory runs out."""

    class Fragile(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            torn, Now.largest = lacks("optimizer", Now.largest), 0
            if torn:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].add_(1.0)
                run_out()
            super().step(closure)

    return Fragile([weight for _name, weight in named_parameters], lr=plan.training.learning_rate)
