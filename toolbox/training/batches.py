"""Batches: which rows go together, and how they are laid out for the model."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import msgspec
import torch

from toolbox.recipe import Training
from toolbox.training.rows import IGNORED, Item, Sample

SomeItem = TypeVar("SomeItem", bound=Item)


class Batch(msgspec.Struct):
    """What a causal model's forward takes (`inputs`), and what is to come out.

    `targets`: the token ids to predict, in the order of their places, [labels]. `kept`: the places whose logits count,
    [rows, tokens]; None where the model makes no others.
    """

    inputs: dict[str, Any]
    targets: torch.Tensor
    kept: torch.Tensor | None = None

    def to(self, device: str) -> "Batch":
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()
        }
        return Batch(moved, self.targets.to(device), None if self.kept is None else self.kept.to(device))


def epoch_steps(rows: int, training: Training) -> int:
    """Optimizer steps in an epoch; the last one may be smaller."""
    return math.ceil(rows / _effective(training))


def of_step(samples: Sequence[SomeItem], step: int, training: Training, seed: int) -> list[list[SomeItem]]:
    """The micro-batches of optimizer step `step`, from 0: a pure function, so resuming needs nothing else.

    An epoch is a fair shuffle; only within a step are rows ordered by length, so that micro-batches are even.
    """
    epoch, place = divmod(step, epoch_steps(len(samples), training))
    order = list(range(len(samples)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    effective, micro = _effective(training), training.per_device_train_batch_size
    chosen = [samples[index] for index in order[place * effective : (place + 1) * effective]]
    chosen.sort(key=lambda sample: sample.size)
    return [chosen[begin : begin + micro] for begin in range(0, len(chosen), micro)]


def _effective(training: Training) -> int:
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def flatten(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """All samples in one row without padding: `input_ids` and `position_ids` [1, tokens], positions restarting.

    `row_lengths` keeps the attention within each sample (attention.py).
    """
    marks = [mark for sample in samples for mark in _kept(sample)]
    lengths = [len(sample.input_ids) for sample in samples]
    inputs = {
        "input_ids": torch.tensor([[token for sample in samples for token in sample.input_ids]]),
        "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
        "logits_to_keep": torch.tensor([place for place, mark in enumerate(marks) if mark]),
        "row_lengths": lengths,
    }
    return Batch(inputs, _targets(samples))


def pad(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """A row a sample, filled up on the right: `input_ids` and `attention_mask` [samples, longest]."""
    longest = max(len(sample.input_ids) for sample in samples)
    pairs = [(sample, longest - len(sample.input_ids)) for sample in samples]
    inputs = {
        "input_ids": torch.tensor([sample.input_ids + [pad_token_id] * n for sample, n in pairs]),
        "attention_mask": torch.tensor([[1] * len(sample.input_ids) + [0] * n for sample, n in pairs]),
    }
    return Batch(inputs, _targets(samples), torch.tensor([_kept(sample) + [False] * n for sample, n in pairs]))


def at_ends(batch: Batch) -> Batch:
    """`batch` with logits at the last token of each sample, and only there."""
    if "row_lengths" in batch.inputs:
        ends = torch.tensor(list(accumulate(batch.inputs["row_lengths"]))) - 1
        return Batch({**batch.inputs, "logits_to_keep": ends}, batch.targets)
    mask = batch.inputs["attention_mask"]
    return Batch(batch.inputs, batch.targets, mask.bool() & (mask.cumsum(1) == mask.sum(1, keepdim=True)))


Layout = Callable[[Sequence[Sample], int], Batch]


def _kept(sample: Sample) -> list[bool]:
    """Whether the logits of each position are needed: where the next token has a label."""
    return [label != IGNORED for label in sample.labels[1:]] + [False]


def _targets(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([label for sample in samples for label in sample.labels[1:] if label != IGNORED])


def label_tokens(samples: Sequence[Sample]) -> int:
    return sum(label != IGNORED for sample in samples for label in sample.labels[1:])
