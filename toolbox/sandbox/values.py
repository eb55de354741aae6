"""Plain values as lines of JSON, between a candidate and its tests: nothing read from a line can run code."""

import json
import os
from collections.abc import Callable
from typing import Any

MOST_BYTES = 16 << 20
"""Of one line."""


class Ended(Exception):
    """The process at the other end of a link is gone."""


class Link:
    """Lines of JSON over two pipes; `ended` stays true, whoever caught the error."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.rest = b""
        self.ended = False

    def send(self, value: Any) -> None:
        """Raises Ended where nobody reads any more."""
        line = json.dumps(value).encode() + b"\n"
        while line:
            try:
                line = line[os.write(self.target, line) :]
            except BrokenPipeError as error:
                self.ended = True
                raise Ended from error

    def receive(self) -> Any:
        """The next value. Raises Ended where nobody writes any more, ValueError for what is no such line."""
        pieces = [self.rest]
        while b"\n" not in pieces[-1]:
            pieces.append(os.read(self.source, 1 << 16))
            if not pieces[-1]:
                self.ended = True
                raise Ended
            if sum(map(len, pieces)) > MOST_BYTES:
                raise ValueError("the answer is too long")
        line, _, self.rest = b"".join(pieces).partition(b"\n")
        return json.loads(line)


def encode(value: Any) -> Any:
    """What JSON takes; a subclass becomes what it is a kind of. Raises TypeError for what is not plain data."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: list(value)}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if hasattr(value, "__next__"):
        return {"iterator": [encode(item) for item in value]}
    raise TypeError(f"{type(value).__name__} is not plain data, which alone passes between code and tests")


def decode(value: Any) -> Any:
    """The value again. Raises ValueError for what `encode` does not make."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    (name, held), *others = value.items()
    if others or name not in _MAKERS:
        raise ValueError(f"no value of kind {name}")
    return _MAKERS[name]([decode(item) for item in held])


_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes, "bytearray": bytearray,
    "iterator": iter, "complex": lambda parts: complex(*parts), "range": lambda parts: range(*parts),
}  # fmt: skip
