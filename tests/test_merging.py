"""Merging: bit for bit what peft computes, proved before it is delivered, whole or absent."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
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
from toolbox.merging import base, lora, mixing, proof, tensors, weights
from toolbox.plan import MergePlan, Mixture
from toolbox.runs import Silent

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
    held = load_file(folder / "adapter_model.safetensors")
    next(iter(held.values())).fill_(float("nan"))
    save_file(held, folder / "adapter_model.safetensors")
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


@pytest.mark.parametrize(
    "combination", ["linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "dare_linear", "dare_ties"]
)
def test_mixtures_are_what_peft_makes_of_them(
    adapter: Callable[..., Path], tmp_path: Path, combination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DARE draws is drawn by each module's own seed here, so it is compared with the same draws."""
    first, second = adapter(target_modules=["q_proj", "v_proj"]), adapter(target_modules=["q_proj", "up_proj"])
    other = load_file(second / "adapter_model.safetensors")
    save_file({name: 1.5 * tensor.flip(0) for name, tensor in other.items()}, second / "adapter_model.safetensors")
    folder = tmp_path / "mixed"
    folder.mkdir()
    density = None if combination in ("linear", "cat", "svd") else 0.5
    mixture = Mixture(adapters=[first, second], weights=[0.7, -0.3], combination=combination, density=density)
    monkeypatch.setattr(torch, "manual_seed", lambda seed, seeded=torch.manual_seed: seeded(7))
    mixing.mix(mixture, 42, folder)
    model: Any = PeftModel.from_pretrained(loading.base_model(embedded.MODEL, "float32", "cpu"), first, "first")
    model.load_adapter(second, "second")
    per_module = type(model.base_model)._generalized_task_arithmetic_weighted_adapter

    def seeded(*given: Any) -> Any:
        torch.manual_seed(7)
        return per_module(*given)

    monkeypatch.setattr(type(model.base_model), "_generalized_task_arithmetic_weighted_adapter", seeded)
    model.add_weighted_adapter(["first", "second"], [0.7, -0.3], "mixed", combination, density=density)
    found = load_file(folder / "adapter_model.safetensors")
    layers = {
        name: part for name, part in model.base_model.model.named_modules() if "mixed" in getattr(part, "lora_A", ())
    }
    assert len(found) == 2 * len(layers)
    for name, layer in layers.items():
        a, b = (found[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        if not combination.endswith("svd"):
            assert torch.equal(a, layer.lora_A["mixed"].weight[: len(a)])
            assert torch.equal(b, layer.lora_B["mixed"].weight)
        torch.testing.assert_close(b @ a, layer.get_delta_weight("mixed"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_a_mixture_with_rslora_adds_what_each_adapter_does_by_its_own_scaling(
    adapter: Callable[..., Path], tmp_path: Path, combination: str
) -> None:
    """W + Σ weight · scaling · B·A, where scaling is alpha / √r of the one and alpha / r of the other."""
    ranked, plain = adapter(r=4, lora_alpha=8, use_rslora=True), adapter(r=2, lora_alpha=3)
    mixture = Mixture(adapters=[ranked, plain], weights=[0.75, -0.5], combination=combination)
    if combination == "svd":  # exact only where the sum's rank is the mixture's
        mixture = Mixture(adapters=[ranked, ranked], weights=[0.75, -0.5], combination=combination)
    shares = [(0.75, 8 / 4**0.5, ranked), (-0.5, 3 / 2, plain) if combination == "cat" else (-0.5, 8 / 2, ranked)]
    folder = tmp_path / "mixed"
    folder.mkdir()
    mixing.mix(mixture, 42, folder)
    found = load_file(folder / "adapter_model.safetensors")
    config = lora.config_of(folder)
    assert not config["use_rslora"]
    for key in [key for key in found if "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        update = found[other].double() @ found[key].double() * config["lora_alpha"] / config["r"]
        held = [(weight * scaling, load_file(path / "adapter_model.safetensors")) for weight, scaling, path in shares]
        expected = sum(share * (pair[other].double() @ pair[key].double()) for share, pair in held)
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-7)
    if combination == "svd":  # peft 0.21 keeps use_rslora beside alpha = r, and so adds √r times too much
        model: Any = PeftModel.from_pretrained(loading.base_model(embedded.MODEL, "float32", "cpu"), ranked, "one")
        model.load_adapter(ranked, "two")
        model.add_weighted_adapter(["one", "two"], mixture.weights, "mixed", combination)
        module = key.removeprefix("base_model.model.").partition(".lora_A")[0]
        theirs = model.base_model.model.get_submodule(module).get_delta_weight("mixed")
        torch.testing.assert_close(theirs.double(), 4**0.5 * update, rtol=1e-3, atol=1e-5)


def test_adapters_of_different_ranks_are_mixed_by_cat_only(adapter: Callable[..., Path], tmp_path: Path) -> None:
    mixture = Mixture(adapters=[adapter(r=4), adapter(r=2)], weights=[1, 1], combination="linear")
    with pytest.raises(InputError, match="different ranks"):
        mixing.mix(mixture, 42, tmp_path)
    mixture.combination = "cat"
    result = merging.run(plan(mixture.adapters[0], tmp_path / "out", mixture=mixture))
    assert result["passed"]
    assert len(result["hashes"]["adapter"]) == 2


def test_qlora_onto_the_original_is_measured_beside_the_dequantised(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter(NF4)
    result = merging.run(plan(folder, tmp_path / "out", nf4=True, onto="original"))
    assert result["passed"]
    assert "before nf4" in result["base"]
    trained, dequantised, original = result["bases"]
    assert [row["base"] for row in result["bases"] if row["chosen"]] == ["original"]
    assert trained["max_abs_diff"] == 0 <= dequantised["max_abs_diff"] < original["max_abs_diff"]
    assert dequantised["perplexity"] == pytest.approx(trained["perplexity"], rel=1e-3)
    expected = by_peft(folder)
    merged = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


WRITES = (
    (os, "write"), (os, "ftruncate"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "open"),
    (os, "unlink"), (os, "rmdir"), (shutil, "copyfile"),
)  # fmt: skip


def _dies_at(moment: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed at its `moment`th write, half of that done; whether it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    counted = iter(range(1 << 30))

    def deadly(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if next(counted) == moment:
            if function is real_write:
                function(given[0], given[1][: len(given[1]) // 2 // 4096 * 4096])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    real_write = os.write
    for module, name in WRITES:
        setattr(module, name, partial(deadly, getattr(module, name)))
    try:
        work()
        os._exit(0)
    finally:  # whatever happens, this process is no second pytest
        os._exit(1)


@pytest.mark.slow
def test_a_kill_at_every_write_leaves_a_whole_model_or_none(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the writing is killed: the proof, which writes nothing, is left out."""
    monkeypatch.setattr(proof, "prove", lambda plan, folder: proof.Proof(0, 0, 0, 0, True, ()))
    monkeypatch.setattr(tensors, "BLOCK", 1 << 20)
    output = tmp_path / "models" / "out"
    made = plan(adapter(), output)
    merging.run(made)
    whole = {path.name: files.sha256(path) for path in output.iterdir()}
    shutil.rmtree(output)
    delivered = []
    for moment in range(1000):
        ended = _dies_at(moment, lambda: merging.run(made))
        delivered.append(output.exists())
        if output.exists():
            assert {path.name: files.sha256(path) for path in output.iterdir()} == whole
            shutil.rmtree(output)
        if ended:
            break
    assert ended
    assert len(delivered) > 20
    assert not any(delivered[:20])
    assert delivered[-1]
    merging.run(made)
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_a_full_disk_is_told_and_leaves_nothing(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors.os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        merging.run(plan(adapter(), tmp_path / "out"))
    assert files.is_full(caught.value)
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)
