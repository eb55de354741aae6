"""`plan --exact`: the dry run's peak against that of a real step, and the verb as a person runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from hardware import QWEN_7B, ROOT, write_model
from plans import demo_facts, finetune_plan

from toolbox import device
from toolbox.errors import InputError, Interrupted
from toolbox.plan import ExactPlan
from toolbox.runs import Run, Silent
from toolbox.stages import Grpo, Ppo

STEPS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": "full", "gradient_checkpointing": True},
    "pairs": {"stage": "dpo", "gradient_accumulation_steps": 1},
}
LONGER: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16", "LoraConfig": {"r": 8, "target_modules": "all-linear"}},
    "full in bfloat16": {"method": "full", "dtype": "bfloat16"},
    "dora": {"method": "dora", "LoraConfig": {"r": 8, "target_modules": "all-linear", "use_dora": True}},
    "qlora": {"method": "qlora", "dtype": "bfloat16"},
    "kto": {"stage": "kto"},
    "orpo": {"stage": "orpo", "method": "full"},
    "rm": {"stage": "rm"},
    "grpo": {"stage": "grpo", "options": Grpo(max_completion_length=64)},
    "ppo": {"stage": "ppo", "options": Ppo(response_length=64), "method": "full"},
    "lisa": {"method": "lisa", "LoraConfig": {}, "blocks": {"LisaConfig": {"layers": 2, "interval_steps": 5}}},
    "galore": {
        "method": "galore", "optim": "galore_adamw", "LoraConfig": {}, "blocks": {"GaloreConfig": {"rank": 16}},
    },
}  # fmt: skip


def both(home: Path, **changes: Any) -> tuple[int, int]:
    """(the peak of a dry run, that of the same step on the real model), in bytes of tensors."""
    from toolbox.training import exact
    from toolbox.training.stages import stage_for
    from toolbox.training.tuner import tuner_for

    plan = finetune_plan(home, **{"max_length": 192, "per_device_train_batch_size": 2, **changes})
    tuner = tuner_for(plan)
    model = tuner.load("cpu")
    stage_for(plan).extend(model)
    weights: list[Any] = list(model.parameters())
    states = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
    scales = [scale for state in states for scale in (state.absmax, state.code)]
    real = exact.count(plan, tuner, model, [*weights, *model.buffers(), *scales])
    return exact.peak(plan).peak_bytes, real.peak_bytes


@pytest.mark.parametrize("changes", STEPS.values(), ids=STEPS)
def test_a_dry_run_counts_what_a_real_step_takes(home: Path, changes: dict[str, Any]) -> None:
    counted, real = both(home, **changes)
    assert counted == pytest.approx(real, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("changes", LONGER.values(), ids=LONGER)
def test_so_it_does_whatever_is_trained(home: Path, changes: dict[str, Any]) -> None:
    counted, real = both(home, **changes)
    assert counted == pytest.approx(real, rel=0.01)


def test_the_parts_of_the_peak_add_up_and_checkpointing_lowers_it(home: Path) -> None:
    from toolbox.training import exact

    gpu = device.assume("NVIDIA A10:24GiB")
    plain, kept_less = (
        exact.peak(finetune_plan(home, device=gpu, dtype="bfloat16", gradient_checkpointing=asked))
        for asked in (False, True)
    )
    assert sum(plain.parts_bytes.values()) == plain.peak_bytes
    assert kept_less.peak_bytes < 0.6 * plain.peak_bytes
    assert kept_less.parts_bytes["weights"] == plain.parts_bytes["weights"]
    assert (plain.phase, kept_less.phase) == ("forward", "backward") or plain.phase == "backward"


def test_a_model_that_transformers_does_not_know_is_named(home: Path, tmp_path: Path) -> None:
    from toolbox.training import exact

    strange = write_model(tmp_path / "strange", {**QWEN_7B, "model_type": "strange"})
    facts = msgspec.structs.replace(demo_facts(), path=strange)
    with pytest.raises(InputError, match="strange") as told:
        exact.peak(finetune_plan(home, model=facts))
    assert "plugin" in told.value.remedy


def test_a_dry_run_that_is_stopped_stops(home: Path) -> None:
    from toolbox.training import exact

    class Stopping(Silent):
        stopping = True

    made = finetune_plan(home)
    plan = ExactPlan(**{name: getattr(made, name) for name in made.__struct_fields__})
    with pytest.raises(Interrupted):
        exact.run(plan, Run(home), Stopping())


@pytest.mark.slow
def test_the_peak_of_a_7b_is_counted_without_its_weights(toolbox_cli: Cli, home: Path, tmp_path: Path) -> None:
    qwen = write_model(tmp_path / "qwen", QWEN_7B)
    asked = ("plan", "--model", str(qwen), "--assume-device", "NVIDIA A10:24GiB", "--method", "qlora", "--exact")
    answer = toolbox_cli(*asked, "--json").done().json
    assert sum(answer["exact_parts_bytes"].values()) == answer["exact_peak_bytes"]
    assert 4 << 30 < answer["exact_peak_bytes"] < 24 << 30
    assert not list((home / "runs").iterdir())
    said = toolbox_cli(*asked, "--lang", "zh").done().out
    assert "预测" in said
    assert "实数" in said


@pytest.mark.slow
def test_a_known_model_is_run_dry_though_nothing_of_it_is_here(toolbox_cli: Cli) -> None:
    asked = ("plan", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--assume-device", "NVIDIA A10:24GiB", "--exact")
    answer = toolbox_cli(*asked, "--method", "lora", "--json").done().json
    assert answer["exact_parts_bytes"]["weights"] == pytest.approx(494e6 * 2, rel=0.01)


@pytest.mark.slow
def test_a_dry_run_ends_with_a_sentence_where_it_cannot_be(toolbox_cli: Cli, home: Path, tmp_path: Path) -> None:
    strange = write_model(tmp_path / "strange", {**QWEN_7B, "model_type": "strange"})
    answer = toolbox_cli("plan", "--model", str(strange), "--assume-device", "NVIDIA A10:24GiB", "--exact")
    assert answer.status == 2
    assert "strange" in answer.err
    assert "Traceback" not in answer.err
    assert not list((home / "runs").iterdir())


@pytest.mark.slow
def test_ctrl_c_ends_a_dry_run(toolbox_environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    qwen = write_model(tmp_path / "qwen", {**QWEN_7B, "num_hidden_layers": 200})
    words = ["plan", "--model", str(qwen), "--assume-device", "A100:80GiB", "--exact"]
    child = subprocess.Popen([sys.executable, "-P", "-m", "toolbox", *words], env=toolbox_environ, cwd=tmp_path)
    while child.poll() is None:
        found = [json.loads(path.read_text()) for path in (home / "runs").glob("*/status.json")]
        if any("Dry" in status["phase"] for status in found):
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    assert not list((home / "runs").iterdir())


@pytest.mark.slow
def test_the_memory_model_is_near_what_dry_runs_counted() -> None:
    bench = [sys.executable, "bench/exact.py"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(bench, capture_output=True, text=True, cwd=ROOT, env=environ, check=True).stdout
    rows, median = re.findall(r"^all +(\d+) rows: median ([\d.]+)%", told, re.MULTILINE)[0]
    assert int(rows) >= 250
    assert float(median) <= 5
