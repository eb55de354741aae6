"""Packs: rows that together fill `max_length` tokens and don't see each other. `finetune --packing`."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from toolbox.training.rows import Item
from toolbox.training.store import Items


class Pack(msgspec.Struct, frozen=True):
    """Some items in the place of one."""

    items: list[Any]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


class Packs(Sequence[Pack]):
    """All of `items` in packs of at most `room` tokens, which every item has to fit.

    Best-fit decreasing, which wastes the least of the simple rules (arXiv:2404.10830, section 3.1): long items first,
    each into the fullest pack that still has room. No item is cut, and each is in one pack.
    """

    def __init__(self, items: Items, room: int) -> None:
        packs = _fit(items.sizes, room)
        self._items, self._order = items, np.argsort(packs, kind="stable")
        self._bounds = np.append(0, np.cumsum(np.bincount(packs)))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, place: Any) -> Any:
        return Pack([self._items[int(member)] for member in self.members(np.array([place]))])

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each pack, [packs]."""
        return np.add.reduceat(self._items.sizes[self._order], self._bounds[:-1])

    def members(self, places: np.ndarray) -> np.ndarray:
        """Which items are in these packs."""
        return np.concatenate([self._order[self._bounds[place] : self._bounds[place + 1]] for place in places])


def _fit(sizes: np.ndarray, room: int) -> np.ndarray:
    """The pack of each item, [items]. The packs with some room left are found by a bit for each amount."""
    packs = np.empty(len(sizes), dtype=np.int32)
    with_left: list[list[int]] = [[] for _left in range(room + 1)]
    known, count = 0, 0
    for item in np.argsort(-sizes, kind="stable"):
        size = int(sizes[item])
        fitting = known >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            pack = with_left[left].pop()
            known ^= 0 if with_left[left] else 1 << left
        else:
            left, pack, count = room, count, count + 1
        packs[item] = pack
        with_left[left - size].append(pack)
        known |= 1 << (left - size)
    return packs


def unpacked(units: Sequence[Item | Pack]) -> list[Any]:
    """The items of units that are items or packs of them."""
    return [item for unit in units for item in (unit.items if isinstance(unit, Pack) else [unit])]
