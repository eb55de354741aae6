"""`runs compare`: only what differs of the plans, what came of it with units, pictures; on runs made by hand."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from plans import LORA, finetune_run

from toolbox import comparison, files
from toolbox.report import compared
from toolbox.report.charts import Dot, dot_chart
from toolbox.runs import Run


def trained(home: Path, result: dict[str, Any], **changes: Any) -> Run:
    run = finetune_run(home, **changes)
    run.write_status(msgspec.structs.replace(run.status(), state="done"))
    files.write_json(run.path / "result.json", result)
    losses = [{"step": step, "loss": 2.0 / step, "eval_loss": 1.0 / step} for step in range(1, 7)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    return run


def evaluated(home: Path, run: Run, right: float, low: float, high: float) -> Run:
    plan = {"verb": "evaluate", "entry": "x", "model": {"id": "demo"}, "run": run.id, "suites": ["demo-qa"]}
    made = Run(home / "runs" / f"evaluate-{run.id}")
    files.write_bytes(made.plan_path, msgspec.yaml.encode(plan))
    row = {"suite": "demo-qa", "metric": "exact_match", "model": "tuned", "ideal": "high"}
    files.write_json(
        made.path / "result.json", {"results": [row | {"value": right, "low": low, "high": high, "n": 100}]}
    )
    return made


@pytest.fixture
def pair(home: Path) -> tuple[Run, Run]:
    one = trained(home, {"eval_loss": 1.0, "peak_bytes": 1 << 30, "tokens_per_s": 100.0})
    other = trained(
        home,
        {"eval_loss": 0.5, "peak_bytes": 3 << 29, "tokens_per_s": 80.0},
        LoraConfig={**LORA, "r": 64},
        learning_rate=1e-4,
    )
    evaluated(home, one, 0.5, 0.4, 0.6)
    evaluated(home, other, 0.8, 0.71, 0.87)
    return one, other


def test_only_what_differs_is_named(pair: tuple[Run, Run]) -> None:
    (group,) = comparison.compare(pair, list)
    planned = {line.key: line.values for line in group.planned}
    assert planned == {"LoraConfig.r": [8, 64], "training.learning_rate": [5e-3, 1e-4]}
    (row,) = group.measured
    change = comparison.difference(row)
    assert change is not None
    assert (change["value"], round(change["high"] - change["value"], 3)) == (pytest.approx(0.3), 0.128)


def test_answers_to_the_same_items_are_compared_in_pairs(home: Path) -> None:
    """Six of forty gained and none lost: beyond chance in pairs, within it by the intervals of each run."""
    from toolbox.evaluation import pairing
    from toolbox.evaluation.statistics import Share

    def answered(name: str, right: Share, sha256: str = "same") -> Run:
        run = evaluated(home, Run(home / "runs" / name), *_interval(right))
        units = {"tuned": pairing.units({"exact_match": right})}
        content = {"suite": "demo-qa", "sha256": sha256, "units": units}
        files.write_json(run.path / "evaluation" / "1-demo-qa.json", content)
        return run

    before, after = Share([True] * 10 + [False] * 30), Share([True] * 16 + [False] * 24)
    one, other = answered("one", before), answered("other", after)
    (group,) = comparison.compare([one, other], pairing.differences)
    (row,) = group.measured
    assert row.paired is not None
    assert row.paired["p"] == pytest.approx(after.difference(before).p)
    assert "better" in compared.tables(group, compared.letters([group]))[-1][2][0][-1]
    apart, elsewhere = answered("apart", before, "x"), answered("elsewhere", after, "y")
    (group,) = comparison.compare([apart, elsewhere], pairing.differences)
    assert "chance" in compared.tables(group, compared.letters([group]))[-1][2][0][-1]


def _interval(right: Any) -> tuple[float, float, float]:
    found = right.estimate()
    return found.value, found.low, found.high


def test_nested_lists_are_compared_place_by_place() -> None:
    one, other = (
        {"datasets": [{"name": "a", "rows": 1, "path": "/x"}, *more], "target_modules": ["q", "k"]}
        for more in ([], [{"name": "b", "rows": 2, "path": "/y"}])
    )
    assert [(line.key, line.values) for line in comparison.differing([one, other])] == [
        ("datasets.2.name", [None, "b"]), ("datasets.2.rows", [None, 2])
    ]  # fmt: skip


def test_the_verb_shows_and_writes_it(toolbox_cli: Any, home: Path, pair: tuple[Run, Run]) -> None:
    (pair[1].path / "tensorboard").mkdir()
    (pair[1].path / "tensorboard" / "events.out.tfevents.1").touch()
    evaluation = home / "runs" / f"evaluate-{pair[0].id}"
    words = [pair[0].path, pair[1].path, evaluation, "--output", home / "out", "--json"]
    done = toolbox_cli("runs", "compare", *map(str, words)).done()
    shown = done.err + done.out
    for text in ("1.5 GiB", "+50.0%", "better", "different verbs"):
        assert text in shown
    assert [group["verb"] for group in done.json["groups"]] == ["finetune", "evaluate"]
    assert done.json["tensorboard"].endswith(f"B-{pair[1].id}:{pair[1].path}/tensorboard")
    page = Path(done.json["report"]).read_text("utf-8")
    for picture in done.json["pictures"]:
        ElementTree.parse(picture)
        assert Path(picture).name in page
    assert {Path(picture).stem for picture in done.json["pictures"]} == {
        "finetune-loss", "finetune-eval_loss", "finetune-outcome", "finetune-evaluation", "evaluate-evaluation"
    }  # fmt: skip


def test_one_run_is_no_comparison(toolbox_cli: Any, pair: tuple[Run, Run]) -> None:
    refused = toolbox_cli("runs", "compare", pair[0].id, pair[0].id, "--json")
    assert refused.status == 2


def test_a_third_run_brings_a_third_column(home: Path, pair: tuple[Run, Run]) -> None:
    third = trained(home, {"eval_loss": 0.9}, LoraConfig={**LORA, "r": 16})
    (group,) = comparison.compare([*pair, third], list)
    names = compared.letters([group])
    assert list(names.values()) == ["A", "B", "C"]
    (_title, columns, rows) = compared.tables(group, names)[0]
    assert columns[1:] == ("A", "B", "C")
    assert ("LoraConfig.r", "8", "64", "16") in rows


def test_dots_lie_where_their_values_are() -> None:
    svg = ElementTree.fromstring(
        dot_chart("t", [("one", [Dot(0.0), Dot(0.5, 0.25, 0.75), None])], ["a", "b", "c"], domain=(0.0, 1.0))
    )
    circles = [float(circle.attrib["cx"]) for circle in svg.iter("{http://www.w3.org/2000/svg}circle")][:2]
    (line,) = [one for one in svg.iter("{http://www.w3.org/2000/svg}line") if one.attrib["class"].startswith("s")]
    assert circles[0] < float(line.attrib["x1"]) < circles[1] < float(line.attrib["x2"])
    assert circles[1] - float(line.attrib["x1"]) == pytest.approx(float(line.attrib["x2"]) - circles[1], abs=0.2)
