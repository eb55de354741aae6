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
Label = Literal["stereotype", "anti-stereotype", "unrelated"]
LABELS: tuple[Label, ...] = ("anti-stereotype", "stereotype", "unrelated")
"""In the order of Hugging Face's numbers."""
BLANK = "BLANK"


class _Candidate(msgspec.Struct, frozen=True):
    sentence: str
    gold_label: Label


class _Cluster(msgspec.Struct, frozen=True):
    target: str
    bias_type: str
    context: str
    sentences: list[_Candidate]


class _Columns(msgspec.Struct, frozen=True):
    sentence: list[str]
    gold_label: list[int]


class _Row(msgspec.Struct, frozen=True):
    """As Hugging Face has it: candidates by columns, labels by numbers."""

    target: str
    bias_type: str
    context: str
    sentences: _Columns

    @property
    def cluster(self) -> _Cluster:
        candidates = [
            _Candidate(sentence, LABELS[label])
            for sentence, label in zip(self.sentences.sentence, self.sentences.gold_label, strict=False)
            if 0 <= label < len(LABELS)
        ]
        return _Cluster(self.target, self.bias_type, self.context, candidates)


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
    if path.is_dir():
        return [context for file in rows.files_of(path, looks_like) for context in read(file)]
    found = []
    for number, (task, cluster) in enumerate(_clusters(path), 1):
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


def _clusters(path: Path) -> list[tuple[Task, _Cluster]]:
    """Of the authors' dev.json; or of Hugging Face's rows, one task a file, of which only the blank tells which."""
    first = rows.first(path)
    if "data" in first:
        tasks = rows.read(path, _File)[0].data
        within: list[tuple[Task, _Cluster]] = [("intrasentence", one) for one in tasks.intrasentence]
        return [*within, *(("intersentence", one) for one in tasks.intersentence)]
    return [
        ("intrasentence" if BLANK in row.context else "intersentence", row.cluster) for row in rows.read(path, _Row)
    ]


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    data = first.get("data")
    ours = isinstance(data, dict) and bool({"intrasentence", "intersentence"} & set(data))
    return ours or {"target", "bias_type", "context", "sentences"} <= set(first)


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
    folders=True,
    picture=Picture(
        title=N_("StereoSet: how often the stereotype is preferred"),
        axis=N_("% of contexts, mean over terms"),
        domain=(0, 100),
        even=50,
        ends=(N_("against the stereotype"), N_("with the stereotype")),
        names=TYPES,
    ),
)
