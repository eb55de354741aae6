"""Samples that begin alike, as trees: what they share is computed once for all of them. See batches.py."""

from collections.abc import Iterator, Sequence

import msgspec

from toolbox.training.rows import Sample

WORTH = 16
"""A beginning is shared where what follows is at most so many times as long: attention to it, from each branch, costs
more than the kernel for whole rows (b² against b²/2 for b tokens), and has to be paid by the tokens that are saved."""


class Forest(msgspec.Struct):
    """Nodes, each after its parent, and which of them each sample goes through.

    `nodes`: (the parent's place in the list or -1, tokens). `paths`: of each sample, from its root.
    """

    nodes: list[tuple[int, int]] = []
    paths: dict[int, list[int]] = {}

    @property
    def tokens(self) -> int:
        """What the model sees."""
        return sum(tokens for _parent, tokens in self.nodes)


def apart(samples: Sequence[Sample]) -> Forest:
    """A root for each sample."""
    places = range(len(samples))
    return Forest([(-1, sample.size) for sample in samples], {place: [place] for place in places})


def grow(samples: Sequence[Sample]) -> Forest:
    """Both answers of a pair after their prompt, any number of answers to one, all rows after one system prompt."""
    return branching([sample.input_ids for sample in samples])


def branching(rows: Sequence[Sequence[int]]) -> Forest:
    """The trees of rows of tokens."""
    forest = Forest()
    for members in _by_token(rows, range(len(rows)), 0):
        _branch(forest, rows, members, 0, [])
    return forest


def _branch(forest: Forest, rows: Sequence[Sequence[int]], members: list[int], begin: int, path: list[int]) -> None:
    """Add what `members`, alike before `begin` and right after it, go on with there, behind the nodes of `path`."""
    end = common([rows[member] for member in members])
    if len(members) == 1 or WORTH * (end - begin) >= max(len(rows[member]) for member in members) - end:
        forest.nodes.append((path[-1] if path else -1, end - begin))
        begin, path = end, [*path, len(forest.nodes) - 1]
    for member in members:
        if len(rows[member]) == begin:
            forest.paths[member] = path
    longer = [member for member in members if len(rows[member]) > begin]
    for group in _by_token(rows, longer, end):
        _branch(forest, rows, group, begin, path)


def _by_token(rows: Sequence[Sequence[int]], members: Sequence[int], at: int) -> Iterator[list[int]]:
    """`members` by their token at that place; those that have none there, each by itself."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for member in members:
        key = (rows[member][at],) if len(rows[member]) > at else (member, -1)
        groups.setdefault(key, []).append(member)
    return iter(groups.values())


def common(sequences: Sequence[Sequence[int]]) -> int:
    """The length of what all `sequences` begin with: of all of them, the first and the last in order differ first."""
    first, last = min(sequences), max(sequences)  # type: ignore[type-var]
    differ = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differ, len(first))


def batched(samples: Sequence[Sample], most: int) -> Iterator[list[int]]:
    """The places of all samples, those of a row together and rows by length, with `most` tokens at once at most; a row
    that has more is alone."""
    rows: dict[tuple[str, int], list[int]] = {}
    for place, sample in enumerate(samples):
        rows.setdefault((sample.dataset, sample.number), []).append(place)
    sized = sorted((grow([samples[place] for place in places]).tokens, places) for places in rows.values())
    batch: list[int] = []
    size = 0
    for tokens, places in sized:
        if batch and size + tokens > most:
            yield batch
            batch, size = [], 0
        batch += places
        size += tokens
    if batch:
        yield batch
