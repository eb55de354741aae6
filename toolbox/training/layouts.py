"""Which layout of batches a model takes: flattened, and prompts shared, where it is proven to come out the same."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.runs import Reporter
from toolbox.training import attention, batches, trees
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of the two layouts' logits, as a share of the largest logit: rounding.

Rows that see each other differ by far more.
"""


def choose(forward: Forward, samples: Sequence[Sample], reporter: Reporter, longer_by: int = 0) -> Forward:
    """`forward` with the best layout whose logits are proven to be those of each sample alone; less is said aloud.

    `longer_by`: tokens that will be added to the samples. Raises InputError for a model that is not causal.
    """
    base, proof, alone = forward.base, _proof(samples), logits_alone(forward, samples)
    _refuse_looking_ahead(proof, alone, forward)
    longest = max(len(sample.input_ids) for sample in samples) + longer_by
    if may_flatten(base, longest):
        before = base.config._attn_implementation
        attention.attend_by(base, attention.TREES)
        with suppress(attention.NodesLost):
            for layout in (batches.flatten_shared, batches.flatten):
                flattened = replace(forward, layout=layout)
                if alike(_logits(flattened, proof), alone, forward.dtype):
                    if layout is batches.flatten:
                        reporter.phase(_("This model can't share a prompt among its answers, so each has its own"))
                    return flattened
        attention.attend_by(base, before)
    reporter.phase(_("This model can't keep rows apart without padding, so batches are padded"))
    return forward


def may_flatten(base: Any, longest: int) -> bool:
    """Whether a flattened batch of rows of up to `longest` tokens is worth the proof."""
    return takes_flattened(base) and not base._is_stateful and attention.suits(base.config, longest)


def _refuse_looking_ahead(proof: Sequence[Sample], alone: torch.Tensor, forward: Forward) -> None:
    """Raise InputError where logits depend on what follows: such a model, an encoder say, can't learn to write."""
    first, _second, third = alone.split([batches.label_tokens([sample]) for sample in proof])
    shared = trees.common([proof[0].input_ids, proof[2].input_ids])
    difference = (third[:shared] - first[:shared]).abs().max()
    if difference > TOLERANCE[forward.dtype] * first.abs().max():  # not so of no numbers, which are found out later
        raise InputError(
            _("{model} sees the words that it is to write next, so it can't be trained to write them.").format(
                model=type(forward.base).__name__
            ),
            _("Take a causal language model."),
        )


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
        attention.attend_by(base, "sdpa")
    try:
        yield
    finally:
        attention.attend_by(base, before)
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
