"""What would fit where a plan does not: another method, shorter rows, a smaller model, another GPU; each is estimated.

`plan` shows it, and a refusal names it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal, TypeVar

import msgspec

from toolbox import datasheets, nvidia, registry, search
from toolbox import device as devices
from toolbox.registry import shapes
from toolbox.search import Choice, Problem

METHODS = ("lora", "qlora")
LENGTH_STEP = 128
"""Rows are proposed in steps of so many tokens, and none shorter: they would be of no use."""
SMALLER = 0.9
"""A model counts as smaller from this share of the parameters on: names say 7B of 7.6 billion."""
NOT_RENTED = ("GeForce",)
"""Left out where a GPU to rent is looked for: data centres have none (NVIDIA's driver licence, section 2.1.3)."""


T = TypeVar("T")
Kind = Literal["batch", "method", "length", "method and length", "model", "device"]


class Nearest(msgspec.Struct, kw_only=True, frozen=True):
    """Something that would fit, and how it is asked for."""

    kind: Kind
    option: str
    """As `--max-length 1024`, to be added to what was asked; of a device, its name and memory."""
    method: str
    max_length: int
    per_device_train_batch_size: int
    peak_bytes: int
    device_bytes: int
    tokens_per_s: float


def nearest(problem: Problem, refused: Choice) -> list[Nearest]:
    """What would fit instead of `refused`, the least change first; empty where nothing here would."""
    here = [*_batch(problem), *_methods(problem, refused), *_shorter(problem, refused)] or [*_both(problem, refused)]
    return [*here, *_smaller(problem), *_devices(problem)]


def _batch(problem: Problem) -> Iterator[Nearest]:
    """Fewer rows at once, where the person said how many."""
    if problem.wishes.per_device_train_batch_size:
        free = _asking(problem, per_device_train_batch_size=None)
        for found in _fitting("batch", "", free):
            option = f"--per-device-train-batch-size {found.per_device_train_batch_size}"
            yield msgspec.structs.replace(found, option=option)


def _methods(problem: Problem, refused: Choice) -> Iterator[Nearest]:
    """Methods that take less, at the length that was asked for."""
    for method in METHODS:
        if method != refused.recipe.method:
            yield from _fitting("method", f"--method {method}", _asking(problem, method=method))


def _shorter(problem: Problem, refused: Choice) -> Iterator[Nearest]:
    """The longest rows that fit by what was asked for."""
    if length := _longest(problem, refused.recipe.training.max_length):
        yield from _fitting("length", f"--max-length {length}", _asking(problem, max_length=length))


def _both(problem: Problem, refused: Choice) -> Iterator[Nearest]:
    """The longest rows that fit in 4 bits, where neither alone helps."""
    quantised = _asking(problem, method=METHODS[-1])
    if length := _longest(quantised, refused.recipe.training.max_length):
        option = f"--method {METHODS[-1]} --max-length {length}"
        yield from _fitting("method and length", option, _asking(quantised, max_length=length))


def _smaller(problem: Problem) -> Iterator[Nearest]:
    """The largest model of the same family, for the same use, that does what was asked."""
    model, home = problem.model, problem.home
    listed = registry.find(model.id, home)
    wanted = registry.Wanted(
        family=listed.family if listed else model.model_type,
        kind=registry.kind(listed) if listed else "chat" if model.chat_template else "base",
        largest=model.parameters / 1e9 * SMALLER,
        tunable=True,
    )
    known = registry.search(wanted, home)
    by_size = {
        other.params_b: other
        for other in sorted(known, key=lambda other: (_alike(other.name, model.id), -len(other.name)))
    }
    sizes = sorted(by_size, reverse=True)

    def smaller(size: float) -> Nearest | None:
        other = by_size[size]
        facts = shapes.facts(other, home.models / other.name)
        return next(_fitting("model", f"--model {other.name}", msgspec.structs.replace(problem, model=facts)), None)

    if found := _first(sizes, smaller):
        yield found


def _alike(name: str, other: str) -> int:
    """Characters that two names begin with alike: Qwen2.5 before Qwen1.5 for Qwen2.5."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(name.lower(), other.lower(), strict=False))
    return sum(1 for _pair in same)


def _devices(problem: Problem) -> Iterator[Nearest]:
    """The smallest GPU that does what was asked, by memory and then by arithmetic."""
    known = [sheet for sheet in datasheets.specifications() if sheet.memory_gib and sheet.compute_capability]
    known = [sheet for sheet in known if not any(word in sheet.name for word in NOT_RENTED)]
    known = [sheet for sheet in known if devices.version(sheet.compute_capability) >= nvidia.OLDEST_CAPABILITY]

    def larger(sheet: datasheets.Specification) -> Nearest | None:
        name = f"{sheet.name}:{sheet.memory_gib:g}GiB"
        other = msgspec.structs.replace(problem, device=devices.assume(name))
        return next(_fitting("device", name, other), None)

    if found := _first(sorted(known, key=lambda sheet: (sheet.memory_gib or 0, sheet.bf16_tflops or 0)), larger):
        yield found


def _first(ordered: Sequence[T], fitting: Callable[[T], Nearest | None]) -> Nearest | None:
    """What the first of `ordered` that fits comes to, found by halving: what follows one that fits does so too."""
    low, high, found = 0, len(ordered), None
    while low < high:
        middle = (low + high) // 2
        if now := fitting(ordered[middle]):
            high, found = middle, now
        else:
            low = middle + 1
    return found


def _asking(problem: Problem, **wishes: Any) -> Problem:
    """The problem with other wishes; a method that is named brings its own recipe and bits."""
    if "method" in wishes:
        wishes = {"quantization": "auto", "recipe": "", **wishes}
    return msgspec.structs.replace(problem, wishes=msgspec.structs.replace(problem.wishes, **wishes))


def _fitting(kind: Kind, option: str, problem: Problem) -> Iterator[Nearest]:
    """What the search comes to, where it fits with a margin."""
    found = search.search(problem).choice
    if found.too_large_bytes > 0:
        return
    training = found.recipe.training
    yield Nearest(
        kind=kind,
        option=option,
        method=found.recipe.method,
        max_length=training.max_length,
        per_device_train_batch_size=training.per_device_train_batch_size,
        peak_bytes=found.estimate.peak_bytes,
        device_bytes=found.estimate.device_bytes,
        tokens_per_s=found.estimate.tokens_per_s,
    )


def _longest(problem: Problem, below: int) -> int:
    """The longest rows of fewer than `below` tokens that fit; 0 where none do."""
    lengths = range((below - 1) // LENGTH_STEP * LENGTH_STEP, 0, -LENGTH_STEP)
    found = _first(lengths, lambda length: next(_fitting("length", "", _asking(problem, max_length=length)), None))
    return found.max_length if found else 0
