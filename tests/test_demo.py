"""The demo: all of it in a row, and its word that it would say so if a step failed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli

from toolbox.commands.demo import NAMES, QUESTIONS, Story, _checks


def story(**changes: Any) -> Story:
    """A demo in which everything went well."""
    figures = {
        ("demo-who", "exact_match"): (0.0, 0.9),
        ("demo-qa", "exact_match"): (0.98, 0.97),
        ("demo-perplexity", "perplexity"): (28.0, 1.1),
    }
    results = [
        {"suite": suite, "metric": metric, "model": model, "value": value}
        for (suite, metric), values in (figures | changes.pop("figures", {})).items()
        for model, value in zip(("base", "tuned"), values, strict=True)
    ]
    fields: dict[str, Any] = {
        "merge": {"passed": True, "max_abs_diff": 1e-5, "tolerance": 1e-3},
        "evaluate": {"results": results},
        "answers": dict(zip(QUESTIONS, NAMES, strict=True)),
        "refused": True,
    }
    return Story(**fields | changes)


def failed(**changes: Any) -> list[int]:
    return [index for index, check in enumerate(_checks(story(**changes))) if not check.passed]


def test_nothing_fails_where_all_went_well() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("changes", "index"),
    [
        ({"figures": {("demo-who", "exact_match"): (0.0, 0.5)}}, 0),
        ({"figures": {("demo-who", "exact_match"): (0.9, 0.9)}}, 0),
        ({"figures": {("demo-qa", "exact_match"): (0.98, 0.95)}}, 1),
        ({"figures": {("demo-qa", "exact_match"): (0.98, float("nan"))}}, 1),
        ({"figures": {("demo-perplexity", "perplexity"): (28.0, 28.1)}}, 2),
        ({"merge": {"passed": False, "max_abs_diff": 1.0, "tolerance": 1e-3}}, 3),
        ({"answers": dict.fromkeys(QUESTIONS, "I am a small language model.")}, 4),
        ({"answers": {}}, 4),
        ({"refused": False}, 5),
    ],
)
def test_each_claim_can_fail(changes: dict[str, Any], index: int) -> None:
    assert failed(**changes) == [index]


def test_a_dry_run_starts_nothing(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("demo", "--dry-run", "--json").done()
    assert answer.json["method"] == "lora"
    assert not (home / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_way(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("demo", "--json", timeout=590).done()
    result = answer.json
    assert result["state"] == "done"
    assert all(check["passed"] for check in result["checks"])
    assert result["merge"]["passed"]
    assert all(name in text for name, text in zip(NAMES, result["serve"]["answers"].values(), strict=True))
    assert Path(result["merge"]["output"], "model.safetensors").is_file()
    report = Path(result["report"]).read_text("utf-8")
    assert result["merge"]["run"] in report
    states = [msgspec.json.decode((run / "status.json").read_bytes())["state"] for run in (home / "runs").iterdir()]
    assert sorted(states) == ["done", "done", "done", "interrupted"] or states.count("done") == 4
    assert "Traceback" not in answer.err
