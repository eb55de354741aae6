"""`import toolbox` from Python: the printed examples as they stand, the same runs as the command line's, Ctrl-C."""

import ast
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toolbox
from tests.conftest import Cli
from toolbox import files, plan, runs
from toolbox.errors import BusyError, InputError

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "python.md", ROOT / "docs" / "python.en.md")
READMES = (ROOT / "README.md", ROOT / "README.en.md")
SHORT: dict[str, Any] = {
    "method": "lora", "learning_rate": 5e-3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.0, "max_length": 64, "eval_steps": 100,
}  # fmt: skip


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_printed_examples_run_as_they_are_printed(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(PAGES[1]):
        exec(compile(block, str(PAGES[1]), "exec"), names)
    printed = capsys.readouterr().out
    made = {run.status().stage: run for run in runs.every(home / "runs")}
    assert list(reversed(made)) == ["sft", "dpo", "merge", "evaluate"]
    assert all(run.status().state == "done" and (run.path / "report.md").exists() for run in made.values())
    assert made["sft"].result()["eval_loss"] < made["sft"].result()["eval_loss_before"]
    assert "10/10 · loss" in printed
    assert "10/10 · loss" in made["sft"].log_path.read_text()
    assert "rows; 0 cut at 512 tokens" in made["sft"].log_path.read_text()
    assert "Training" not in printed.partition("[Conversation")[0].rpartition("I am")[2], "DPO was to be silent"
    assert "Training" in made["dpo"].log_path.read_text()
    assert (tmp_path / "merged-model" / "model.safetensors").exists()
    assert "Did you mean learning_rate" in printed


def test_both_languages_and_the_readmes_print_the_same_code() -> None:
    one, other = ([ast.dump(ast.parse(block)) for block in blocks(page)] for page in PAGES)
    assert one == other
    for page, readme in zip(PAGES, READMES, strict=True):
        assert blocks(readme)[0] == blocks(page)[0]
        assert len(blocks(readme)[0].splitlines()) <= 12


def test_importing_is_light_and_everything_is_named() -> None:
    code = (
        "import sys, toolbox\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(toolbox.__all__) <= set(dir(toolbox)) and set(toolbox.__all__) == set(toolbox._NOUNS)\n"
        "for name in toolbox.__all__: assert getattr(toolbox, name).__doc__, name\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def interrupt_after(trainer: toolbox.Trainer, step: int) -> threading.Thread:
    """Send this process SIGINT, as Ctrl-C does, once so many steps are done."""

    def wait() -> None:
        while not (trainer.run and f'"step":{step},' in _text(trainer.run.path / "metrics.jsonl")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_train_gives_the_straight_runs_very_numbers(home: Path, tmp_path: Path) -> None:
    straight = toolbox.SFTTrainer(
        "demo", "demo-persona", max_steps=12, silent=True, output_dir=tmp_path / "out", **SHORT
    )
    result = straight.train()
    assert files.sha256(tmp_path / "out" / "adapter_model.safetensors") == digest(straight)

    before = signal.getsignal(signal.SIGINT)
    stopped = toolbox.SFTTrainer("demo", "demo-persona", max_steps=12, silent=True, **SHORT)
    thread = interrupt_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after step (\d+) of 12; what was done is saved"):
        stopped.train()
    thread.join()
    assert stopped.run
    assert signal.getsignal(signal.SIGINT) is before
    assert (stopped.run.status().state, stopped.run.alive(), stopped.run.has_checkpoint()) == (
        "interrupted",
        False,
        True,
    )
    again = toolbox.Trainer.resume("last", silent=True)
    assert again.run
    assert again.run.id == stopped.run.id
    assert again.train()["train_loss"] == result["train_loss"]
    assert digest(again) == digest(straight)
    assert stopped.train()["state"] == "done"
    with pytest.raises(InputError, match="can't be resumed"):
        toolbox.Trainer.resume(straight.run.id)  # type: ignore[union-attr]


def digest(trainer: toolbox.Trainer) -> str:
    assert trainer.run
    return files.sha256(trainer.run.adapter / "adapter_model.safetensors")


def test_rows_of_any_iterable_become_one_named_file(home: Path) -> None:
    import numpy as np

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(4):
            yield {"instruction": f"Say {number}", "output": str(number), "score": np.float32(number)}

    first = toolbox.SFTTrainer("demo", rows(), silent=True).plan.datasets[0]
    assert (first.format, first.rows) == ("alpaca", 4)
    assert toolbox.SFTTrainer("demo", list(rows()), silent=True).plan.datasets[0].name == first.name
    assert list((home / "datasets" / ".made").iterdir()) == [first.path]
    both = toolbox.SFTTrainer("demo", [first.name, toolbox.DatasetHub("demo-persona")], silent=True)
    assert [spec.rows for spec in both.plan.datasets] == [4, 304]
    with pytest.raises(InputError, match="Row 2 can't be written as JSON"):
        toolbox.SFTTrainer("demo", [{"prompt": "a", "response": "b"}, {"prompt": object()}], silent=True)


def test_a_trainers_keywords_are_finetunes_options() -> None:
    tuned = toolbox.apply_tuner("demo", "dora", r=4, target_modules=["q_proj"])
    preferences = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}] * 4
    made = toolbox.DPOTrainer(
        tuned,
        preferences,
        silent=True,
        loss_type="ipo",
        num_train_epochs=2,
        save_steps=7,
        seed=5,
        columns={"chosen": "chosen"},
    ).plan
    assert (made.method, made.stage, made.seed) == ("dora", "dpo", 5)
    assert made.LoraConfig["r"] == 4
    assert made.LoraConfig["target_modules"] == ["q_proj"]
    assert made.options
    assert made.options.loss_type == "ipo"
    assert (made.training.num_train_epochs, made.training.max_steps, made.training.save_steps) == (2.0, -1, 7)
    trainable = sum(weight.numel() for weight in tuned.model.parameters() if weight.requires_grad)
    assert 0 < trainable < tuned.facts.parameters / 100


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: toolbox.SFTTrainer("demo", "demo-persona", max_step=3), "Did you mean max_steps"),
        (lambda: toolbox.SFTTrainer("demo", "demo-persona", beta=0.1), "no setting 'beta'"),
        (lambda: toolbox.SFTTrainer("demo", "demo-persona", max_length=3), "a whole number, >= 16"),
        (lambda: toolbox.SFTTrainer("demo"), "--dataset is missing"),
        (lambda: toolbox.DPOTrainer("demo", "demo-persona"), "stage dpo can't learn from that"),
        (lambda: toolbox.SFTTrainer(toolbox.apply_tuner("demo"), "demo-persona", method="full"), "tuner already"),
        (lambda: toolbox.apply_tuner("demo", "lora", rank=3), "unknown"),
        (lambda: toolbox.apply_tuner("demo", "full", r=3), "no settings"),
        (lambda: toolbox.load_model("dem"), "Did you mean demo"),
        (lambda: toolbox.SFTTrainer("demo", "demo-persona").model, "Call train"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence_and_a_remedy(make: Any, told: str) -> None:
    with pytest.raises(toolbox.ToolboxError) as caught:
        make()
    assert told in str(caught.value)
    assert str(caught.value) == f"{caught.value.message}\n{caught.value.remedy}"


def test_a_failure_leaves_a_failed_run_and_a_run_alive_is_refused(home: Path) -> None:
    trainer = toolbox.SFTTrainer("demo", "demo-persona", silent=True, max_steps=1, **SHORT)
    trainer.plan.entry = "tests.jobs:crash"
    with pytest.raises(toolbox.ToolboxError, match="ZeroDivisionError") as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert trainer.run
    assert trainer.run.status().state == "failed"
    assert "Traceback" in trainer.run.log_path.read_text()
    lock = trainer.run.lock()
    with pytest.raises(BusyError):
        trainer.train()
    os.close(lock)


@pytest.mark.slow
def test_python_and_the_command_line_train_the_very_same(home: Path, toolbox_cli: Cli) -> None:
    trainer = toolbox.SFTTrainer("demo", "demo-persona", max_steps=6, silent=True, seed=7)
    mine = trainer.train()
    words = ["finetune", "--model", "demo", "--dataset", "demo-persona", "--stage", "sft", "--seed", "7"]
    theirs = toolbox_cli(*words, "--set", "max_steps=6", "--yes", "--json").done().json
    assert theirs["train_loss"] == mine["train_loss"]
    assert files.sha256(Path(theirs["adapter"]) / "adapter_model.safetensors") == digest(trainer)
    other = plan.load(home / "runs" / theirs["run"] / "plan.yaml")
    assert {k: v for k, v in vars_of(other).items() if k != "why"} == {
        k: v for k, v in vars_of(trainer.plan).items() if k != "why"
    }
    listed = {run["id"]: run for run in toolbox_cli("runs", "list", "--json").done().json["runs"]}
    assert trainer.run
    assert listed[trainer.run.id]["state"] == "done"
    again = toolbox_cli("runs", "reproduce", trainer.run.id, "--yes", "--json").done().json
    assert again["differed"] == []
    assert "train_loss" in {line["name"] for line in again["held"]}


def vars_of(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__ if name not in ("device", "estimate")}
