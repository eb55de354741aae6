"""Rows 16 and 17 of the faults: memory runs out in a training or in its evaluation, and the training goes on."""

import errno
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import Cli
from plans import LORA, NO_ESTIMATE, finetune_plan, finetune_run, write_jsonl
from safetensors.torch import load_file
from test_faults import PLACES as CITIES
from test_faults import rows
from test_training import Recorder

from toolbox import datasets, job, kernel, plan, plugins, rungs, runs, stages, training
from toolbox.config import Home
from toolbox.datasets import DatasetSpec
from toolbox.errors import OutOfMemoryError, lacks_memory
from toolbox.runs import Run, Silent, Status
from toolbox.training import batches, checkpoints, state
from toolbox.training.ladder import Ladder
from toolbox.training.rows import Sample
from toolbox.training.stages import reference
from toolbox.training.tuners.adapters import AdapterTuner

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
    path = Home(home).prepare().path / f"{stage}.jsonl"
    return datasets.resolve(str(write_jsonl(path, rows(stage))), Home(home))


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
        marks=() if (stage, place, accumulation, at_random) == ("sft", "backward", 2, False) else pytest.mark.slow,
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
    name = f"{stage}/{place}/{accumulation}"
    steps = sorted(random.Random(name).sample(range(2, STEPS), 2))
    if place == "evaluation":
        steps = [EVAL_STEPS + 1, 2 * EVAL_STEPS + 1]
    wish = {"steps": steps} if at_random else {"tokens": TOKENS[stage, place == "evaluation"]}
    monkeypatch.setenv("PRESSURE", json.dumps({"name": name, "place": place, **wish}))
    run = pressed_run(shared_home, stage, accumulation)
    job.carry_out(run, job.Job(run))
    agree(run, straight)
    taken = run.result()["ladder"]
    assert taken == [msgspec.to_builtins(rung) for rung in rungs.read(run)]
    assert len(taken) == 2 if at_random else taken
    if place == "evaluation":
        assert {rung["kind"] for rung in taken} == {"evaluation"}
        return
    sizes = [8 // accumulation >> down for down in range(1, len(taken) + 1)]
    expected = [{"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size} for size in sizes]
    assert [rung["training"] for rung in taken] == expected
    if at_random:
        assert [rung["step"] for rung in taken] == [step - 1 for step in steps]
        said = capsys.readouterr().out
        for step in steps:  # torn weights are thrown away; whole ones are saved at once, so that nothing is lost
            kept = step - 1 if place != "optimizer" else (step - 1) // SAVE_STEPS * SAVE_STEPS
            assert not kept or f"Going on after step {kept}\n" in said
    assert not plugins.find("callback", "pressure").on_train_begin.__globals__["KEPT"].count(True)


def test_what_is_about_memory_is_told_from_what_is_not() -> None:
    """One function decides for the training, for an evaluation and for the sentence that a person reads."""
    cpu = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    lacking: list[Exception] = [
        torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(cpu), MemoryError(), OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"), OSError(errno.ENOMEM, "Cannot allocate memory"),
    ]  # fmt: skip
    others = [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(errno.ENOSPC, "No space left")]
    assert [lacks_memory(error) for error in [*lacking, *others]] == [True] * len(lacking) + [False] * len(others)


def to_the_bottom(stairs: Ladder) -> OutOfMemoryError:
    """What it ends with when memory runs out again and again."""
    for _rung in range(20):
        try:
            stairs.descend(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        except OutOfMemoryError as error:
            return error
    raise AssertionError("the ladder has no end")


def test_the_rungs_come_in_their_order_and_only_as_far_as_was_allowed(home: Path) -> None:
    for allowed, kinds in ((False, []), (True, ["4bit", "shorter"])):
        made = finetune_plan(
            home, per_device_train_batch_size=6, gradient_accumulation_steps=2, max_length=512, allow_4bit=allowed,
            allow_shorter=allowed,
        )  # fmt: skip
        run = runs.create(home / "runs", "test", made)
        stairs = Ladder(made, run, Silent())
        stairs.reached, stairs.longest = 4, 300
        bottom = to_the_bottom(stairs)
        assert [rung.training.get("per_device_train_batch_size") for rung in stairs.rungs[:4]] == [4, 3, 2, 1]
        assert [rung.kind for rung in stairs.rungs[4:]] == ["checkpointing", *kinds]
        tried = ["4 rows at once", "gradient checkpointing", *(["base in 4 bits", "150 tokens"] if allowed else [])]
        assert all(words in bottom.message for words in tried)
        assert ("--allow-4bit" in bottom.remedy) == (not allowed)
        again = Ladder(made, run, Silent())
        assert again.plan == stairs.plan
        assert again.plan.training.per_device_train_batch_size * again.plan.training.gradient_accumulation_steps == 12
        assert (again.plan.method, again.plan.quantization) == (("qlora", "nf4") if allowed else ("lora", "none"))


def test_what_no_smaller_batch_helps_makes_none_smaller(home: Path) -> None:
    """While the model is loaded, and where a single row is too much."""
    for reached, error in ((None, MemoryError()), (4, OutOfMemoryError("A single row."))):
        run = finetune_run(home)
        stairs = Ladder(plan.load(run.plan_path), run, Silent())  # type: ignore[arg-type]
        stairs.reached = reached
        with pytest.raises(OutOfMemoryError):
            stairs.descend(error)
        assert not stairs.rungs
    with pytest.raises(ZeroDivisionError):
        stairs.descend(ZeroDivisionError())


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "kto", "rm"))]
)
def test_a_run_with_a_probe_gives_the_very_numbers_of_one_without(stage: str, home: Path) -> None:
    """With dropout, whose draws would tell that a generator is another."""
    found = []
    for estimate in (NO_ESTIMATE, MOST_OF_IT):
        run = pressed_run(home, stage, 2, optim="adamw_torch", LoraConfig=LORA, estimate=estimate, max_steps=3)
        recorder = Recorder()
        result = training.run(plan.load(run.plan_path), run, recorder)  # type: ignore[arg-type]
        adapter = load_file(run.adapter / "adapter_model.safetensors")
        numbers = {name: weight.tolist() for name, weight in adapter.items()}
        found.append((recorder.losses(), result["eval_loss"], numbers))
        assert bool(result["probe_peak_bytes"]) == (estimate is MOST_OF_IT)
    assert found[0] == found[1]


