"""The probe: `finetune` takes the run's heaviest micro-batch forward and back before the first step, and forgets it.

What does not fit fails in the first seconds so, not in the third hour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from toolbox.plan import FinetunePlan
from toolbox.recipe import Training
from toolbox.training import batches, seeds
from toolbox.training.meter import Meter
from toolbox.training.step import Forward

if TYPE_CHECKING:
    from toolbox.training.stages import Stage

WORTH = 0.5
"""A probe takes about as long as a micro-batch. It is left out where the plan says that the peak is below this share of
what is free: no memory model is wrong by a factor of two."""


def worth(plan: FinetunePlan) -> bool:
    """Whether it may come out that the run does not fit."""
    return plan.estimate.peak_bytes > WORTH * plan.estimate.device_bytes


def heaviest(samples: Any, steps: int, training: Training, seed: int, forward: Forward) -> list[Any]:
    """The items of the micro-batch that computes the most tokens, of all that `steps` steps see.

    `samples`: Items, or Packs of them. The largest few by their sizes are laid out: what they share counts once.
    """
    found = batches.largest(samples.sizes, steps, training, seed)
    return max(
        (batches.of_step(samples, step, training, seed)[place] for step, place in found),
        key=lambda items: _tokens(forward, items),
    )


def _tokens(forward: Forward, items: Sequence[Any]) -> int:
    sequences = [sequence for item in items for sequence in item.sequences]
    return int(forward.layout(sequences, forward.pad_token_id).inputs["input_ids"].numel())


def rehearse(forward: Forward, stage: "Stage", items: Sequence[Any], plan: FinetunePlan, meter: Meter) -> int:
    """The peak in bytes, as `meter` counts it, of a step whose micro-batches are `items` at most.

    No weight, gradient, state of an optimizer or generator is another afterwards.
    """
    drawn = seeds.snapshot(forward.device)
    try:
        states = _states(plan, forward.device)
        if plan.training.gradient_accumulation_steps > 1:  # those of the micro-batches before it are there by then
            for weight in forward.model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        outcome = stage.loss(forward, items, stage.totals(forward, [items]))
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        del states, outcome
        return meter.peak_bytes()
    finally:
        forward.model.zero_grad(set_to_none=True)
        seeds.restore(drawn, forward.device)


def _states(plan: FinetunePlan, device: str) -> torch.Tensor:
    """As much memory as the optimizer's state will take from the second step on, written to; a paged one gives way."""
    paged = plan.training.optim.startswith("paged")
    predicted = 0 if paged else plan.estimate.parts_bytes.get("optimizer", 0)
    return torch.ones(predicted, dtype=torch.uint8, device=device)
