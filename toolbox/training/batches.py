"""Batches: which rows go together, and how they are laid out for the model."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import torch

from toolbox.recipe import Training
from toolbox.training import trees
from toolbox.training.packing import unpacked
from toolbox.training.rows import IGNORED, Sample


class Batch(msgspec.Struct):
    """What a causal model's forward takes (`inputs`), and what is to come out.

    `targets`: the token ids to predict, sample by sample, [labels]. `ends`: the place of each sample's last token,
    [samples]. `kept`: the places whose logits count, [rows, tokens]; None where the model makes no others.
    """

    inputs: dict[str, Any]
    targets: torch.Tensor
    ends: torch.Tensor
    kept: torch.Tensor | None = None

    def to(self, device: str) -> "Batch":
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()
        }
        kept = None if self.kept is None else self.kept.to(device)
        return Batch(moved, self.targets.to(device), self.ends.to(device), kept)


def epoch_steps(rows: int, training: Training) -> int:
    """Optimizer steps in an epoch; the last one may be smaller."""
    return math.ceil(rows / _effective(training))


def of_step(samples: Sequence[Any], step: int, training: Training, seed: int) -> list[list[Any]]:
    """The micro-batches of optimizer step `step`, from 0: a pure function, so resuming needs nothing else.

    `samples` are items, or packs of them; micro-batches are of items. An epoch is a fair shuffle; only within a step
    are rows ordered by length, so that micro-batches are even.
    """
    epoch, place = divmod(step, epoch_steps(len(samples), training))
    effective, micro = _effective(training), training.per_device_train_batch_size
    order = _order(len(samples), seed, epoch)[place * effective : (place + 1) * effective]
    chosen = [samples[int(index)] for index in order]
    chosen.sort(key=lambda sample: sample.size)
    return [unpacked(chosen[begin : begin + micro]) for begin in range(0, len(chosen), micro)]


def of_steps(rows: int, steps: int, training: Training, seed: int) -> np.ndarray:
    """Which of the rows the first `steps` optimizer steps see, each once."""
    if steps >= epoch_steps(rows, training):
        return np.arange(rows)
    return _order(rows, seed, epoch=0)[: steps * _effective(training)]


def largest(sizes: np.ndarray, steps: int, training: Training, seed: int, count: int = 4) -> list[tuple[int, int]]:
    """(step, place in it) of the `count` micro-batches with the most tokens that the first `steps` steps see.

    `sizes`: tokens of each of the samples that `of_step` takes, [rows].
    """
    in_epoch, effective = epoch_steps(len(sizes), training), _effective(training)
    found: list[tuple[int, int, int]] = []
    for epoch in range(math.ceil(steps / in_epoch)):
        rows = np.full(in_epoch * effective, np.iinfo(np.int64).max)
        rows[: len(sizes)] = sizes[_order(len(sizes), seed, epoch)]
        rows = np.sort(rows.reshape(in_epoch, effective), axis=1)
        rows[rows == np.iinfo(np.int64).max] = 0  # the last step of an epoch may be smaller
        tokens = rows.reshape(in_epoch, -1, training.per_device_train_batch_size).sum(2)[: steps - epoch * in_epoch]
        for best in np.argsort(-tokens, axis=None)[:count]:
            step, place = divmod(int(best), tokens.shape[1])
            found.append((int(tokens[step, place]), epoch * in_epoch + step, place))
    return [(step, place) for _tokens, step, place in sorted(found, reverse=True)[:count]]


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffle of an epoch, [rows]; kept from step to step."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def _effective(training: Training) -> int:
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def flatten(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """All samples in one row without padding, each by itself: `input_ids` and `position_ids` [1, tokens]."""
    return _in_one_row(samples, trees.apart(samples))


def flatten_shared(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """As `flatten`, but what samples begin with alike is there once: a pair's prompt, a system prompt.

    A causal model makes the same of it for each of them, so losses and gradients stay what they are; only dropout
    draws once where it drew for each.
    """
    return _in_one_row(samples, trees.grow(samples))


def _in_one_row(samples: Sequence[Sample], forest: trees.Forest) -> Batch:
    ids, positions, places = lay_out([sample.input_ids for sample in samples], forest)
    kept = [
        place
        for sample, own in zip(samples, places, strict=True)
        for place, mark in zip(own, _kept(sample), strict=True)
        if mark
    ]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "logits_to_keep": torch.tensor(kept),
        "nodes": tuple(forest.nodes),
    }
    return Batch(inputs, _targets(samples), torch.tensor([own[-1] for own in places]))


def lay_out(rows: Sequence[Sequence[int]], forest: trees.Forest) -> tuple[list[int], list[int], list[list[int]]]:
    """(ids, positions, the places of each row's tokens) of rows in one, node by node; positions go on from the parent.

    attention.py takes heed of `nodes`.
    """
    begins = [0, *accumulate(tokens for _parent, tokens in forest.nodes)]
    ids, positions = [0] * begins[-1], [0] * begins[-1]
    places = []
    for member, row in enumerate(rows):
        own = [place for node in forest.paths[member] for place in range(begins[node], begins[node + 1])]
        for position, (place, token) in enumerate(zip(own, row, strict=True)):
            ids[place], positions[place] = token, position
        places.append(own)
    return ids, positions, places


def pad(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """A row a sample, filled up on the right: `input_ids` and `attention_mask` [samples, longest]."""
    longest = max(len(sample.input_ids) for sample in samples)
    pairs = [(sample, longest - len(sample.input_ids)) for sample in samples]
    inputs = {
        "input_ids": torch.tensor([sample.input_ids + [pad_token_id] * n for sample, n in pairs]),
        "attention_mask": torch.tensor([[1] * len(sample.input_ids) + [0] * n for sample, n in pairs]),
    }
    ends = torch.tensor([sample.size - 1 for sample in samples])
    return Batch(inputs, _targets(samples), ends, torch.tensor([_kept(sample) + [False] * n for sample, n in pairs]))


def at_ends(batch: Batch) -> Batch:
    """`batch` with logits at the last token of each sample, and only there."""
    if batch.kept is None:
        return msgspec.structs.replace(batch, inputs={**batch.inputs, "logits_to_keep": batch.ends})
    kept = torch.zeros_like(batch.kept)
    kept[torch.arange(len(kept)), batch.ends] = True
    return msgspec.structs.replace(batch, kept=kept)


Layout = Callable[[Sequence[Sample], int], Batch]


def _kept(sample: Sample) -> list[bool]:
    """Whether the logits of each position are needed: where the next token has a label."""
    return [label != IGNORED for label in sample.labels[1:]] + [False]


def _targets(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([label for sample in samples for label in sample.labels[1:] if label != IGNORED])


def label_tokens(samples: Sequence[Sample]) -> int:
    return sum(label != IGNORED for sample in samples for label in sample.labels[1:])
