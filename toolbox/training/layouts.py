"""Which layout of batches a model takes: flattened where it is proven to keep rows apart, else padded."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from toolbox.i18n import _
from toolbox.runs import Reporter
from toolbox.training import attention, batches
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of the two layouts' logits, as a share of the largest logit: rounding.

Rows that see each other differ by far more.
"""


def choose(forward: Forward, samples: Sequence[Sample], reporter: Reporter) -> Forward:
    """`forward` with the flattened layout where the model passes the proof, else with padding, which is said aloud."""
    base = getattr(forward.model, "get_base_model", lambda: forward.model)()
    longest = max(len(sample.input_ids) for sample in samples)
    if takes_flattened(base) and attention.suits(base.config, longest):
        pair = sorted((sample for sample in samples if sample.teaches), key=lambda sample: sample.size)[:2]
        alone = torch.cat([_logits(forward, [sample]) for sample in pair])
        flattened, before = replace(forward, layout=batches.flatten), base.config._attn_implementation
        base.set_attn_implementation(attention.ROWS)
        if bool((_logits(flattened, pair) - alone).abs().max() <= TOLERANCE[forward.dtype] * alone.abs().max()):
            return flattened
        base.set_attn_implementation(before)
    reporter.phase(_("This model can't keep rows apart without padding, so batches are padded"))
    return forward


def takes_flattened(model: Any) -> bool:
    """Whether the model's forward takes positions, where logits are wanted, and arguments for its attention."""
    parameters = inspect.signature(model.forward).parameters
    passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return passes_on and {"position_ids", "logits_to_keep"} <= set(parameters)


def _logits(forward: Forward, samples: Sequence[Sample]) -> torch.Tensor:
    forward.model.eval()
    with torch.no_grad():
        logits = forward.logits(samples)[0].float()
    forward.model.train()
    return logits
