"""Rows that say the same as another: exactly by hash, nearly by MinHash, and rows of one set held in another's.

One-permutation MinHash (Li, Owen, Zhang, NIPS 2012, arXiv:1208.1259): the shingles of a text are hashed once and fall
into 120 bins, of which each keeps its smallest; the share of bins that two texts agree in, among those that either
fills, estimates their Jaccard similarity. 20 bands of 6 bins find the pairs to compare: of those that are 0.8 alike
99.8 % (1 - (1 - 0.8^6)^20), of those 0.5 alike 27 %, which the comparison then refuses. Sketches lie in files, so
memory grows by a few bytes a row.
"""

import functools
import hashlib
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 6
"""Letters of a shingle; case, spaces and marks don't count."""
BANDS, BAND_BINS = 20, 6
BINS = BANDS * BAND_BINS
ALIKE = 0.8
"""Estimated similarity from which two texts are nearly the same."""
LEAST_BINS = 16
"""Texts that fill fewer bins together are too short to be compared but exactly."""
EMPTY = 0xFFFFFFFF
BATCH = 4096
_MIX = 0x9E3779B97F4A7C15


class Duplicate(msgspec.Struct, frozen=True):
    """A text that says what one before it said: both by the order they came in; `similarity` 1.0: the very same."""

    index: int
    first: int
    similarity: float


def letters(text: str) -> "np.ndarray":
    """(n,) uint32: the code points of a text without what makes no difference: case, spaces, marks."""
    import numpy as np

    codes = np.frombuffer(text.casefold().encode("utf-32-le", "replace"), dtype=np.uint32)
    return codes[_is_letter()[codes]]


@functools.cache
def _is_letter() -> "np.ndarray":
    """(1114112,) bool, by code point; a table is ten times as fast as a regular expression."""
    import numpy as np

    return np.fromiter((chr(code).isalnum() for code in range(sys.maxunicode + 1)), dtype=bool)


def shingles(text: str) -> "np.ndarray":
    """(n,) uint64: the hashes of all runs of SHINGLE letters of a text; of a shorter one, one hash."""
    import numpy as np

    codes = letters(text).astype(np.uint64)
    width = min(SHINGLE, len(codes))
    count = len(codes) - width + 1
    hashes = np.zeros(max(1, count), dtype=np.uint64)
    for offset in range(width):
        hashes = hashes * np.uint64(0x100000001B3) + codes[offset : offset + count]
    hashes *= np.uint64(_MIX)
    hashes ^= hashes >> np.uint64(29)
    return hashes * np.uint64(0xBF58476D1CE4E5B9)


def sketch(text: str) -> "np.ndarray":
    """(BINS,) uint32: the smallest hash in each bin, EMPTY where there is none."""
    import numpy as np

    hashes = shingles(text)
    bins = np.full(BINS, EMPTY, dtype=np.uint32)
    np.minimum.at(bins, (hashes >> np.uint64(40)) % np.uint64(BINS), hashes.astype(np.uint32))
    return bins


def similarity(one: "np.ndarray", other: "np.ndarray") -> "np.ndarray":
    """(n,): the estimated Jaccard similarity of sketches (n, BINS), 0 where they are too short to tell."""
    import numpy as np

    filled = ((one != EMPTY) | (other != EMPTY)).sum(-1)
    equal = ((one == other) & (one != EMPTY)).sum(-1)
    return np.where(filled >= LEAST_BINS, equal / np.maximum(filled, 1), 0.0)


