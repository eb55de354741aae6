"""Rows as a stage encoded them, in a folder of the run: written once in constant memory, read one at a time by number.

`finetune` fills it before the first step, and a resumed run finds it there. `items.msgpack` holds the items back to
back, `index.safetensors` where each begins and what choosing rows needs of it: 28 bytes an item, which memory holds.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, overload

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from toolbox import files
from toolbox.training.rows import Item

ITEMS, INDEX, MARKER = "items.msgpack", "index.safetensors", "complete.json"


class Facts(msgspec.Struct, kw_only=True):
    """What is told of the rows once they are encoded."""

    cut: int = 0
    dropped: int = 0
    split: int = 0
    """Documents that became several pieces."""
    written_out: dict[str, int] = {}
    """Rows of each data set whose tools were written as text."""


class Marker(msgspec.Struct, kw_only=True):
    """Written last: whose rows these are, and the SHA-256 of both files."""

    fingerprint: str
    hashes: dict[str, str]
    facts: Facts


class Index(msgspec.Struct):
    """Of each item, [items]: where it ends in the file, its tokens, those of its longest sequence, its content's hash,
    and how often an epoch takes it, 0 where it is held out."""

    ends: np.ndarray
    sizes: np.ndarray
    longest: np.ndarray
    keys: np.ndarray
    repeats: np.ndarray


CODES = {"ends": "q", "sizes": "i", "longest": "i", "keys": "Q", "repeats": "i"}
"""The types of the index's columns, as `array` names them."""


class Packed(msgspec.Struct, frozen=True):
    """Some items as they lie in the file, and the index's columns but for `repeats`; `ends` from 0."""

    data: bytes
    columns: dict[str, Sequence[int]]


def pack(items: Sequence[Item], kind: type) -> Packed:
    """Raises TypeError where the stage makes other items than it says."""
    packed, columns = bytearray(), {name: array(code) for name, code in CODES.items() if name != "repeats"}
    for item in items:
        if type(item) is not kind:
            raise TypeError(f"the stage makes {type(item).__name__}, and says {kind.__name__}")
        packed += msgspec.msgpack.encode(item)
        columns["ends"].append(len(packed))
        columns["sizes"].append(item.size)
        columns["longest"].append(max(row.size for row in item.sequences))
        columns["keys"].append(key(item.sequences[0].input_ids))
    return Packed(bytes(packed), dict(columns))


class Writer:
    """Appends items to a store in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / ITEMS).open("wb")
        self._columns = {name: array(code) for name, code in CODES.items()}

    def add(self, packed: Packed, repeats: int) -> None:
        begin = self._file.tell()
        self._file.write(packed.data)
        ends = packed.columns["ends"]
        new = {**packed.columns, "ends": [begin + end for end in ends], "repeats": [repeats] * len(ends)}
        for name, values in new.items():
            self._columns[name].extend(values)

    def close(self, fingerprint: str, facts: Facts) -> None:
        self._file.close()
        columns = {name: np.frombuffer(values, dtype=values.typecode) for name, values in self._columns.items()}
        save_file(columns, self._folder / INDEX)
        hashes = {name: files.sha256(self._folder / name) for name in (ITEMS, INDEX)}
        files.write_json(self._folder / MARKER, Marker(fingerprint=fingerprint, hashes=hashes, facts=facts))


def key(ids: Sequence[int]) -> int:
    """64 bits of a hash of token ids: the chance that two of ten million rows share one is 3 in a million."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(ids), digest_size=8).digest(), "little")


def write(folder: Path, fingerprint: str, fill: Callable[[Writer], Facts]) -> None:
    """Make the store `folder` from what `fill` adds; there is none until all is written. What stood there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    with files.whole_folder(folder) as scratch:
        writer = Writer(scratch)
        writer.close(fingerprint, fill(writer))


def read(folder: Path, kind: type, fingerprint: str) -> "Store | None":
    """The store that `write` made for the same fingerprint; None where it is absent, torn, or of something else.

    Raises InputError where it belongs to another user of the machine.
    """
    if not folder.exists():
        return None
    for path in (folder, *folder.iterdir()):
        files.refuse_foreign(path)
    try:
        marker = msgspec.json.decode((folder / MARKER).read_bytes(), type=Marker)
        if marker.fingerprint != fingerprint or any(
            files.sha256(folder / name) != marker.hashes.get(name) for name in (ITEMS, INDEX)
        ):
            return None
        return Store(folder, kind, marker, Index(**load_file(folder / INDEX)))
    except (OSError, msgspec.MsgspecError, SafetensorError, TypeError):
        return None


class Store:
    """The items of a training, by their number in the file."""

    def __init__(self, folder: Path, kind: type, marker: Marker, index: Index) -> None:
        self.folder, self.index = folder, index
        self.facts, self.digest = marker.facts, marker.hashes[ITEMS]
        self._file = os.open(folder / ITEMS, os.O_RDONLY)
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode

    def __len__(self) -> int:
        return len(self.index.ends)

    def item(self, place: int) -> Any:
        """Read, not mapped: pages of a map would count as this process's memory until the system takes them back."""
        begin = int(self.index.ends[place - 1]) if place else 0
        return self._decode(os.pread(self._file, int(self.index.ends[place]) - begin, begin))

    def close(self) -> None:
        os.close(self._file)


class Items(Sequence[Any]):
    """Some items of a store in some order, each read when it is asked for; a slice is a further such selection."""

    def __init__(self, store: Store, places: np.ndarray) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return type(self)(self.store, self.places[place])
        return self.store.item(int(self.places[place]))

    def __iter__(self) -> Iterator[Any]:
        return (self.store.item(int(place)) for place in self.places)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each, [items]."""
        return self.store.index.sizes[self.places]

    def members(self, places: np.ndarray) -> np.ndarray:
        """Which items are at these places: those themselves, as a pack would be several."""
        return places

    def by_size(self) -> "Items":
        """The same, short ones first."""
        return Items(self.store, self.places[np.argsort(self.sizes, kind="stable")])

    def in_parts(self, size: int) -> list["Items"]:
        """Selections of `size` items each, the last of what is left."""
        bounds = [*range(0, len(self), size), len(self)]
        return [self[begin:end] for begin, end in pairwise(bounds)]