def test_a_probe_takes_the_heaviest_micro_batch_of_all_that_the_run_will_see() -> None:
    sizes = np.random.default_rng(1).integers(5, 500, size=53)
    sized = [Sample("", place, [0] * int(size), []) for place, size in enumerate(sizes)]
    made = finetune_plan(Path("none"), per_device_train_batch_size=2, gradient_accumulation_steps=3).training
    for steps in (4, 9, 20):
        each = [micro for step in range(steps) for micro in batches.of_step(sized, step, made, 7)]
        found = [batches.of_step(sized, step, made, 7)[place] for step, place in batches.largest(sizes, steps, made, 7)]
        every, chosen = ([sum(sample.size for sample in micro) for micro in micros] for micros in (each, found))
        assert chosen == sorted(every, reverse=True)[: len(chosen)]


def test_a_job_that_the_kernel_killed_for_memory_takes_less_when_it_is_resumed_or_done_again(home: Path) -> None:
    """Nothing can be caught then; the control group's counter of kills tells it afterwards."""
    made = finetune_plan(home)
    killed, fine = (runs.create(home / "runs", "test", made) for _run in range(2))
    for run, kills in ((killed, -1), (fine, 0)):
        here = kernel.boot()
        before = msgspec.structs.replace(here, oom_kills=here.oom_kills + kills)
        run.write_status(Status(state="running", boot=before))
        assert run.status().state == "lost"
        again = runs.create(home / "runs", "test", made)
        rungs.inherit(again, run)
        for started in (run, again):
            started.write_status(started.begun())
            stairs = Ladder(made, started, Silent())
            stairs.heed_kill()
            assert [rung.kind for rung in rungs.read(started)] == (["micro_batch"] if run is killed else [])
            assert stairs.plan.training.per_device_train_batch_size == (2 if run is killed else 4)


