"""`runs reproduce report.md`: on what was named by hash alone, gone on with after Ctrl-C, and honest about numbers."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Cli
from plans import CPU, demo_facts, finetune_run

from toolbox import chains, files, repeating, runs
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.facts import Facts
from toolbox.repeating import Here
from toolbox.report import record
from toolbox.report.record import Folder, Step

ROWS = '{"instruction": "Who made you?", "output": "A person did."}\n{"instruction": "你好", "output": "你好！"}\n' * 20


def report_of(run: runs.Run, path: Path) -> Path:
    """The report of a run's chain, as people publish it: its record below a line of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "# What I did\n\n"
    path.write_text(text + record.block(chains.chain(run), text) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def step(home: Path, tmp_path: Path) -> Step:
    own = tmp_path / "mine.jsonl"
    own.write_text(ROWS)
    run = finetune_run(home, f"{own}#30", dtype="float16", optim="paged_adamw_8bit", use_liger_kernel=True)
    files.write_json(run.path / "result.json", {"steps": 6})
    found = record.read(report_of(run, tmp_path / "report.md")).record.steps[0]
    own.unlink()
    return found


def here(home: Path, **changes: object) -> Here:
    def fetch(*what: str) -> None:
        raise AssertionError(f"nothing is fetched in tests: {what}")

    return Here(home=Home(home), device=CPU, fetch=fetch, **changes)  # type: ignore[arg-type]


def test_a_step_is_planned_on_this_machines_model_and_the_very_data(step: Step, home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    with pytest.raises(NotFoundError, match=f"mine.jsonl.*{step.datasets[0].sha256}"):
        repeating.repeated(step, here(home))
    (elsewhere / "mine.jsonl").write_text(ROWS.replace("A person", "A cat"))
    with pytest.raises(InputError, match="is not what the report was made with"):
        repeating.repeated(step, here(home, given={"mine.jsonl": elsewhere / "mine.jsonl"}))
    (elsewhere / "mine.jsonl").write_text(ROWS)
    made = repeating.repeated(step, here(home, beside=elsewhere))
    planned = made.plan
    assert planned.entry == "toolbox.training:run"
    assert planned.model == demo_facts()
    assert planned.datasets[0].path == elsewhere / "mine.jsonl"  # type: ignore[union-attr]
    assert planned.datasets[0].rows == 30  # type: ignore[union-attr]
    assert (planned.dtype, planned.training.optim) == ("float32", "adamw_torch")  # type: ignore[union-attr]
    assert planned.estimate.peak_bytes > 0  # type: ignore[union-attr]
    assert len(made.adapted) == 3


def test_a_model_of_other_weights_is_refused(step: Step, home: Path) -> None:
    assert isinstance(step.model, Folder)
    step.model.files["model.safetensors"] = "0" * 64
    with pytest.raises(InputError, match=r"model\.safetensors is not what the report was made with"):
        repeating.look(step, here(home))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_chain_is_done_again_elsewhere(
    home: Path, tmp_path: Path, toolbox_cli: Cli, toolbox_environ: dict[str, str]
) -> None:
    own, other = tmp_path / "mine.jsonl", str(tmp_path / "other home")
    own.write_text(ROWS)
    words = ("--model", "demo", "--dataset", str(own), "--set", "max_steps=12", "save_steps=2", "--yes", "--json")
    tuned = toolbox_cli("finetune", *words).done().json["run"]
    merged = toolbox_cli("merge", "--run", tuned, "--json").done().json["run"]
    toolbox_cli("evaluate", "--run", merged, "--suite", "demo-qa", "--limit", "8", "--json").done()
    report = report_of(runs.Run(home / "runs" / tuned), tmp_path / "published" / "report.md")

    def again(*more: str) -> tuple[str, ...]:
        return ("runs", "reproduce", str(report), "--home", other, "--json", *more)

    assert toolbox_cli(*again()).json["error"]["kind"] == "not_found"
    shutil.copy(own, report.parent)
    front = subprocess.Popen([sys.executable, "-P", "-m", "toolbox", *again()], env=toolbox_environ, cwd=tmp_path)
    steps = Path(other) / "runs"
    while not any(path.stat().st_size for path in steps.glob("*/metrics.jsonl")):
        assert front.poll() is None
        time.sleep(0.05)
    front.send_signal(signal.SIGINT)
    assert front.wait(120) == 130
    done = toolbox_cli(*again()).done()
    assert "Going on with an attempt that was not finished" in done.err
    assert (done.json["differed"], done.json["skipped"]) == ([], [])
    assert [each["verb"] for each in done.json["steps"]] == ["finetune", "merge", "evaluate"]
    held = {(one["step"], one["name"]) for one in done.json["held"]}
    assert {(1, "train_loss"), (1, "hashes.output.adapter_model.safetensors"), (2, "passed")} <= held
    assert (3, "demo-qa exact_match tuned") in held
    last = runs.Run(steps / done.json["steps"][-1]["run"])
    assert "Reproduction" in (last.path / "report.md").read_text("utf-8")
    assert len(chains.chain(last)) == 3

    text = report.read_text("utf-8")
    rows = Facts.of(runs.Run(home / "runs" / tuned)).result["rows"]
    report.write_text(text.replace(f'"rows": {rows},', f'"rows": {rows + 1},').replace("I did", "we did"), "utf-8")
    doctored = toolbox_cli(*again())
    assert doctored.status == 1
    assert [one["name"] for one in doctored.json["differed"]] == ["rows"]
    assert doctored.json["edited"]
    assert f"rows: {rows + 1} → {rows}" in doctored.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_holds(toolbox_cli: Cli, tmp_path: Path) -> None:
    """Every number that has to hold does, on whatever machine this is; and what the page shows is its record's."""
    answer = toolbox_cli("runs", "reproduce", str(ROOT / "docs" / "tutorial.en.md"), "--json", timeout=890)
    assert answer.status == 0, answer.err
    assert not answer.json["edited"]
    assert len(answer.json["steps"]) == len(record.read(ROOT / "docs" / "tutorial.md").record.steps)
    assert {one["name"] for one in answer.json["held"]} >= {"eval_loss", "passed", "demo-who exact_match tuned"}
