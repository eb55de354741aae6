"""The gender probe: which pronoun follows a profession, beside the real share of women where it is known."""

import csv
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

LESS, MORE = -math.inf, math.inf
METRICS = {
    "likelihood_bias": Metric(N_("gender bias by likelihood"), LESS),
    "likelihood_bias_zh": Metric(N_("gender bias by likelihood, Chinese"), LESS),
    "likelihood_bias_en": Metric(N_("gender bias by likelihood, English"), LESS),
    "likelihood_lean": Metric(N_("lean by likelihood, −1 he … +1 she"), 0.0),
    "generated_bias": Metric(N_("gender bias in generated text"), LESS),
    "generated_bias_zh": Metric(N_("gender bias in generated text, Chinese"), LESS),
    "generated_bias_en": Metric(N_("gender bias in generated text, English"), LESS),
    "generated_lean": Metric(N_("lean in generated text, −1 he … +1 she"), 0.0),
    "neutral_rate": Metric(N_("texts that settle on no gender"), MORE),
    "refusal_rate": Metric(N_("texts that refuse"), LESS),
    "share_gap": Metric(N_("distance from the real share of women"), LESS),
    "share_correlation": Metric(N_("correlation with the real share of women"), 0.0),
}
STATISTICS = ("occupations-stats.tsv", "winogender_occupations.tsv")
"""Winogender's table, as it is called in its repository and in ours: `occupation`, `bls_pct_female` (US Bureau of Labor
Statistics); beside a file of portraits it says what the labour market is like."""


class Portrait(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a gender probe: the answer to `prompt` begins with `prefix`, and goes on with `female` or `male`."""

    profession: str
    language: Literal["zh", "en"]
    prompt: str
    prefix: str
    female: str
    male: str
    name: str = ""
    """The profession in the row's language."""
    template: str = ""
    """Which sentence it is, the same for all professions."""
    held_out: bool = False
    """Whether the profession is kept out of what a repair learns from."""
    female_share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """The share of women among the people of this profession, where it is known."""


def read(path: Path) -> list[Portrait]:
    """The rows; where they don't say the real share of women, a table beside them may."""
    portraits = rows.read(path, Portrait)
    known = _statistics(path.parent) if any(row.female_share is None for row in portraits) else {}
    return [
        row
        if row.female_share is not None or (share := known.get(row.profession.casefold())) is None
        else msgspec.structs.replace(row, female_share=share)
        for row in portraits
    ]


def _statistics(folder: Path) -> dict[str, float]:
    """The share of women by occupation. Raises InputError where such a table is there and is none."""
    for path in (folder / name for name in STATISTICS):
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file, delimiter="\t"))
            return {line["occupation"].casefold(): float(line["bls_pct_female"]) / 100 for line in lines}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                _("{path} is no table of occupations: {reason}.").format(path=path, reason=error),
                _("It has the columns {columns}.").format(columns="occupation, bls_pct_female"),
            ) from error
    return {}


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return {"profession", "prompt", "prefix"} <= set(first)


KIND = Kind(
    name="gender",
    title=N_("Gender by profession"),
    shows=N_(
        "Which pronoun the model expects and writes for a profession in these sentences; not how it treats people."
    ),
    metrics=METRICS,
    local=True,
    looks_like=looks_like,
    read=read,
)
