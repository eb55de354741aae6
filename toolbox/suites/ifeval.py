"""IFEval: requests with instructions that a program can check, such as "no commas" or "at least 300 words"."""

import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox.i18n import N_, _
from toolbox.suites import rows
from toolbox.suites.kind import Kind
from toolbox.suites.metrics import Metric

METRICS = {
    "prompt_level_strict_acc": Metric(N_("requests whose every instruction is met"), math.inf),
    "inst_level_strict_acc": Metric(N_("instructions met"), math.inf),
    "prompt_level_loose_acc": Metric(N_("requests, read leniently"), math.inf),
    "inst_level_loose_acc": Metric(N_("instructions, read leniently"), math.inf),
}
"""Under lm-evaluation-harness' names."""
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
    "change_case:english_capital": (),
    "change_case:english_lowercase": (),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "combination:two_responses": (),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:constrained_response": (),
    "detectable_format:json_format": (),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:title": (),
    "keywords:existence": ("keywords",),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:frequency": ("relation", "keyword", "frequency"),
    "keywords:letter_frequency": ("let_relation", "letter", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:nth_paragraph_first_word": ("first_word", "num_paragraphs", "nth_paragraph"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_words": ("relation", "num_words"),
    "punctuation:no_comma": (),
    "startend:end_checker": ("end_phrase",),
    "startend:quotation": (),
}
"""The paper's 25 kinds, and the arguments of each."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A row: what is asked, and by which instructions the answer is judged, each with its arguments."""

    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]
    key: int | str = ""

    def __post_init__(self) -> None:
        if len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError(_("instruction_id_list and kwargs have to be equally long"))
        for name, arguments in self.instructions():
            if name not in INSTRUCTIONS:
                raise ValueError(_("there is no instruction {name}").format(name=name))
            if missing := set(INSTRUCTIONS[name]) - set(arguments):
                raise ValueError(_("{name} needs {missing}").format(name=name, missing=", ".join(sorted(missing))))

    def instructions(self) -> list[tuple[str, dict[str, Any]]]:
        """(kind, arguments) each; some copies of the file write null for what a kind does not take."""
        return [
            (name, {key: value for key, value in given.items() if value is not None})
            for name, given in zip(self.instruction_id_list, self.kwargs, strict=True)
        ]


def read(path: Path) -> list[Request]:
    return rows.read(path, Request)


def looks_like(path: Path, head: bytes, first: dict[str, Any]) -> bool:
    return "instruction_id_list" in first and "kwargs" in first


KIND = Kind(
    name="ifeval",
    title="IFEval",
    shows=N_(
        "Whether an answer keeps to the form that was asked for; it says nothing about whether the answer is any good."
    ),
    paper="J. Zhou et al., Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911",
    metrics=METRICS,
    written=True,
    looks_like=looks_like,
    read=read,
)