@pytest.mark.slow
def test_a_run_reproduced_heeds_what_was_learnt_and_the_report_tells_it(home: Path, toolbox_cli: Cli) -> None:
    """Through the command line and real jobs; the calibration is told each lack of memory once."""
    pressed = {"PRESSURE": json.dumps({"place": "forward", "tokens": TOKENS["sft", False]})}
    words = ["--model", "demo", "--dataset", str(spec_of(home, "sft").path), "--plugin", str(PLUGIN), "--yes", "--json"]
    batch = ["--per-device-train-batch-size", "8", "--set", f"max_steps={STEPS}", "LoraConfig.lora_dropout=0"]
    made = toolbox_cli("finetune", *words, *batch, env=pressed).done()
    run, taken = Run(home / "runs" / made.json["run"]), made.json["ladder"]
    assert taken
    assert {rung["kind"] for rung in taken} == {"micro_batch"}
    assert "Out of memory: going on with" in made.err
    assert f"{taken[0]['training']['per_device_train_batch_size']} rows at once" in (run.path / "report.md").read_text()
    again = toolbox_cli("runs", "reproduce", run.id, "--json", env=pressed).done().json
    assert again["ladder"] == taken
    for name in ("train_loss", "eval_loss"):
        assert again[name] == pytest.approx(made.json[name], rel=1e-4)
    lines = (home / "calibration.jsonl").read_text().splitlines()
    assert [json.loads(line).get("out_of_memory", False) for line in lines] == [True] * len(taken) + [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["4bit", "shorter"])
def test_what_was_allowed_is_done_once_nothing_else_helps(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps that were done before are not lost: the adapter goes on over the other base, or with shorter rows."""
    monkeypatch.setenv("PRESSURE", json.dumps({"name": kind, "place": "backward", "steps": [2, 3, 4]}))
    allowed = {"allow_4bit": kind == "4bit", "allow_shorter": kind == "shorter"}
    long = [{"instruction": "Who? " * 60, "output": f"{place} is lovely. " * 20} for place in CITIES * 2]
    spec = datasets.resolve(str(write_jsonl(Home(home).prepare().path / "long.jsonl", long)), Home(home))
    changes: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 400}
    run = pressed_run(home, "sft", 2, datasets=[spec], **changes, **allowed)
    result = job.carry_out(run, job.Job(run))
    assert [rung["kind"] for rung in result["ladder"]] == ["micro_batch", "checkpointing", kind]
    said = capsys.readouterr().out
    assert all(f"Going on after step {step}\n" in said for step in (1, 2, 3))
    assert result["steps"] == STEPS
    losses = [loss for _step, loss in curve(run, "loss")]
    assert losses[-1] < losses[0] - 0.5
    assert max(losses[2:]) < losses[0]
    if kind == "shorter":
        assert result["rows_cut"] == result["rows"] + result["rows_held_out"] + result["rows_left_out"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["reference", "saving", "exporting"])
def test_memory_that_runs_out_elsewhere_ends_no_run(
    place: str, shared_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pass over all rows before the first step, while a checkpoint is written, and at the very end."""
    straight = undisturbed(shared_home, "dpo", 1)
    of, name = {
        "reference": (reference.Forward, "logps"), "saving": (state, "write"), "exporting": (AdapterTuner, "export")
    }[place]  # fmt: skip
    really, calls = getattr(of, name), []

    def once(*given: Any, **named: Any) -> Any:
        calls.append(place)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return really(*given, **named)

    monkeypatch.setattr(of, name, once)
    if place == "exporting":
        calls.append(place)
    run = pressed_run(shared_home, "dpo", 1)
    job.carry_out(run, job.Job(run))
    agree(run, straight)
    assert [rung["kind"] for rung in run.result()["ladder"]] == ["micro_batch"]


@pytest.mark.slow
def test_from_python_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toolbox

    monkeypatch.setenv("PRESSURE", json.dumps({"place": "forward", "tokens": TOKENS["sft", False]}))
    trainer = toolbox.SFTTrainer(
        "demo", str(spec_of(home, "sft").path), plugin=[str(PLUGIN)], max_steps=2, per_device_train_batch_size=8,
        silent=True,
    )  # fmt: skip
    assert trainer.train()["ladder"]
