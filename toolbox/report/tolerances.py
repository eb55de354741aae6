"""How equal the numbers of two reports have to be, by their kind, and why (`runs reproduce`; docs/tutorial.en.md)."""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from toolbox.i18n import N_

Name = Literal["exact", "hash", "loss", "metric", "bound", "rounding", "bytes", "time"]
Value = bool | int | float | str
Verdict = Literal["held", "differed", "reported"]
"""`reported`: it is shown, and may be anything."""

LOSS = 0.05
"""Relative. What other rounding does to a loss grows with the steps: after the tutorial's 100 steps it came to
0.00002 % with two threads for one, and to 0.7 % with bfloat16 for float32 (docs/tutorial.en.md)."""
MEASURED = 1e-6
"""Relative and absolute, of measures on an alike machine. Answers kept from before are left out of their batches;
where that leaves out the longest row, the others are padded less and round otherwise: a token's log-likelihood by up
to 8e-6 (float32, the embedded model), a bias by 2e-9, an interval's end by 2e-8."""
METRIC = 0.1
"""Relative, of metrics that state no interval."""

KINDS: dict[Name, str] = {
    "exact": N_("counts, tokens, steps, what passed: equal on every machine"),
    "hash": N_("weights: equal where the machine is alike"),
    "loss": N_("losses: equal where the machine is alike, else within 5 %"),
    "metric": N_("measures: equal to 6 digits where the machine is alike, else inside the stated interval"),
    "bound": N_("ends of intervals and p: equal to 6 digits where the machine is alike, else not held to"),
    "rounding": N_("rounding errors: equal where the machine is alike, else not held to"),
    "bytes": N_("memory and disk: said, never held to"),
    "time": N_("time and speed: said, never held to"),
}
"""Every kind of number, and what a reproduction asks of it. Alike: a processor, the same one as far as it tells, with
the same threads and versions of the libraries that compute, so that each sum is taken in the same order."""
FREE: tuple[Name, ...] = ("bytes", "time")
"""Of the machine, not of what was made."""
FREE_ELSEWHERE: tuple[Name, ...] = ("hash", "bound", "rounding")
"""What other rounding changes in every bit, or by as much as it is."""


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What numbers were computed by."""

    kind: str = ""
    """cpu, cuda or mps; empty where it is not known."""
    name: str = ""
    threads: int = 0
    simd: str = ""
    """The widest vector instructions, which decide the order of sums."""
    versions: dict[str, str] = {}


COMPUTING = ("toolbox", "torch", "transformers", "peft", "tokenizers")
"""The versions that may change a bit."""


def alike(stated: Machine, here: Machine) -> bool:
    """Whether the same plan has to give the same bits: a GPU's atomics add in whatever order they come."""
    versions = all(stated.versions.get(name) == here.versions.get(name) for name in COMPUTING)
    parts = (stated.kind, stated.name, stated.threads, stated.simd)
    return versions and stated.kind == "cpu" and parts == (here.kind, here.name, here.threads, here.simd)


def judge(
    name: Name, stated: Value, now: Value | None, same_bits: bool, interval: tuple[float, float] | None = None
) -> Verdict:
    """Whether a number holds. `interval`: the one stated for it; `now`: None where it was not measured again."""
    if name in FREE or (name in FREE_ELSEWHERE and not same_bits):
        return "reported"
    if now is None:
        return "differed"
    if stated == now or _both_nan(stated, now):
        return "held"
    if isinstance(stated, str) or isinstance(now, str) or name not in ("loss", "metric", "bound"):
        return "differed"
    if same_bits:
        close = name != "loss" and math.isclose(stated, now, rel_tol=MEASURED, abs_tol=MEASURED)
        return "held" if close else "differed"
    if name == "metric" and interval:
        return "held" if interval[0] <= now <= interval[1] else "differed"
    return "held" if math.isclose(stated, now, rel_tol=LOSS if name == "loss" else METRIC) else "differed"


def _both_nan(one: Value, other: Value) -> bool:
    return isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)


def intervals(bounds: Mapping[str, Value]) -> dict[str, tuple[float, float]]:
    """{metric: its stated interval} of the numbers of kind `bound`, named "NAME, low" and "NAME, high"."""
    found = {}
    for name, low in bounds.items():
        high = bounds.get(name.removesuffix(LOW) + HIGH) if name.endswith(LOW) else None
        if isinstance(low, int | float) and isinstance(high, int | float):
            found[name.removesuffix(LOW)] = (float(low), float(high))
    return found


LOW, HIGH = ", low", ", high"
