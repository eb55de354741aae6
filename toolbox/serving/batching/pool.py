"""Keys and values of all rows: one pool of tokens a layer, a region of it for each row; alike beginnings are copied."""

from collections.abc import Sequence

import msgspec
import torch


class Region(msgspec.Struct, eq=False):
    """Places `begin` to `end` of the pool; the first `len(ids)` of them hold those tokens' keys and values."""

    begin: int
    end: int
    adapter: str
    ids: list[int] = []


class Pool:
    """Regions of `tokens` places, of which up to `kept` hold what rows left behind, for rows that begin alike.

    Memory is a layer's when it is first written, and on a processor a page's when it is touched: what no row ever
    needed costs nothing.
    """

    def __init__(self, tokens: int, kept: int) -> None:
        self.tokens, self._most_kept = tokens, kept
        self._live: list[Region] = []
        self._kept: list[Region] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        """What a token takes in all layers that were written so far."""
        states = (states for layer in self._layers.values() for states in layer)
        return sum(state[0].numel() * state.element_size() for state in states)

    def take(self, ids: Sequence[int], need: int, adapter: str) -> Region | None:
        """A region of `need` places that holds the beginning of `ids`, as far as another has it; None: no room now.

        The last of `ids` is never among them: its logits are wanted.
        """
        source, shared = self._alike(ids, adapter)
        begin = self._gap(need)
        while begin is None and self._kept:
            oldest = next((region for region in self._kept if region is not source), self._kept[0])
            self._kept.remove(oldest)
            if oldest is source:
                source, shared = None, 0
            begin = self._gap(need)
        if begin is None:
            return None
        region = Region(begin, begin + need, adapter, list(ids[:shared]))
        if source and shared:
            self._copy(source.begin, begin, shared)
            if source in self._kept and shared == len(source.ids):
                self._kept.remove(source)
        self._live.append(region)
        return region

    def leave(self, region: Region, keep: bool = True) -> None:
        """Give a row's region back; what it holds is kept for others while there is room."""
        self._live.remove(region)
        if keep and region.ids:
            region.end = region.begin + len(region.ids)
            self._kept.append(region)
        while sum(region.end - region.begin for region in self._kept) > self._most_kept:
            del self._kept[0]

    def put(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values [places, heads, head_dim] of a layer, once those of `places` [tokens] are written."""
        if layer not in self._layers:
            self._layers[layer] = (
                key.new_empty(self.tokens, *key.shape[1:]), value.new_empty(self.tokens, *value.shape[1:])
            )  # fmt: skip
        keys, values = self._layers[layer]
        keys.index_copy_(0, places, key)
        values.index_copy_(0, places, value)
        return keys, values

    def _alike(self, ids: Sequence[int], adapter: str) -> tuple[Region | None, int]:
        """The region with the longest common beginning, the newest of several, and how long that is."""
        found, most = None, 0
        for region in (*self._kept, *self._live):
            shared = _common(region.ids, ids) if region.adapter == adapter else 0
            if shared >= most and shared:
                found, most = region, shared
        return found, min(most, len(ids) - 1)

    def _gap(self, need: int) -> int | None:
        """Where the first `need` free places in a row begin: the lowest, so that few pages are ever touched."""
        begin = 0
        for region in sorted((*self._live, *self._kept), key=lambda region: region.begin):
            if region.begin - begin >= need:
                return begin
            begin = region.end
        return begin if self.tokens - begin >= need else None

    def _copy(self, source: int, target: int, count: int) -> None:
        for states in (states for layer in self._layers.values() for states in layer):
            states[target : target + count] = states[source : source + count]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
