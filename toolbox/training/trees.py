"""Samples that begin alike, as trees: the trunk they share is computed once for all of them. See batches.py."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import msgspec

from toolbox.training.rows import Sample


class Tree(msgspec.Struct, frozen=True):
    """Some samples, by their places in a batch, and how many tokens they all begin with alike."""

    members: tuple[int, ...]
    trunk: int


def alone(samples: Sequence[Sample]) -> list[Tree]:
    """A tree for each sample."""
    return [Tree((place,), sample.size) for place, sample in enumerate(samples)]


def grow(samples: Sequence[Sample]) -> list[Tree]:
    """A tree for each row of the data: both answers of a pair, or any number of answers to one prompt.

    Samples of one row that begin with different tokens stay alone.
    """
    groups: dict[tuple[str, int, int], list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault((sample.dataset, sample.number, sample.input_ids[0]), []).append(place)
    return [Tree(tuple(group), common([samples[place].input_ids for place in group])) for group in groups.values()]


def common(sequences: Sequence[Sequence[int]]) -> int:
    """The length of what all `sequences` begin with."""
    return sum(1 for _same in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def tokens(samples: Sequence[Sample], tree: Tree) -> int:
    """What the model sees of a tree: its trunk once, and each branch."""
    return tree.trunk + sum(samples[member].size - tree.trunk for member in tree.members)


def batched(samples: Sequence[Sample], grown: Sequence[Tree], most: int) -> Iterator[list[int]]:
    """The members of neighbouring trees that have `most` tokens together at most; a larger tree is alone."""
    batch: list[int] = []
    size = 0
    for tree in grown:
        if batch and size + tokens(samples, tree) > most:
            yield batch
            batch, size = [], 0
        batch += tree.members
        size += tokens(samples, tree)
    if batch:
        yield batch
