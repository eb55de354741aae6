"""Merging: bit for bit what peft computes, proved before it is delivered, whole or absent."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from plans import CPU, NF4, demo_facts
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from toolbox import embedded, files, loading, merging, models
from toolbox.errors import InputError, Interrupted, ToolboxError
from toolbox.merging import base, lora, proof, weights
from toolbox.plan import MergePlan
from toolbox.runs import Silent

KILLS = 25
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter whose weights are not zero, as if trained."""

    def make(quantization: dict[str, Any] | None = None, dtype: str = "float32", **lora: Any) -> Path:
        base = loading.base_model(embedded.MODEL, dtype, "cpu", quantization)
        torch.manual_seed(1)
        config = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **lora}
        model = get_peft_model(base, LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                torch.nn.init.normal_(parameter, std=0.03)
            elif "modules_to_save" in name:
                parameter.data += 0.01 * torch.randn_like(parameter)
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return folder

    return make


def plan(adapter: Path, output: Path, dtype: str = "float32", nf4: bool = False, **changes: Any) -> MergePlan:
    fields: dict[str, Any] = {
        "entry": "toolbox.merging:run", "model": demo_facts(), "device": CPU, "adapter": adapter, "output": output,
        "dtype": dtype, "quantization": "nf4" if nf4 else "none", "BitsAndBytesConfig": NF4 if nf4 else {},
    }  # fmt: skip
    return MergePlan(**fields | changes)


def by_peft(adapter: Path, dtype: str = "float32", model_path: Path = embedded.MODEL) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"r": 3, "lora_alpha": 7}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_bit_for_bit_what_peft_computes(
    adapter: Callable[..., Path], tmp_path: Path, dtype: str, lora: dict[str, Any]
) -> None:
    folder = adapter(dtype=dtype, **lora)
    weights.merge(plan(folder, tmp_path / "out", dtype), tmp_path, lambda step, steps: None)
    expected = by_peft(folder, dtype)
    merged = load_file(tmp_path / "model.safetensors")
    assert set(merged) == set(expected) - {"lm_head.weight"}
    for name, tensor in merged.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def test_the_result_says_what_was_proved(adapter: Callable[..., Path], tmp_path: Path) -> None:
    result = merging.run(plan(adapter(), tmp_path / "out"))
    assert result["passed"]
    assert result["greedy_equal"]
    assert result["rows"] == proof.LONG.rows
    assert result["max_abs_diff"] <= result["tolerance"] < 0.01 < result["adapter_effect"]
    assert all(check["passed"] for check in result["proof"])
    assert result["hashes"]["output"] == {"model.safetensors": files.sha256(tmp_path / "out/model.safetensors")}
    assert result["hashes"]["base"] == {"model.safetensors": files.sha256(embedded.MODEL / "model.safetensors")}
    facts = models.read(tmp_path / "out", id="merged", source="local")
    assert facts.chat_template
    assert facts.parameters == demo_facts().parameters