class Sketches:
    """The sketches of many texts, in files: `add` them one after another, then ask once for the `duplicates`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ycdy-sketches-")
        self._place = Path(self._folder.name)
        self._bins = (self._place / "bins").open("wb")
        self._bands = [(self._place / f"band{band}").open("wb") for band in range(BANDS)]
        self._waiting: list[Any] = []
        self._exact = array("Q")

    def add(self, text: str) -> None:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._exact.append(int.from_bytes(digest, "little"))
        self._waiting.append(sketch(text))
        if len(self._waiting) == BATCH:
            self._flush()

    def duplicates(self, near: bool = True) -> Iterator[Duplicate]:
        """Every text that says what an earlier one said, once, in their order; frees the files."""
        import numpy as np

        self._flush()
        for file in (self._bins, *self._bands):
            file.close()
        first = _earliest(np.frombuffer(self._exact, dtype=np.uint64)) if self._exact else np.zeros(0, dtype=np.int64)
        score = np.where(first < np.arange(len(first)), 1.0, 0.0)
        if near and len(first):
            self._compare(first, score)
        self._folder.cleanup()
        for index in np.flatnonzero(score):
            yield Duplicate(int(index), int(first[index]), float(score[index]))

    def _flush(self) -> None:
        """Write the waiting sketches, and for each band one number a sketch, 0 where the band is empty."""
        import numpy as np

        if not self._waiting:
            return
        bins = np.stack(self._waiting)
        self._waiting = []
        self._bins.write(bins.tobytes())
        parts = bins.reshape(len(bins), BANDS, BAND_BINS).astype(np.uint64)
        keys = np.zeros((len(bins), BANDS), dtype=np.uint64)
        for part in range(BAND_BINS):
            keys = (keys ^ parts[:, :, part]) * np.uint64(_MIX)
            keys ^= keys >> np.uint64(31)
        keys[(parts == EMPTY).all(-1)] = 0
        for band, file in enumerate(self._bands):
            file.write(np.ascontiguousarray(keys[:, band]).tobytes())

    def _compare(self, first: "np.ndarray", score: "np.ndarray") -> None:
        """Fill in the near ones: in each band, every text against the earliest with the same key."""
        import numpy as np

        bins = np.memmap(self._place / "bins", dtype=np.uint32, mode="r", shape=(len(first), BINS))
        for band in range(BANDS):
            keys = np.fromfile(self._place / f"band{band}", dtype=np.uint64)
            earliest = _earliest(keys)
            later = np.flatnonzero((earliest < np.arange(len(keys))) & (keys != 0) & (score == 0))
            for begin in range(0, len(later), BATCH):
                some = later[begin : begin + BATCH]
                found = similarity(bins[some], bins[earliest[some]])
                alike = some[found >= ALIKE]
                first[alike], score[alike] = earliest[alike], np.minimum(found[found >= ALIKE], 0.999)


def _earliest(keys: "np.ndarray") -> "np.ndarray":
    """(n,) int64: for each key the index of the first one equal to it."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(np.append(begins, len(keys)))
    earliest = np.empty(len(keys), dtype=np.int64)
    earliest[order] = np.repeat(order[begins], lengths)
    return earliest


class Held:
    """Some texts, looked for inside of others: of a test set in training rows."""

    def __init__(self, texts: Iterable[str]) -> None:
        import numpy as np

        hashes = [np.unique(shingles(text)) for text in texts]
        self._sizes = np.array([len(some) for some in hashes])
        owners = np.repeat(np.arange(len(hashes)), self._sizes)
        flat = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
        order = np.argsort(flat, kind="stable")
        self._hashes, self._owners = flat[order], owners[order]

    def found_in(self, text: str) -> list[tuple[int, float]]:
        """(index, share of its shingles) of each of the texts that is held in `text` to at least ALIKE."""
        import numpy as np

        asked = np.unique(shingles(text))
        begins = np.searchsorted(self._hashes, asked, side="left")
        ends = np.searchsorted(self._hashes, asked, side="right")
        known = begins < ends
        if not known.any():
            return []
        places = np.concatenate([np.arange(b, e) for b, e in zip(begins[known], ends[known], strict=True)])
        shares = np.bincount(self._owners[places], minlength=len(self._sizes)) / self._sizes
        return [(int(index), float(shares[index])) for index in np.flatnonzero(shares >= ALIKE)]
