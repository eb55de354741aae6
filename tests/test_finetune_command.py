"""`finetune` from the command line: what it shows, refuses and starts; the training has its own tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hardware import A10, with_gpus

from toolbox import device, files, plan, runs
from toolbox.commands import finetune
from toolbox.commands import plan as plan_verb
from toolbox.errors import DoesNotFitError, InputError
from toolbox.ui import Terminal

SHORT = ("finetune", "--dataset", "demo-persona", "--set", "max_steps=2", "save_steps=2", "eval_steps=2", "--yes")

SECRETS = {"HF_TOKEN": "hf_CanaryOfHuggingFace", "MODELSCOPE_API_TOKEN": "ms-canary", "YCDY_SERVE_API_KEY": "sk-canary"}


def test_a_run_from_plan_to_adapter(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli(*SHORT, "--json", env=SECRETS).done()
    result = answer.json
    wanted = {"run", "state", "adapter", "steps", "train_loss", "eval_loss", "peak_bytes", "predicted_peak_bytes"}
    assert wanted <= set(result)
    assert (result["state"], result["steps"]) == ("done", 2)
    assert result["run"].endswith("-sft-demo")
    assert (Path(result["adapter"]) / "adapter_model.safetensors").is_file()
    assert f"merge --run {result['run']}" in answer.err
    made = plan.load(home / "runs" / result["run"] / "plan.yaml")
    assert isinstance(made, plan.FinetunePlan)
    assert (made.recipe, made.training.max_steps) == ("cpu-tiny", 2)
    assert made.estimate.peak_bytes == result["predicted_peak_bytes"]
    _was_measured_and_corrects_the_next_plan(toolbox_cli, result)
    for path in home.rglob("*"):
        assert not path.is_file() or not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path
        assert home / "runs" not in path.parents or path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
    assert not any(secret in answer.out + answer.err for secret in SECRETS.values())


def _was_measured_and_corrects_the_next_plan(toolbox_cli: Cli, result: dict[str, Any]) -> None:
    predicted, measured = result["predicted"], result["measured"]
    for name in ("peak_bytes", "time_s", "tokens_per_s", "disk_bytes"):
        assert predicted[name] > 0
        assert measured[name] > 0
    words = [word for word in SHORT[1:] if word != "--yes"]
    again = toolbox_cli("plan", *words, "--json").done().json
    assert again["calibrated_by_runs"] == 1
    assert abs(again["time_s"] - measured["time_s"]) < abs(predicted["time_s"] - measured["time_s"])
    report = toolbox_cli("runs", "report", result["run"], "--lang", "en").done().out
    assert "Predicted" in report
    toolbox_cli("runs", "remove", result["run"], "--yes").done()
    (noted,) = toolbox_cli("plan", "--history", "--json").done().json["runs"]
    assert noted["measured"]["time_s"] == measured["time_s"]


def test_in_the_background_it_returns_at_once(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli(*SHORT, "--background", "--json").done().json
    run = runs.find(home / "runs", answer["run"])
    try:
        assert answer["state"] in ("running", "done")
    finally:
        run.stop(force=True)


def test_a_dry_run_leaves_nothing(toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("finetune", "--dataset", "demo-persona", "--dry-run", "--json").done().json
    assert (answer["recipe"], answer["fits"]) == ("cpu-tiny", True)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--dataset"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--dataset", "demo-persona", "--model", "no-such-model"], "no-such-model"),
        (["--dataset", "demo-persona", "--model", "no/such"], "no/such"),
        (["--dataset", "demo-persona", "--set", "lerning_rate=1"], "lerning_rate"),
        (["--dataset", "demo-persona", "--recipe", "$(touch x)"], "$(touch x)"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(toolbox_cli: Cli, home: Path, words: list[str], said: str) -> None:
    answer = toolbox_cli("finetune", *words, "--json")
    assert answer.status == 2
    assert said in answer.json["error"]["message"]
    assert answer.err.startswith("✗ ")
    assert "Traceback" not in answer.err
    assert not (home / "runs").exists()


def test_a_broken_row_is_named_before_anything_starts(toolbox_cli: Cli, tmp_path: Path, home: Path) -> None:
    rows = [json.dumps({"instruction": f"q{n}", "output": "a"}) for n in range(80)]
    rows[56] = '{"instruction": "q'
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    answer = toolbox_cli("finetune", "--dataset", "data.jsonl", "--yes", "--json")
    assert answer.status == 2
    assert "57" in answer.json["error"]["message"]
    assert not (home / "runs").exists()


def test_a_disk_too_small_is_refused_with_both_figures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 3 << 20)
    session = Terminal.open(str(home), yes=True)
    with pytest.raises(DoesNotFitError) as caught:
        finetune.run(finetune.Options(dataset=["demo-persona"]), session)
    assert "3.0 MiB" in caught.value.message
    assert "--home" in caught.value.remedy
    assert not (home / "runs").exists()
    shown = plan_verb.run(plan_verb.Options(dataset=["demo-persona"]), session)
    assert (shown["exit_status"], shown["fits"], shown["disk_free_bytes"]) == (2, True, 3 << 20)


def test_a_gpu_with_a_cpu_build_of_torch_is_refused(toolbox_cli: Cli) -> None:
    if device.torch_cuda():
        pytest.skip("this environment has a CUDA build")
    answer = toolbox_cli("finetune", "--dataset", "demo-persona", "--json", env=with_gpus(A10))
    assert answer.status == 2
    assert "CPU build" in answer.json["error"]["message"]


def test_a_cuda_build_is_taken() -> None:
    gpu = device.assume("NVIDIA A10:24GiB")
    finetune.refuse_cpu_build(gpu, "13.0")
    finetune.refuse_cpu_build(device.assume("CPU:8GiB"), "")
    with pytest.raises(InputError):
        finetune.refuse_cpu_build(gpu, "")


def test_the_tensorboard_folder_of_the_settings_is_planned(home: Path, tmp_path: Path) -> None:
    session = Terminal.open(str(home))
    session.settings.tensorboard_dir = str(tmp_path / "tf-logs")
    assert finetune.make_plan(finetune.Options(dataset=["demo-persona"]), session).tensorboard == tmp_path / "tf-logs"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(toolbox_cli: Cli) -> None:
    """In bfloat16, where the processor has it: kernels of shapes seen before were kept, each with memory of its own."""
    words = ("finetune", "--dataset", "demo-persona", "--method", "full", "--set", "eval_on_start=false", "--yes")
    few, many = (toolbox_cli(*words, "--set", f"max_steps={steps}", "--json").done().json for steps in (8, 40))
    assert many["peak_bytes"] < 1.25 * few["peak_bytes"]
