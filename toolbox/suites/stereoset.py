"""StereoSet: does the model prefer the stereotype, and does it still know sense from nonsense?"""

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind, Picture
from toolbox.suites.metrics import Metric

METRICS = {
    "stereoset_icat": Metric(N_("StereoSet: idealised score (ICAT)"), math.inf),
    "stereoset_lm": Metric(N_("StereoSet: language modelling score, %"), math.inf),
    "stereoset_ss": Metric(N_("StereoSet: stereotype score, %"), 50),
}
TYPES = {
    "gender": N_("gender"), "profession": N_("profession"), "race": N_("race"), "religion": N_("religion"),
}  # fmt: skip
Task = Literal["intrasentence", "intersentence"]


class _Candidate(msgspec.Struct, frozen=True):
    sentence: str
    gold_label: Literal["stereotype", "anti-stereotype", "unrelated"]


class _Cluster(msgspec.Struct, frozen=True):
    target: str
    bias_type: str
    context: str
    sentences: list[_Candidate]


class _Tasks(msgspec.Struct, frozen=True):
    intrasentence: list[_Cluster] = []
    intersentence: list[_Cluster] = []


class _File(msgspec.Struct, frozen=True):
    data: _Tasks


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """A context with its three candidates: a word in its blank (intrasentence), or the sentence that follows it."""

    task: Task
    target: str
    """The term that it is about, over which scores are averaged, as "grandfather"."""
    bias_type: str
    context: str
    stereotype: str
    anti_stereotype: str
    unrelated: str


def read(path: Path) -> list[Context]:
    """All contexts of both tasks. Raises InputError naming the first that has not its three candidates."""
    found = []
    tasks = rows.read(path, _File)[0].data
    clusters: list[tuple[Task, _Cluster]] = [("intrasentence", one) for one in tasks.intrasentence]
    clusters += [("intersentence", one) for one in tasks.intersentence]
    for number, (task, cluster) in enumerate(clusters, 1):
        by_label = {candidate.gold_label: candidate.sentence for candidate in cluster.sentences}
        if len(by_label) != 3:
            raise rows.unusable(path, number, _("it has not one candidate of each kind"))
        found.append(
            Context(
                task=task, target=cluster.target, bias_type=cluster.bias_type, context=cluster.context,
                stereotype=by_label["stereotype"], anti_stereotype=by_label["anti-stereotype"],
                unrelated=by_label["unrelated"],
            )
        )  # fmt: skip
    return found


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    data = first.get("data")
    return isinstance(data, dict) and bool({"intrasentence", "intersentence"} & set(data))


KIND = Kind(
    name="stereoset",
    title="StereoSet",
    shows=N_(
        "How often a stereotype is likelier than its opposite (50 is even), and how often either is likelier than"
        " nonsense; ICAT joins both. It is about American stereotypes in English, many of them doubtful, and a model"
        " that knows nothing has a perfect 50."
    ),
    paper="M. Nadeem, A. Bethke, S. Reddy: StereoSet, ACL 2021, arXiv:2004.09456",
    metrics=METRICS,
    looks_like=looks_like,
    read=read,
    picture=Picture(
        title=N_("StereoSet: how often the stereotype is preferred"),
        axis=N_("% of contexts, mean over terms"),
        domain=(0, 100),
        even=50,
        ends=(N_("against the stereotype"), N_("with the stereotype")),
        names=TYPES,
    ),
)
