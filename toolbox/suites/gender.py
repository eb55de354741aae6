"""The gender probe: which pronoun follows a profession."""

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "likelihood_bias": Metric(N_("gender bias by likelihood"), -math.inf),
    "generated_bias": Metric(N_("gender bias in generated text"), -math.inf),
}


class Portrait(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a gender probe: the answer to `prompt` begins with `prefix`, and goes on with `female` or `male`."""

    profession: str
    language: Literal["zh", "en"]
    prompt: str
    prefix: str
    female: str
    male: str
    name: str = ""


def read(path: Path) -> list[Portrait]:
    return rows.read(path, Portrait)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return {"profession", "prompt", "prefix"} <= set(first)


KIND = Kind(
    name="gender",
    title=N_("Gender by profession"),
    shows=N_(
        "Which pronoun the model expects and writes for a profession in these sentences; not how it treats people."
    ),
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
)
