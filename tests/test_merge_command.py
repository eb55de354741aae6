"""`merge` as people type it: what is refused before anything starts, and one merge through its job."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import Cli
from peft import LoraConfig, get_peft_model
from plans import demo_facts, finetune_run
from safetensors.torch import load_file, save_file

from toolbox import again, cli, embedded, files, loading
from toolbox.commands.merge import MergeOptions, make_plan
from toolbox.config import Home, Settings
from toolbox.errors import DoesNotFitError, InputError
from toolbox.runs import Run
from toolbox.ui.terminal import Terminal


@pytest.fixture
def tuned(home: Path) -> Run:
    """A finetune run with an adapter, as training would leave it."""
    run = finetune_run(home)
    model = get_peft_model(
        loading.base_model(embedded.MODEL, "float32", "cpu"),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(run.adapter)
    return run


def session(home: Path, **changes: Any) -> Terminal:
    return Terminal(Home(home), Settings(), **{"as_json": True, "yes": True, "dry_run": False} | changes)


def test_a_run_brings_base_adapter_precision_and_rows(tuned: Run, home: Path) -> None:
    plan = make_plan(MergeOptions(run=tuned.id), session(home))
    assert plan.model == demo_facts()
    assert plan.adapter == tuned.adapter
    assert plan.output == home / "models" / "merged" / tuned.id
    assert (plan.dtype, plan.quantization, plan.run) == ("float32", "none", tuned.id)
    assert [spec.name for spec in plan.datasets] == ["demo-persona"]


def test_an_adapter_trained_on_four_bits_brings_them(home: Path, tuned: Run) -> None:
    quantised = finetune_run(home, method="qlora")
    tuned.adapter.rename(quantised.adapter)
    for options in (MergeOptions(run=quantised.id), MergeOptions(model="demo", adapter=[str(quantised.adapter)])):
        plan = make_plan(options, session(home))
        assert plan.quantization == "nf4"
        assert plan.BitsAndBytesConfig["load_in_4bit"]


def test_rows_that_are_gone_give_way_to_the_embedded_ones(home: Path, tuned: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 3)
    run = finetune_run(home, str(mine))
    tuned.adapter.rename(run.adapter)
    assert [spec.path for spec in make_plan(MergeOptions(run=run.id), session(home)).datasets] == [mine]
    mine.write_text("changed")
    assert [spec.name for spec in make_plan(MergeOptions(run=run.id), session(home)).datasets] == ["demo-persona"]


@pytest.mark.parametrize("options", [MergeOptions(), MergeOptions(model="demo"), MergeOptions(adapter=["/nowhere"])])
def test_without_an_adapter_there_is_nothing_to_merge(home: Path, options: MergeOptions) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(options, session(home))
    assert caught.value.remedy


def test_an_adapter_for_another_base_is_refused_before_anything_starts(home: Path, tuned: Run, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "adapter_config.json").write_bytes((tuned.adapter / "adapter_config.json").read_bytes())
    tensors = load_file(tuned.adapter / "adapter_model.safetensors")
    for name in tensors:
        if name.endswith("lora_A.weight"):
            tensors[name] = torch.zeros(4, 999)
    save_file(tensors, foreign / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"was not made for demo.*999"):
        make_plan(MergeOptions(model="demo", adapter=[str(foreign)]), session(home))
    deeper = {name.replace(".layers.0.", ".layers.77."): torch.zeros(1) for name in tensors}
    save_file(deeper, foreign / "adapter_model.safetensors")
    with pytest.raises(InputError, match="layer 77"):
        make_plan(MergeOptions(model="demo", adapter=[str(foreign)]), session(home))


def test_a_base_that_fits_but_is_not_the_one_the_adapter_names_is_told(tuned: Run, toolbox_cli: Cli) -> None:
    """Before anything starts, in a dry run too; wherever the same base lay when it was trained, nothing is said."""
    path = tuned.adapter / "adapter_config.json"
    config = dict(files.read_json(path) or {})
    told = {}
    for base in ("Qwen/Qwen3-0.6B", "/elsewhere/Demo", "/hub/models--me--demo/snapshots/1234", str(embedded.MODEL)):
        files.write_json(path, config | {"base_model_name_or_path": base})
        done = toolbox_cli("merge", "--model", "demo", "--adapter", str(tuned.adapter), "--dry-run").done()
        told[base] = "says that its base is" in " ".join((done.out + done.err).split())
    assert list(told.values()) == [True, False, False, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"combination": "ties"}, "nobody said which"),
    ],
)
def test_a_mixture_that_is_not_stated_is_refused(home: Path, tuned: Run, given: dict[str, Any], said: str) -> None:
    two = [str(tuned.adapter)] * 2
    with pytest.raises(InputError, match=said):
        make_plan(MergeOptions(model="demo", adapter=two, **given), session(home))


def test_the_plan_of_a_mixture_can_be_typed_again(home: Path, tuned: Run, tmp_path: Path) -> None:
    mixed = f"--adapter {tuned.adapter} {tuned.adapter} --weights 0.7 0.3 --combination ties --density 0.5"
    words = f"merge --model demo {mixed} --output {tmp_path / 'merged'}"
    _command, options, _common = cli.understand(words.split())
    made = make_plan(options, session(home))
    assert " ".join(again.words("merge", msgspec.to_builtins(made, enc_hook=str))) == words


def test_a_quantised_base_is_refused(home: Path, tuned: Run, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in embedded.MODEL.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = files.read_json(base / "config.json")
    files.write_json(base / "config.json", {**config, "quantization_config": {"quant_method": "awq", "bits": 4}})
    with pytest.raises(InputError, match="awq"):
        make_plan(MergeOptions(model=str(base), adapter=[str(tuned.adapter)]), session(home))


def test_a_disk_too_small_is_told_with_both_figures(home: Path, tuned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(DoesNotFitError, match=r"7\.3 MiB.*1\.0 MiB"):
        make_plan(MergeOptions(run=tuned.id), session(home))


def test_merging_through_the_job(tuned: Run, home: Path, toolbox_cli: Cli) -> None:
    result = toolbox_cli("merge", "--run", tuned.id, "--json").done().json
    assert result["passed"]
    assert result["max_abs_diff"] <= result["tolerance"]
    output = Path(result["output"])
    assert (output / "model.safetensors").is_file()
    assert "✓" in (home / "runs" / result["run"] / "report.md").read_text("utf-8")
    again = toolbox_cli("merge", "--run", tuned.id, "--json")
    assert again.status == 2
    assert again.json["error"]["kind"] == "input"


@pytest.mark.slow
def test_a_merge_reproduced_is_the_same_to_the_bit_beside_the_first(tuned: Run, home: Path, toolbox_cli: Cli) -> None:
    result = toolbox_cli("merge", "--run", tuned.id, "--json").done().json
    repeated = toolbox_cli("runs", "reproduce", result["run"], "--json").done().json
    plan = msgspec.yaml.decode((home / "runs" / repeated["run"] / "plan.yaml").read_bytes())
    output = Path(result["output"])
    assert plan["output"] == f"{output}-2"
    assert files.sha256(output / "model.safetensors") == files.sha256(Path(f"{output}-2") / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/below", "Not a directory"),
        ("长" * 90, "File name too long"),
        ("dangling", "nothing is overwritten"),
        ("/", "nothing is overwritten"),
    ],
)
def test_a_destination_that_can_not_be_is_said_beforehand(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=message) as caught:
        files.new_path(str(tmp_path / name), tmp_path)
    assert "--output" in caught.value.remedy


def test_of_two_that_make_one_folder_at_once_one_is_told(tmp_path: Path) -> None:
    def make_twice() -> None:
        with files.whole_folder(tmp_path / "out") as late:
            (late / "late").touch()
            with files.whole_folder(tmp_path / "out") as early:
                (early / "early").touch()

    with pytest.raises(FileExistsError):
        make_twice()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "early"]
