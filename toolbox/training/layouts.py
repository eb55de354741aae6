"""Which layout of batches a model takes: flattened, and prompts shared, where it is proven to come out the same."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def choose(forward: Forward, samples: Sequence[Sample], reporter: Reporter, longer_by: int = 0) -> Forward:
    """`forward` with the best layout whose logits are proven to be those of each sample alone; less is said aloud.

    `longer_by`: tokens that will be added to the samples.
    """
    base = forward.base
    longest = max(len(sample.input_ids) for sample in samples) + longer_by
    if takes_flattened(base) and attention.suits(base.config, longest):
        proof, before, alone = _proof(samples), base.config._attn_implementation, logits_alone(forward, samples)
        base.set_attn_implementation(attention.TREES)
        for layout in (batches.flatten_shared, batches.flatten):
            flattened = replace(forward, layout=layout)
            if alike(_logits(flattened, proof), alone, forward.dtype):
                if layout is batches.flatten:
                    reporter.phase(_("This model can't share a prompt among its answers, so each has its own"))
                return flattened
        base.set_attn_implementation(before)
    reporter.phase(_("This model can't keep rows apart without padding, so batches are padded"))
    return forward


def logits_alone(forward: Forward, samples: Sequence[Sample]) -> torch.Tensor:
    """All logits of a few short sequences made from `samples`, each by itself, [tokens, vocabulary]."""
    return torch.cat([_logits(forward, [sample]) for sample in _proof(samples)])


def alike(logits: torch.Tensor, expected: torch.Tensor, dtype: str) -> bool:
    """Whether both differ by rounding only."""
    return bool((logits - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max())


def _proof(samples: Sequence[Sample]) -> list[Sample]:
    """The two shortest samples, and a third that begins as the first and goes on as the second.

    Every token has a label: the proof is on all logits.
    """
    first, second = sorted(samples, key=lambda sample: sample.size)[:2]
    ids = first.input_ids[: (first.size + 1) // 2] + second.input_ids[second.size // 2 :]
    return [
        Sample(name, number, ids, ids)
        for name, number, ids in (("", 1, first.input_ids), ("", 2, second.input_ids), ("", 1, ids))
    ]


@contextmanager
def generating(forward: Forward) -> Iterator[None]:
    """While entered, the model is in evaluation mode and takes padded batches with a cache, as generation needs."""
    model, base = forward.model, forward.base
    before, training = base.config._attn_implementation, model.training
    model.eval()
    if before == attention.TREES:
        base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        model.train(training)


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
