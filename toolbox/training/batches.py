"""Batches: which rows go together, and how they are laid out for the model."""

import math
import random
from collections.abc import Callable, Sequence

import torch

from toolbox.recipe import Training
from toolbox.training.rows import IGNORED, Sample

Batch = dict[str, torch.Tensor]
"""The keyword arguments of a causal model's forward; and `targets`, the token ids to predict, in the order of their places [labels]."""


def epoch_steps(rows: int, training: Training) -> int:
    """Optimizer steps in an epoch; the last one may be smaller."""
    return math.ceil(rows / _effective(training))


def of_step(samples: Sequence[Sample], step: int, training: Training, seed: int) -> list[list[Sample]]:
    """The micro-batches of optimizer step `step` (from 0): a pure function, so that a resumed run needs no other state.

    An epoch is a fair shuffle of its own; only within a step are rows ordered by length, so that micro-batches are even.
    """
    epoch, place = divmod(step, epoch_steps(len(samples), training))
    order = list(range(len(samples)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    effective, micro = _effective(training), training.per_device_train_batch_size
    chosen = [samples[index] for index in order[place * effective : (place + 1) * effective]]
    chosen.sort(key=lambda sample: len(sample.input_ids))
    return [chosen[begin : begin + micro] for begin in range(0, len(chosen), micro)]


def _effective(training: Training) -> int:
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def flatten(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """All samples in one row without padding: `input_ids` and `position_ids` [1, tokens].

    Attention is kept within each sample by positions that restart, no attention mask and no cache
    (transformers.masking_utils.find_packed_sequence_indices).
    """
    ids = [token for sample in samples for token in sample.input_ids]
    positions = [place for sample in samples for place in range(len(sample.input_ids))]
    kept = [place for place, mark in enumerate(mark for sample in samples for mark in _kept(sample)) if mark]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "logits_to_keep": torch.tensor(kept),
        "targets": _targets(samples),
    }


def pad(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """A row a sample, filled up on the right: `input_ids`, `attention_mask`, and `kept` (whose logits count) [samples, longest]."""
    longest = max(len(sample.input_ids) for sample in samples)
    fill = [longest - len(sample.input_ids) for sample in samples]
    pairs = list(zip(samples, fill, strict=True))
    return {
        "input_ids": torch.tensor([sample.input_ids + [pad_token_id] * n for sample, n in pairs]),
        "attention_mask": torch.tensor([[1] * len(sample.input_ids) + [0] * n for sample, n in pairs]),
        "kept": torch.tensor([_kept(sample) + [False] * n for sample, n in pairs]),
        "targets": _targets(samples),
    }


Layout = Callable[[Sequence[Sample], int], Batch]


def _kept(sample: Sample) -> list[bool]:
    """Whether the logits of each position are needed: where the next token has a label."""
    return [label != IGNORED for label in sample.labels[1:]] + [False]


def _targets(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([label for sample in samples for label in sample.labels[1:] if label != IGNORED])


def label_tokens(samples: Sequence[Sample]) -> int:
    return sum(label != IGNORED for sample in samples for label in sample.labels[1:])
