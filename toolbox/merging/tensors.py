"""Safetensors files read and written a tensor at a time, hashed on the way: memory holds a tensor, never a file."""

import errno
import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from toolbox import model_files
from toolbox.errors import CorruptError
from toolbox.i18n import _

CHUNK, BLOCK = 1 << 20, 8 << 20
"""Bytes read and hashed at a time, so that they are in the processor's cache; bytes written at a time."""
TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}


class Entry(msgspec.Struct, frozen=True):
    """What a tensor is, before its numbers are known."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Reader:
    """A file's tensors, in the order they lie in it.

    Read once each in that order, all of the file has been hashed. Raises CorruptError where the file is torn, has
    holes, or is of types unknown here.
    """

    def __init__(self, path: Path) -> None:
        found = model_files.header(path)
        self._path, self._offsets = path, {name: tensor.data_offsets[0] for name, tensor in found.items()}
        names = sorted(found, key=lambda name: found[name].data_offsets)
        try:
            self.entries = {name: Entry(TYPES[found[name].dtype], tuple(found[name].shape)) for name in names}
        except KeyError as error:
            raise self._torn() from error
        self._file = path.open("rb")
        head = self._file.read(8)
        self._begin = 8 + int.from_bytes(head, "little")
        self._digest = hashlib.sha256(head + self._file.read(self._begin - 8))
        if self._begin + sum(entry.nbytes for entry in self.entries.values()) != path.stat().st_size:
            raise self._torn()
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def close(self) -> None:
        self._file.close()

    def next(self, name: str) -> torch.Tensor:
        """The tensor whose turn it is; its memory is taken again for the next one."""
        entry = self.entries[name]
        if self._buffer.numel() < entry.nbytes:
            self._buffer = torch.empty(max(known.nbytes for known in self.entries.values()), dtype=torch.uint8)
        return self._read(name, self._buffer[: entry.nbytes], hashed=True)

    def release(self) -> None:
        """Give back the memory that `next` works in."""
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def get(self, name: str) -> torch.Tensor:
        """Any tensor at any time, in memory of its own."""
        return self._read(name, torch.empty(self.entries[name].nbytes, dtype=torch.uint8), hashed=False)

    def _read(self, name: str, into: torch.Tensor, hashed: bool) -> torch.Tensor:
        view = into.numpy().data
        self._file.seek(self._begin + self._offsets[name])
        for begin in range(0, len(view), CHUNK):
            piece = view[begin : begin + CHUNK]
            if self._file.readinto(piece) != len(piece):
                raise self._torn()
            if hashed:
                self._digest.update(piece)
        entry = self.entries[name]
        return into.view(entry.dtype).view(entry.shape)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _torn(self) -> CorruptError:
        return CorruptError(
            _("{path} is truncated or torn.").format(path=self._path),
            _("Delete that file and fetch the model again."),
        )


class Writer:
    """A new file, whose tensors are given in the order of `entries`; to be closed.

    It is written past the page cache where the file system can: nobody reads these gigabytes soon, and copying them
    into the cache was a third of a merge's CPU time.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.nbytes = 0
        for name, entry in entries.items():
            ends = [self.nbytes, self.nbytes + entry.nbytes]
            header[name] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": ends}
            self.nbytes = ends[1]
        encoded = msgspec.json.encode(header)
        encoded += b" " * (-len(encoded) % 8)
        self._due, self._digest = iter(entries.items()), hashlib.sha256()
        self._descriptor = _new_file(path)
        self._block, self._filled, self._size = mmap.mmap(-1, BLOCK), 0, 0
        self._put(memoryview(len(encoded).to_bytes(8, "little") + encoded))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Raises ValueError where it is not the tensor whose turn it is."""
        if next(self._due, None) != (name, Entry(tensor.dtype, tuple(tensor.shape))):
            raise ValueError(f"{name} is not what the header says comes next")
        self._put(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)

    def _put(self, view: memoryview) -> None:
        while view:
            piece = view[: min(CHUNK, BLOCK - self._filled)]
            self._digest.update(piece)
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK:
                self._flush()

    def _flush(self) -> None:
        """Write the block; of a last one that is not full, whole pages, and cut the file to its size."""
        self._size += self._filled
        with memoryview(self._block) as block:
            rest = block[: -(-self._filled // mmap.PAGESIZE) * mmap.PAGESIZE]
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            rest.release()
        os.ftruncate(self._descriptor, self._size)
        self._filled = 0

    def finish(self) -> str:
        """The SHA-256 of the file, now that all of it is written. Raises ValueError where tensors are missing."""
        if (missing := next(self._due, None)) is not None:
            raise ValueError(f"{missing[0]} was never written")
        self._flush()
        return self._digest.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)


def _new_file(path: Path) -> int:
    """A descriptor of a new file that is written past the page cache; through it where that can't be, as on tmpfs."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o666)
