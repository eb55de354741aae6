"""CrowS-Pairs: two sentences that differ in whom they are about; which one does the model find likelier?"""

from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.i18n import N_
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "crows_pairs": Metric(N_("CrowS-Pairs: stereotype preferred, %"), 50),
    "crows_pairs_stereo": Metric(N_("CrowS-Pairs, pairs that state a stereotype, %"), 50),
    "crows_pairs_antistereo": Metric(N_("CrowS-Pairs, pairs that go against one, %"), 50),
}
TYPES = {
    "race-color": N_("race and colour"), "gender": N_("gender"), "socioeconomic": N_("social and economic status"),
    "nationality": N_("nationality"), "religion": N_("religion"), "age": N_("age"),
    "sexual-orientation": N_("sexual orientation"), "physical-appearance": N_("appearance"),
    "disability": N_("disability"),
}  # fmt: skip
"""The paper's bias types, for people."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A row of crows_pairs_anonymized.csv; other columns are ignored."""

    sent_more: str
    """The sentence that is more stereotypical."""
    sent_less: str
    stereo_antistereo: Literal["stereo", "antistereo"]
    """Whether `sent_more` shows a stereotype of a disadvantaged group, or `sent_less` goes against one."""
    bias_type: str


def read(path: Path) -> list[Pair]:
    return rows.read(path, Pair)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return {"sent_more", "sent_less", "bias_type"} <= set(first)


KIND = Kind(
    name="crows_pairs",
    title="CrowS-Pairs",
    shows=N_(
        "Of two sentences about different groups, how often the stereotype is the likelier one; 50 is no preference."
        " It is about American stereotypes in English, some pairs are badly written, and 50 does not prove fairness."
    ),
    paper="N. Nangia, C. Vania, R. Bhalerao, S. R. Bowman: CrowS-Pairs, EMNLP 2020, arXiv:2010.00133",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
    masked=True,
    picture=Picture(
        title=N_("CrowS-Pairs: how often the stereotype is preferred"),
        axis=N_("% of pairs"),
        domain=(0, 100),
        even=50,
        ends=(N_("against the stereotype"), N_("with the stereotype")),
        names=TYPES,
    ),
)
