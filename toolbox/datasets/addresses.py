"""How a person names a data set on one line: `[hf|ms]::NAME_OR_PATH:SUBSET#ROWS*WEIGHT`."""

import re
from pathlib import Path
from typing import Literal

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import _

Hub = Literal["", "huggingface", "modelscope"]

HUBS: dict[str, Hub] = {
    "hf": "huggingface",
    "huggingface": "huggingface",
    "ms": "modelscope",
    "modelscope": "modelscope",
}
_ADDRESS = re.compile(r"(?:(\w+)::)?(.+?)(?::([^:/\\#*]+))?(?:#([^#*/\\]+))?(?:\*([^#*/\\]+))?")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A data set that was named, and how much of it: `samples` rows, or `weight` times all of them."""

    name: str
    hub: Hub = ""
    subset: str = ""
    samples: int | None = None
    weight: float = 1.0

    def rows(self, usable: int) -> int:
        """How many rows are taken of a data set that has `usable` ones; at least one."""
        return self.samples if self.samples is not None else max(1, round(usable * self.weight))


def parse(text: str) -> Address:
    """The address in a text; a file or folder of exactly that name is itself. Raises InputError where it is none."""
    if text and Path(text).expanduser().exists():
        return Address(name=text)
    match = _ADDRESS.fullmatch(text)
    if not match:
        raise _wrong(text)
    hub, name, subset, samples, weight = match.groups()
    if hub and hub.lower() not in HUBS:
        raise _wrong(text)
    return Address(
        name=name,
        hub=HUBS[hub.lower()] if hub else "",
        subset=subset or "",
        samples=int(_number(text, samples, whole=True)) if samples else None,
        weight=_number(text, weight, whole=False) if weight else 1.0,
    )


def _number(address: str, text: str, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise _wrong(address) from None
    if not 0 < value < float("inf"):
        raise _wrong(address)
    return value


def _wrong(text: str) -> InputError:
    return InputError(
        _("{text!r} does not name a data set.").format(text=text),
        _("Write {form}: the hub, the subset, the number of rows and the weight may be left out.").format(
            form="[hf|ms]::NAME:SUBSET#ROWS*WEIGHT"
        ),
    )
