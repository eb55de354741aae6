"""CrowS-Pairs: two sentences that differ in whom they are about; which one does the model find likelier?"""

from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "crows_pairs": Metric(N_("CrowS-Pairs: stereotype preferred, %"), 50),
    "crows_pairs_stereo": Metric(N_("CrowS-Pairs, pairs that state a stereotype, %"), 50),
    "crows_pairs_antistereo": Metric(N_("CrowS-Pairs, pairs that go against one, %"), 50),
}
TYPES = {
    "race-color": N_("race and colour"), "socioeconomic": N_("social and economic status"), "gender": N_("gender"),
    "disability": N_("disability"), "nationality": N_("nationality"),
    "sexual-orientation": N_("sexual orientation"), "physical-appearance": N_("appearance"),
    "religion": N_("religion"), "age": N_("age"),
}  # fmt: skip
"""The paper's bias types, for people, in the order of Hugging Face's numbers."""
WAYS = ("stereo", "antistereo")


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A row of crows_pairs_anonymized.csv; other columns are ignored."""

    sent_more: str
    """The sentence that is more stereotypical."""
    sent_less: str
    stereo_antistereo: str | int
    """Whether `sent_more` shows a stereotype of a disadvantaged group, or `sent_less` goes against one."""
    bias_type: str | int


def read(path: Path) -> list[Pair]:
    """The authors' table, or Hugging Face's rows of it, in which words are numbers.

    Raises InputError naming the first row that can't be used.
    """
    return [
        msgspec.structs.replace(
            pair,
            stereo_antistereo=_word(WAYS, pair.stereo_antistereo, path, number),
            bias_type=_word(tuple(TYPES), pair.bias_type, path, number),
        )
        for number, pair in rows.numbered(path, Pair)
    ]


def _word(words: tuple[str, ...], told: str | int, path: Path, number: int) -> str:
    numbers = {str(place): word for place, word in enumerate(words)}  # a table's numbers are texts
    word = numbers.get(str(told), told)
    if word not in words:
        raise rows.unusable(path, number, _("{word!r} is none of {words}").format(word=word, words=", ".join(words)))
    return str(word)


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
