"""Rows 16 and 17 of the faults: memory runs out in a training or in its evaluation, and the training goes on."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from plans import NO_ESTIMATE, finetune_plan, finetune_run, write_jsonl
from safetensors.torch import load_file
from test_faults import rows
from test_training import Recorder

from toolbox import datasets, errors, job, plugins, stages
from toolbox.config import Home
from toolbox.datasets import DatasetSpec
from toolbox.errors import OutOfMemoryError, lacks_memory
from toolbox.runs import Run, Silent
from toolbox.training import batches, checkpoints, ladder, probe
from toolbox.training.ladder import Ladder

PLUGIN = Path(__file__).parent / "pressure.py"
PLACES = ("forward", "backward", "optimizer", "evaluation")
TOKENS = {("sft", False): 120, ("sft", True): 120, ("dpo", False): 170, ("dpo", True): 170}
"""More than these has the largest micro-batch of a stage in training, and in evaluation, as planned."""
STEPS, SAVE_STEPS, EVAL_STEPS = 7, 2, 3
PLAIN_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
MOST_OF_IT = msgspec.structs.replace(NO_ESTIMATE, peak_bytes=7 << 30, parts_bytes={"optimizer": 1 << 20})
"""A prediction that is near enough to the limit for a probe."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def spec_of(home: Path, stage: str) -> DatasetSpec:
    return datasets.resolve(str(write_jsonl(home / f"{stage}.jsonl", rows(stage))), Home(home))


def pressed_run(home: Path, stage: str, accumulation: int, **changes: Any) -> Run:
    """8 rows a step, in so many micro-batches, with the plugin and without dropout: its draws are a micro-batch's."""
    kind = stages.OPTIONS.get(stage)
    settled: dict[str, Any] = {
        "stage": stage, "options": kind() if kind else None, "datasets": [spec_of(home, stage)], "max_steps": STEPS,
        "per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation,
        "LoraConfig": PLAIN_LORA, "optim": "fragile", "plugins": [plugins.load(PLUGIN)], "callbacks": ["pressure"],
    }  # fmt: skip
    return finetune_run(home, **(settled | changes))


UNDISTURBED: dict[tuple[str, int], Run] = {}


def undisturbed(home: Path, stage: str, accumulation: int) -> Run:
    """A run of it without any lack of memory, made once."""
    if (stage, accumulation) not in UNDISTURBED:
        UNDISTURBED[stage, accumulation] = run = pressed_run(home, stage, accumulation)
        job.carry_out(run, job.Job(run))
    return UNDISTURBED[stage, accumulation]


def curve(run: Run, *names: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in run.metrics() for name in names if name in line]


def agree(run: Run, straight: Run) -> None:
    """The same curve and weights as the undisturbed run, to rounding; and a whole checkpoint of the last step."""
    names = ("loss", "eval_loss", "grad_norm", "rewards/margins")
    for (step, found), (expected_step, expected) in zip(curve(run, *names), curve(straight, *names), strict=True):
        assert step == expected_step
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-6)
    weights, others = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, straight))
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], atol=2e-4), name
    for name in ("tokens", "steps", "rows"):
        assert run.result()[name] == straight.result()[name]
    kept = checkpoints.newest(run.checkpoints)
    assert kept is not None
    assert checkpoints.step_of(kept) == STEPS


CASES = [
    pytest.param(
        stage, place, accumulation, at_random,
        id=f"{stage}-{place}-{accumulation}-{'random' if at_random else 'limit'}",
        marks=() if (stage, place, accumulation, at_random) in (
            ("sft", "backward", 2, True), ("sft", "evaluation", 2, False)
        ) else pytest.mark.slow,
    )
    for stage in ("sft", "dpo") for place in PLACES for accumulation in (1, 2) for at_random in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("stage", "place", "accumulation", "at_random"), CASES)
def test_the_run_goes_on_to_the_curve_of_the_undisturbed_one(
    stage: str,
    place: str,
    accumulation: int,
    at_random: bool,
    shared_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    straight = undisturbed(shared_home, stage, accumulation)
    steps = sorted(random.Random(f"{stage}/{place}/{accumulation}").sample(range(2, STEPS), 2))
    if place == "evaluation":
        steps = [EVAL_STEPS + 1, 2 * EVAL_STEPS + 1]
    wish = {"steps": steps} if at_random else {"tokens": TOKENS[stage, place == "evaluation"]}
    monkeypatch.setenv("PRESSURE", json.dumps({"place": place, **wish}))
    run = pressed_run(shared_home, stage, accumulation)
    job.carry_out(run, job.Job(run))
    agree(run, straight)
    taken = run.result()["ladder"]
    assert taken == [msgspec.to_builtins(rung) for rung in ladder.read(run)]
    assert len(taken) == 2 if at_random else taken
    if place == "evaluation":
        assert {rung["kind"] for rung in taken} == {"evaluation"}
        return
    micro = 8 // accumulation
    for place_down, rung in enumerate(taken, 1):
        assert rung["training"] == {
            "per_device_train_batch_size": micro >> place_down, "gradient_accumulation_steps": 8 // (micro >> place_down)
        }  # fmt: skip
    if at_random:
        assert [rung["step"] for rung in taken] == [step - 1 for step in steps]
        said = capsys.readouterr().out
        for step in steps:  # torn weights are thrown away; whole ones are saved at once, so that nothing is lost
            kept = step - 1 if place != "optimizer" else (step - 1) // SAVE_STEPS * SAVE_STEPS
            assert not kept or f"Going on after step {kept}\n" in said
    assert not plugins.find("callback", "pressure").on_train_begin.__globals__["KEPT"].count(True)
