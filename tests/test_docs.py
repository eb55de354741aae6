"""The docs say what the code does: generated pages are equal, the README's commands parse."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from toolbox import cli
from toolbox.report import record

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
READMES = ("README.md", "README.en.md")


def commands(readme: str) -> list[list[str]]:
    """Every `bash yichuidingyin.sh …` in a README, as words."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    found = re.findall(r"bash yichuidingyin\.sh([^`\n#、]*)", text)
    return [words for line in found if (words := shlex.split(line)) and words[0] != "VERB"]


@pytest.mark.parametrize("script", ["reference", "models_page", "tutorial", "evaluation_page"])
def test_generated_pages_equal_the_code(script: str) -> None:
    made = importlib.import_module(script)
    for language in ("en", "zh"):
        assert made.PAGES[language].read_text(encoding="utf-8") == made.page(language), "run `make docs`"


def test_the_readmes_figures_come_from_what_was_measured() -> None:
    """docs/figures.json and the code state them; the tutorial's are those of its record."""
    figures, tutorial = (importlib.import_module(name) for name in ("figures", "tutorial"))
    marks = []
    for path in figures.READMES.values():
        text = path.read_text(encoding="utf-8")
        assert text == figures.filled(text), "run `make docs`"
        marks.append(sorted(name for name, _shown in figures.MARK.findall(text)))
    assert marks[0] == marks[1]
    assert set(figures.read()) | set(figures.counted()) == set(marks[0]), "every figure is stated, and none is typed"
    known = figures.read()
    for name, (value, _unit, _digits) in tutorial.figures(record.read(tutorial.PAGES["en"]).record).items():
        assert known[name].value == pytest.approx(value)


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_commands_are_understood(readme: str) -> None:
    for words in commands(readme):
        cli.understand(words)


def test_both_readmes_show_the_same_commands() -> None:
    assert commands(READMES[0]) == commands(READMES[1])


def test_what_the_readmes_link_to_is_there() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / readme).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{readme} links to {target}"
