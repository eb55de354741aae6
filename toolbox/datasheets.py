"""Data sheets of GPUs and Apple chips (gpus.csv): memory, bandwidth, TFLOPS, as their makers state them."""

import csv
import re
from functools import cache
from pathlib import Path

import msgspec


class Specification(msgspec.Struct, frozen=True):
    """A GPU or Apple chip as its maker describes it (gpus.csv). TFLOPS are dense; None: not known."""

    name: str
    regex: str
    memory_gib: float | None
    bandwidth_gbps: float | None
    bf16_tflops: float | None
    fp16_tflops: float | None
    fp32_tflops: float | None
    compute_capability: str
    power_w: float | None
    """The board's, at most, by its data sheet."""
    basis: str


def specification(name: str) -> Specification | None:
    """The data sheet of the GPU that NVML, or of the chip that macOS, calls `name`; None where it is not known."""
    return next((item for item in specifications() if re.search(item.regex, name, re.IGNORECASE)), None)


@cache
def specifications() -> tuple[Specification, ...]:
    """All of gpus.csv."""
    with Path(__file__).with_name("gpus.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    texts = ("compute_capability", "basis")
    return tuple(
        msgspec.convert({**row, **{key: row[key] or "" for key in texts}}, Specification, strict=False) for row in rows
    )


def named(name: str, memory_gib: float | None) -> Specification | None:
    """A GPU all of whose words are in a known name; of several, the one with that memory."""
    asked = _words(name)
    found = [item for item in specifications() if asked and asked <= _words(item.name)]
    return next((item for item in found if item.memory_gib == memory_gib), found[0] if found else None)


def nearest(name: str) -> list[Specification]:
    """The three whose names share most words with `name`."""
    known = [item for item in specifications() if item.memory_gib]
    return sorted(known, key=lambda item: -len(_words(name) & _words(item.name)))[:3]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
