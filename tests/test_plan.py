"""Deciding: which recipe, which batch and which types on which hardware; and what is refused, in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from hardware import A10, A100, QWEN_7B, T4, with_gpus, write_model
from plans import CPU, demo_facts

from toolbox import datasets, device, models, plan, planning
from toolbox.config import Home
from toolbox.errors import DoesNotFitError, InputError, NotFoundError
from toolbox.plan import FinetunePlan
from toolbox.wishes import Wishes

Made = Callable[..., FinetunePlan]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen", QWEN_7B)


@pytest.fixture
def made(qwen: Path, home: Path) -> Made:
    """A plan for a 7B model, or another, with long rows, on a device that is described."""

    def make(
        on: str, model: str = str(qwen), must_fit: bool = True, longest_chars: int = 5000, **wishes: Any
    ) -> FinetunePlan:
        place = Home(home)
        rows = msgspec.structs.replace(datasets.resolve("demo-persona", place), longest_chars=longest_chars)
        facts = models.resolve(model, place)
        return planning.plan_finetune(facts, [rows], device.assume(on), Wishes(**wishes), place, must_fit)

    return make


def batch(made: FinetunePlan) -> tuple[int, int]:
    return made.training.per_device_train_batch_size, made.training.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("gpus", "method", "dtype", "quantization"),
    [
        ([T4], "qlora", "float16", "nf4"),
        ([A10], "lora", "bfloat16", "none"),
        ([A100], "lora", "bfloat16", "none"),
        ([{**T4, "name": "NVIDIA RTX A4000", "capability": [8, 6]}], "qlora", "bfloat16", "nf4"),
        ([A10, A100], "lora", "bfloat16", "none"),
    ],
)
def test_a_machine_gets_its_recipe(
    toolbox_cli: Cli, qwen: Path, gpus: list[dict[str, Any]], method: str, dtype: str, quantization: str
) -> None:
    answer = toolbox_cli("plan", "--model", str(qwen), "--json", env=with_gpus(*gpus)).done().json
    assert (answer["method"], answer["dtype"], answer["quantization"]) == (method, dtype, quantization)
    assert answer["device"] == max(gpus, key=lambda gpu: gpu["total_mib"])["name"]
    assert answer["fits"]
    assert sum(answer["parts_bytes"].values()) == answer["peak_bytes"] < answer["device_bytes"]
    assert answer["per_device_train_batch_size"] * answer["gradient_accumulation_steps"] == 16


def test_no_gpu_means_the_processor(toolbox_cli: Cli) -> None:
    answer = toolbox_cli("plan", "--dataset", "demo-persona", "--json").done().json
    assert (answer["recipe"], answer["method"], answer["dtype"]) == ("cpu-tiny", "lora", "float32")
    assert answer["time_s"] > 0
    assert answer["disk_bytes"] > 0


def test_a_broken_driver_is_no_obstacle(toolbox_cli: Cli) -> None:
    answer = toolbox_cli("plan", "--json", env=with_gpus(T4, init_error=18)).done().json
    assert answer["recipe"] == "cpu-tiny"


def test_80_gib_get_a_larger_batch(made: Made) -> None:
    small, large = made("NVIDIA A10:24GiB"), made("A100:80GiB")
    assert (small.recipe, large.recipe) == ("lora", "lora")
    assert batch(large)[0] > batch(small)[0]
    assert batch(small)[0] * batch(small)[1] == batch(large)[0] * batch(large)[1]


@pytest.mark.parametrize(("chip", "dtype"), [("Apple M2:32GiB", "bfloat16"), ("Apple M1:64GiB", "float32")])
def test_an_apple_chip_gets_a_small_batch(made: Made, chip: str, dtype: str) -> None:
    plan = made(chip)
    assert (plan.recipe, plan.device.kind, plan.dtype) == ("mps", "mps", dtype)
    assert batch(plan)[0] == 1


def test_a_machine_without_gpu_gets_the_processors_recipe(made: Made) -> None:
    plan = made("CPU:64GiB")
    assert (plan.recipe, plan.dtype, plan.training.optim) == ("cpu", "float32", "adamw_torch")


def test_a_model_too_large_for_lora_is_quantised(made: Made) -> None:
    plan = made("NVIDIA A10:24GiB", max_length=20000, longest_chars=40000)
    assert plan.method == "qlora"
    assert plan.BitsAndBytesConfig["bnb_4bit_compute_dtype"] == "bfloat16"
    assert "lora would take" in plan.why


def test_full_tuning_is_refused_with_both_figures_and_what_fits(made: Made) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        made("NVIDIA A10:24GiB", method="full")
    assert "122." in caught.value.message
    assert "22." in caught.value.message
    assert "--method lora" in caught.value.remedy


def test_the_longest_rows_that_fit_are_proposed(made: Made) -> None:
    asked: dict[str, Any] = {"method": "lora", "per_device_train_batch_size": 1, "longest_chars": 40000}
    with pytest.raises(DoesNotFitError) as caught:
        made("NVIDIA A10:24GiB", max_length=20000, **asked)
    proposed = int(caught.value.remedy.partition("--max-length ")[2].partition(" ")[0])
    assert made("NVIDIA A10:24GiB", max_length=proposed, **asked).estimate.fits
    longer = made("NVIDIA A10:24GiB", max_length=proposed + 128, must_fit=False, **asked).estimate
    assert longer.peak_bytes > longer.device_bytes * (1 - longer.margin)


def test_full_tuning_is_done_when_asked_and_when_it_fits(made: Made) -> None:
    plan = made("NVIDIA A10:24GiB", model="demo", method="full")
    assert (plan.method, plan.LoraConfig, plan.estimate.fits) == ("full", {}, True)
    assert plan.estimate.parts_bytes["adapter"] == 0


def test_wishes_win(made: Made) -> None:
    plan = made(
        "A100:80GiB", method="qlora", max_length=1000, num_train_epochs=1, learning_rate=1e-3,
        per_device_train_batch_size=3, seed=7, settings=["LoraConfig.r=5", "max_grad_norm=0.5"],
    )  # fmt: skip
    training = plan.training
    assert (plan.method, plan.recipe, plan.seed, plan.LoraConfig["r"]) == ("qlora", "qlora", 7, 5)
    assert (training.max_length, training.num_train_epochs, training.learning_rate) == (1000, 1, 1e-3)
    assert (training.per_device_train_batch_size, training.max_grad_norm) == (3, 0.5)


def test_epochs_win_over_a_recipes_steps(made: Made) -> None:
    assert made("CPU:16GiB", model="demo").training.max_steps == 100
    assert made("CPU:16GiB", model="demo", num_train_epochs=2).training.max_steps == -1


def test_rows_are_no_longer_than_the_model_takes(made: Made) -> None:
    plan = made("A100:80GiB", model="demo", max_length=100_000)
    assert plan.training.max_length == plan.model.max_position_embeddings


def test_a_plan_is_read_back_as_it_was(made: Made, tmp_path: Path) -> None:
    from toolbox import runs

    plan_made = made("Tesla T4")
    run = runs.create(tmp_path, "test", plan_made)
    assert plan.load(run.plan_path) == plan_made


def test_alternatives_are_named_with_their_peaks(made: Made, home: Path) -> None:
    others = planning.alternatives(made("NVIDIA A10:24GiB"), Wishes(), Home(home))
    assert {other.recipe: other.fits for other in others} == {"full": False, "qlora": True}


def test_what_does_not_fit_is_shown_by_plan_with_status_2(toolbox_cli: Cli, qwen: Path) -> None:
    answer = toolbox_cli("plan", "--model", str(qwen), "--method", "full", "--assume-device", "T4", "--json")
    assert answer.status == 2
    assert answer.json["fits"] is False
    assert answer.json["peak_bytes"] > answer.json["device_bytes"]


def test_what_fits_on_several_gpus_only_is_shown_by_plan_with_status_0(toolbox_cli: Cli, qwen: Path) -> None:
    words = ("plan", "--model", str(qwen), "--method", "full", "--assume-device", "A100:80GiB", "--json")
    words += ("--per-device-train-batch-size", "1")
    answer = toolbox_cli(*words, "--gpus", "8")
    assert answer.status == 0
    assert answer.json["fits"] is False
    fits = {item["strategy"]: item["fits"] for item in answer.json["on_gpus"]}
    assert fits == {"ddp": False, "zero2": True, "zero3": True, "zero3-offload": True, "fsdp": True}
    for item in answer.json["on_gpus"]:
        assert item["gpus"] == 8
        assert sum(item["parts_bytes"].values()) == item["peak_bytes"]
    assert toolbox_cli(*words).json["on_gpus"] == []


def test_a_quantised_base_is_refused(made: Made, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "q", {**QWEN_7B, "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(InputError, match="awq"):
        made("A100:80GiB", model=str(folder))


def test_a_model_that_writes_no_text_is_refused(made: Made, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "b", {**QWEN_7B, "architectures": ["BertForMaskedLM"]})
    with pytest.raises(InputError, match="BertForMaskedLM"):
        made("A100:80GiB", model=str(folder))


def test_an_unknown_recipe_is_refused(made: Made) -> None:
    with pytest.raises(NotFoundError, match="'fast'"):
        made("A100:80GiB", recipe="fast")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "no/such"], "no/such"),
        (["--model", "$(touch x)"], "$(touch x)"),
        (["--dataset", "missing.jsonl"], "missing.jsonl"),
        (["--recipe", "nope"], "nope"),
        (["--set", "lr=1"], "training.lr"),
        (["--set", "LoraConfig.rank=1"], "LoraConfig.rank"),
        (["--method", "magic"], "magic"),
        (["--max-length", "0"], "--max-length"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--assume-device", "Voodoo"], "Voodoo"),
        (["--gpus", "0"], "--gpus"),
        (["--gpus", "2", "--assume-device", "Apple M2:16GiB"], "--gpus"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(toolbox_cli: Cli, words: list[str], said: str) -> None:
    answer = toolbox_cli("plan", *words, "--json")
    assert answer.status == 2
    assert said in answer.json["error"]["message"]
    assert answer.json["error"]["remedy"]
    assert "Traceback" not in answer.err
    assert answer.err.count("\n") <= 2


def test_a_recipe_with_an_unknown_key_is_refused(toolbox_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nsumary: x\n")
    answer = toolbox_cli("plan", "--recipe", "r.yaml", "--json")
    assert answer.status == 2
    assert "'sumary'" in answer.json["error"]["message"]
    assert "summary" in answer.json["error"]["remedy"]


def test_planning_imports_no_torch(toolbox_cli: Cli) -> None:
    answer = toolbox_cli("plan", "--dataset", "demo-persona", env={"PYTHONPROFILEIMPORTTIME": "1"}).done()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.err.splitlines() if "|" in line}
    assert "msgspec" in imported
    assert not imported & {"torch", "transformers", "peft", "numpy", "pynvml"}


@pytest.mark.parametrize(("val_size", "held_out"), [(None, 30), (0.05, 15), (12, 12), (0, 0), (400, None)])
def test_the_held_out_rows_are_those_asked_for(home: Path, val_size: float | None, held_out: int | None) -> None:
    spec = datasets.resolve("demo-persona*2", Home(home))
    asked = Wishes(val_size=val_size)
    if held_out is None:
        with pytest.raises(InputError, match="all of the 304 rows"):
            planning.plan_finetune(demo_facts(), [spec], CPU, asked, Home(home))
        return
    assert planning.plan_finetune(demo_facts(), [spec], CPU, asked, Home(home)).eval_rows == held_out
    other = planning.plan_finetune(demo_facts(), [spec], CPU, Wishes(), Home(home), eval_datasets=[spec])
    assert (other.eval_rows, other.eval_datasets) == (0, [spec])
