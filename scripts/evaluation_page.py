"""Writes the list of suites in docs/evaluation.md and docs/evaluation.en.md; scripts/reference.py calls it.

What stands around the list is written by hand.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import i18n  # noqa: E402
from toolbox.i18n import _  # noqa: E402
from toolbox.suites.kind import Kind  # noqa: E402
from toolbox.suites.kinds import KINDS  # noqa: E402
from toolbox.suites.metrics import Metric  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "evaluation.md", "en": ROOT / "docs" / "evaluation.en.md"}
BEGIN, END = "<!-- make docs -->", "<!-- /make docs -->"
WORDS = {
    "zh": (("结果中的名称", "是什么", "最好"), "出处：", ("越大越好", "越小越好")),
    "en": (("in the results", "what it is", "best"), "Source: ", ("more is better", "less is better")),
}
"""Words of these pages only, which the program never says."""


def page(language: str) -> str:
    """The page as it lies there, with the list of kinds as the code has it."""
    i18n.use(language)
    before, _begin, rest = PAGES[language].read_text(encoding="utf-8").partition(BEGIN)
    kinds = "\n\n".join(_kind(kind, language) for kind in KINDS.values())
    return f"{before}{BEGIN}\n\n{kinds}\n\n{END}{rest.partition(END)[2]}"


def _kind(kind: Kind, language: str) -> str:
    columns, source, _ideals = WORDS[language]
    rows = [
        f"| `{name}` | {_(metric.label).replace('|', chr(92) + '|')} | {_ideal(metric, language)} |"
        for name, metric in kind.metrics.items()
    ]
    header = ["| " + " | ".join(columns) + " |", "|---|---|---|"]
    paper = [source + kind.paper, ""] if kind.paper else []
    return "\n".join([f"### {_(kind.title)} `{kind.name}`", "", _(kind.shows), "", *paper, *header, *rows])


def _ideal(metric: Metric, language: str) -> str:
    more, less = WORDS[language][2]
    return f"{metric.ideal:g}" if math.isfinite(metric.ideal) else more if metric.ideal > 0 else less
