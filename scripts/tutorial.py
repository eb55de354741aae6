"""Makes docs/tutorial.md and docs/tutorial.en.md, a report that runs again: `python scripts/tutorial.py`.

It does what the tutorial tells, by the command line, in a folder of its own; the pages are the story in tutorial_text/
with the numbers of that record in it, and the record. `page` alone fills the story anew from the record that is there.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import figures as figures_of  # noqa: E402

from toolbox import chains, embedded, i18n, units  # noqa: E402
from toolbox.config import Home  # noqa: E402
from toolbox.datasets import conversations, resolve  # noqa: E402
from toolbox.i18n import _  # noqa: E402
from toolbox.report import record  # noqa: E402
from toolbox.report.portable import steps  # noqa: E402
from toolbox.report.record import Record  # noqa: E402
from toolbox.report.tolerances import KINDS  # noqa: E402
from toolbox.runs import Run  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "tutorial.md", "en": ROOT / "docs" / "tutorial.en.md"}
TEXTS = Path(__file__).parent / "tutorial_text"
COMMANDS = (
    "finetune --model demo --dataset demo-persona",
    "merge --run last",
    "evaluate --run last --suite demo-who demo-qa demo-perplexity",
)
OTHERWISE = TEXTS / "otherwise.json"
"""How far the same training ended from its loss when it was rounded otherwise, in per cent; `--otherwise` measures."""


def page(language: str, made: Record | None = None) -> str:
    """The tutorial in one language, with the numbers of `made`, or of the record that the page holds."""
    i18n.use(language)
    made = made or record.read(PAGES[language]).record
    story = (TEXTS / f"{language}.md").read_text(encoding="utf-8").format(**_told(made))
    return f"{story}{record.write(made, story)}\n"


def _told(made: Record) -> dict[str, Any]:
    """What the story calls its numbers: n1, n2 … are those of each step, by name."""
    numbers = {
        f"n{place}": {name: value for kind in step.numbers.values() for name, value in kind.items()}
        for place, step in enumerate(made.steps, 1)
    }
    trained = {turns[0]["content"] for turns in conversations(resolve("demo-persona", Home(Path())))}
    asked = [json.loads(line)["question"] for line in embedded.DATASETS["demo-who"].read_text("utf-8").splitlines()]
    machine, first = made.steps[0].machine, numbers["n1"]
    name = f"{machine.name}, {machine.threads} × {machine.simd}" if machine.simd else machine.name
    return {
        **numbers,
        "commands": "\n".join(f"bash yichuidingyin.sh {line}" for line in COMMANDS),
        "asked": sum(question not in trained for question in asked),
        "peak": units.size(int(first["peak_bytes"])),
        "predicted": units.size(int(first["predicted_peak_bytes"])),
        "machine": name,
        "kinds": "\n".join(f"- {_(rule)}" for rule in KINDS.values()),
        **json.loads(OTHERWISE.read_text("utf-8")),
    }


def figures(made: Record) -> dict[str, tuple[float, str, int]]:
    """What the READMEs state of it: (value, unit, digits shown) by name."""
    numbers = {name: value for kind in made.steps[2].numbers.values() for name, value in kind.items()}
    shown = {"who": ("demo-who", 0), "knows": ("demo-qa", 1)}
    return {
        f"tutorial.{name}.{model}": (float(numbers[f"{suite} exact_match {model}"]), "share", digits)
        for name, (suite, digits) in shown.items()
        for model in ("base", "tuned")
    }


def run(folder: Path, *words: str, **environ: str) -> dict[str, Any]:
    """A command line of the toolbox in a home of its own; its `--json` object."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox", *words, "--home", str(folder), "--yes", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make() -> Record:
    """Do what the tutorial tells, for real."""
    with tempfile.TemporaryDirectory() as folder:
        ids = [run(Path(folder), *line.split())["run"] for line in COMMANDS]
        return Record(schema=record.SCHEMA, steps=steps(chains.chain(Run(Path(folder) / "runs" / ids[0]))))


def otherwise() -> dict[str, float]:
    """Per cent between the evaluation losses of the tutorial's training and of the same one rounded otherwise."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*COMMANDS[0].split(), "--recipe"]
        (folder / "recipes").mkdir()
        recipe = (ROOT / "recipes" / "cpu-tiny.yaml").read_text("utf-8")
        sixteen = recipe.replace("name: cpu-tiny", "name: sixteen").replace("dtype: float32", "dtype: bfloat16")
        (folder / "recipes" / "sixteen.yaml").write_text(sixteen, "utf-8")
        losses = {
            "": run(folder, *words, "cpu-tiny", OMP_NUM_THREADS="1")["eval_loss"],
            "threads": run(folder, *words, "cpu-tiny", OMP_NUM_THREADS="2")["eval_loss"],
            "bfloat16": run(folder, *words, "sixteen", OMP_NUM_THREADS="1")["eval_loss"],
        }
    return {name: round(100 * abs(loss / losses[""] - 1), 5) for name, loss in losses.items() if name}


if __name__ == "__main__":
    if sys.argv[1:] == ["--otherwise"]:
        OTHERWISE.write_text(json.dumps(otherwise()) + "\n", "utf-8")
    made = record.read(PAGES["en"]).record if sys.argv[1:] else make()
    if not sys.argv[1:]:
        figures_of.keep(figures(made), "docs/tutorial.en.md")
    for language, path in PAGES.items():
        path.write_text(page(language, made), encoding="utf-8")
        print(path.relative_to(ROOT))
