"""Which layout of batches a model takes: flattened without padding where it is proven to keep rows apart, else padded."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch

from toolbox.i18n import _
from toolbox.runs import Reporter
from toolbox.training import batches
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of two layouts' logits, as a share of the largest logit: rounding; rows that see each other differ by far more."""


def choose(forward: Forward, samples: Sequence[Sample], reporter: Reporter) -> Forward:
    """`forward` with the flattened layout where the model passes the proof, else with padding, which is said aloud."""
    flattened = replace(forward, layout=batches.flatten)
    if accepts_positions(forward.model) and _agree(flattened, forward, samples):
        return flattened
    reporter.phase(_("This model doesn't keep flattened rows apart: batches are padded"))
    return forward


def accepts_positions(model: torch.nn.Module) -> bool:
    """Whether the model's forward takes `position_ids` and `logits_to_keep`."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return {"position_ids", "logits_to_keep"} <= set(inspect.signature(inner.forward).parameters)


def _agree(flattened: Forward, forward: Forward, samples: Sequence[Sample]) -> bool:
    """Whether two rows in one flattened batch get the logits that each gets alone."""
    pair = sorted(samples, key=lambda sample: len(sample.input_ids))[:2]
    forward.model.eval()
    with torch.no_grad():
        together = flattened.logits(pair)[0].float()
        alone = torch.cat([forward.logits([sample])[0].float() for sample in pair])
    forward.model.train()
    return bool((together - alone).abs().max() <= TOLERANCE[forward.dtype] * alone.abs().max())
