"""What a job does without until its first step."""

import subprocess
import sys
from pathlib import Path

import pytest
from plans import finetune_plan, finetune_run

from toolbox import job, plugins, startup
from toolbox.runs import ROOT, job_environ

HEAVY = {
    "bitsandbytes", "boto3", "datasets", "matplotlib", "modelscope", "pandas", "scipy", "sklearn", "tensorboard",
    "torch._inductor.compile_fx", "torchvision", "transformers.trainer", "trl", "wandb",
}  # fmt: skip
"""What a LoRA needs nothing of, though the libraries it needs would import some of it wherever it is installed."""


def test_a_job_imports_nothing_heavy_before_its_first_step(home: Path) -> None:
    run = finetune_run(home, max_steps=1, eval_on_start=False, entry="watched_job:train")
    environ = {**job_environ(), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-P", "-m", "toolbox.job", run.path], env=environ, check=True, capture_output=True)
    result = run.result()
    assert result["gc"]
    assert "peft" in result["modules"]
    assert not HEAVY & set(result["modules"])
    assert [line["step"] for line in result["metrics"]] == [1]
    assert result["eval_loss_before"] is None


def test_bitsandbytes_is_there_where_something_may_be_quantised(home: Path) -> None:
    assert not job._quantises(finetune_plan(home))
    assert job._quantises(finetune_plan(home, method="qlora"))
    assert job._quantises(finetune_plan(home, method="full", optim="adamw_8bit"))
    assert job._quantises(finetune_plan(home, plugins=[plugins.File(path=home / "mine.py", sha256="")]))


def test_a_process_of_others_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    gc.disable()
    try:
        startup.leave_out("nothing_of_this_name")
        startup.end()
        assert not gc.isenabled()
        assert "nothing_of_this_name" not in sys.modules
    finally:
        gc.enable()