def test_a_base_in_several_files_stays_in_several_files(adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(embedded.MODEL).save_pretrained(base, max_shard_size="2MB")
    loading.tokenizer(embedded.MODEL).save_pretrained(base)
    facts, folder = models.read(base, id="sharded", source="local"), adapter()
    assert merging.run(plan(folder, tmp_path / "out", model=facts))["passed"]
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [shard.name for shard in shards] == sorted(path.name for path in base.glob("*.safetensors"))
    merged = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = by_peft(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


def test_qlora_is_merged_onto_the_dequantised_base(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter(NF4)
    result = merging.run(plan(folder, tmp_path / "out", nf4=True))
    assert result["passed"]
    assert "dequantised" in result["base"]
    assert "quantization_config" not in (tmp_path / "out/config.json").read_text()
    model = loading.with_adapter(loading.base_model(embedded.MODEL, "float32", "cpu", NF4).dequantize(), folder)  # type: ignore[operator]
    expected = model.merge_and_unload().state_dict()  # type: ignore[operator]
    merged = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


def test_qlora_onto_the_base_before_quantisation_fails_its_proof(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_rounded", lambda plan: {})
    with pytest.raises(ToolboxError, match="not kept"):
        merging.run(plan(adapter(NF4), tmp_path / "out", nf4=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": [*LINEAR, "lm_head"]},
        {"target_modules": [*LINEAR, "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_tied_embeddings_are_untied_where_only_one_side_changes(
    adapter: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    assert demo_facts().tie_word_embeddings
    assert merging.run(plan(adapter(**lora), tmp_path / "out"))["passed"]
    merged = load_file(tmp_path / "out/model.safetensors")
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"alpha_pattern": {"q_proj": 4}}])
def test_what_is_more_than_plain_lora_goes_to_peft(
    adapter: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    assert merging.run(plan(adapter(**lora), tmp_path / "out"))["passed"]


def test_an_existing_destination_is_refused_and_left_alone(adapter: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="nothing is overwritten"):
        merging.run(plan(adapter(), output))
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("lost", [1.0, 0.05])
def test_a_merge_that_lost_the_adapter_or_a_part_of_it_is_not_delivered(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float
) -> None:
    monkeypatch.setattr(lora, "scaling_of", lambda config, module, r: config["lora_alpha"] / r * (1 - lost))
    with pytest.raises(ToolboxError, match="not the base model with its adapter") as caught:
        merging.run(plan(adapter(), tmp_path / "out"))
    assert caught.value.exit_status == 1
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_another_chat_template_fails_the_proof(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = merging._add_files

    def poison(plan: MergePlan, folder: Path) -> None:
        copy(plan, folder)
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")

    monkeypatch.setattr(merging, "_add_files", poison)
    with pytest.raises(ToolboxError, match="Chat template"):
        merging.run(plan(adapter(), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_adapters_own_template_goes_with_it(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter()
    tokenizer = loading.tokenizer(embedded.MODEL)
    tokenizer.chat_template = str(tokenizer.chat_template) + "{# tuned #}"
    tokenizer.save_pretrained(folder)
    merging.run(plan(folder, tmp_path / "out"))
    assert str(loading.tokenizer(tmp_path / "out").chat_template).endswith("{# tuned #}")


def test_a_broken_adapter_is_named(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter()
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ToolboxError, match="NaN"):
        merging.run(plan(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_pickled_adapter_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        merging.run(plan(folder, tmp_path / "out"))


class StopsAt(Silent):
    """A person who asks to stop when the given phase or step begins."""

    def __init__(self, moment: str | int) -> None:
        self._moment = moment

    def phase(self, text: str) -> None:
        if text == self._moment:
            self.stopping = True

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        if step == self._moment:
            self.stopping = True


@pytest.mark.parametrize("moment", [5, "Proving the merge"])
def test_stopping_leaves_nothing(adapter: Callable[..., Path], tmp_path: Path, moment: str | int) -> None:
    with pytest.raises(Interrupted):
        merging.run(plan(adapter(), tmp_path / "out"), None, StopsAt(moment))
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_model_or_none(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the writing is killed: the proof, which writes nothing, is left out."""
    monkeypatch.setattr(proof, "prove", lambda plan, folder: proof.Proof(0, 0, 0, 0, True, ()))
    output = tmp_path / "models" / "out"
    made = plan(adapter(), output)
    begun = time.monotonic()
    merging.run(made)
    took, whole = time.monotonic() - begun, load_file(output / "model.safetensors")
    output.rename(tmp_path / "whole")
    moments, delivered = random.Random(0), 0
    for _kill in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                merging.run(made)
            finally:  # whatever happens, this process is no second pytest
                os._exit(0)
        time.sleep(moments.uniform(0, 1.2 * took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if output.exists():
            delivered += 1
            merged = load_file(output / "model.safetensors")
            assert all(torch.equal(merged[name], tensor) for name, tensor in whole.items())
            assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
            shutil.rmtree(output)
    merging.run(made)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert delivered < KILLS
