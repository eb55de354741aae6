"""Models and adapters as they are found: what fits nothing is refused in a sentence, what is odd is merged right."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_merging_models import ATTENTION, EXPERTS, QWEN, based
from test_merging_tuners import by_peft, made, plan_of, tensors

from toolbox import embedded, files, loading, merging, methods, models
from toolbox.errors import CorruptError, InputError, TokenizerError

WEIGHTS = "model.safetensors"
Weights = dict[str, torch.Tensor]
LORA = {"r": 4, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
UNTIED = {**QWEN, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the embedded model."""
    return made(tmp_path_factory.mktemp("found") / "adapter", "LoraConfig", LORA)


def changed(folder: Path, change: Callable[[Weights], Weights], name: str = "adapter_model.safetensors") -> None:
    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def configured(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    files.write_json(path, {**dict(files.read_json(path) or {}), **fields})


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda held: {name: tensor for name, tensor in held.items() if part not in name}


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no prefix": (
        lambda folder: changed(folder, lambda held: {k.removeprefix("base_model.model."): v for k, v in held.items()}),
        r"32 of its tensors have no place in it, first model\.layers\.0",
    ),
    "another model's names": (
        lambda folder: changed(folder, lambda held: {k.replace("layers", "blocks"): v for k, v in held.items()}),
        "32 of its tensors have no place",
    ),
    "one tensor more": (
        lambda folder: changed(folder, lambda held: {**held, "base_model.model.more": torch.ones(2)}),
        r"1 of its tensors have no place in it, first base_model\.model\.more",
    ),
    "half of it": (lambda folder: changed(folder, without("lora_B")), "holds nothing for 16 tensors"),
    "a layer less": (lambda folder: changed(folder, without("layers.2")), "holds nothing for 8 tensors"),
    "another rank": (lambda folder: configured(folder, r=8), "size mismatch for .*q_proj"),
    "an unknown kind": (lambda folder: configured(folder, peft_type="QUANTUM"), "peft does not know 'QUANTUM'"),
    "other modules": (lambda folder: configured(folder, target_modules=["c_attn"]), "c_attn"),
}
QUICK = ("no prefix", "half of it", "an unknown kind")


@pytest.mark.parametrize("odd", [odd if odd in QUICK else pytest.param(odd, marks=pytest.mark.slow) for odd in ODD])
def test_an_adapter_that_would_not_wholly_take_effect_is_refused(odd: str, lora: Path, tmp_path: Path) -> None:
    """peft loads most of these with no more than a warning: the base would be chatted with, served, and delivered."""
    shutil.copytree(lora, tmp_path / "adapter")
    change, message = ODD[odd]
    change(tmp_path / "adapter")
    with pytest.raises(InputError, match=message):
        loading.with_adapter(loading.base_model(embedded.MODEL, "float32", "cpu"), tmp_path / "adapter")


def test_an_adapter_is_whole_by_whatever_name_it_is_served(lora: Path, tmp_path: Path) -> None:
    """`.m` begins `.model` and `.mlp` too."""
    shutil.copytree(lora, tmp_path / "adapter")
    changed(tmp_path / "adapter", without("lora_B"))
    base, folder = loading.base_model(embedded.MODEL, "float32", "cpu"), tmp_path / "adapter"
    with pytest.raises(InputError, match="holds nothing for 16 tensors"):
        loading.put_on(base, folder, lambda: PeftModel.from_pretrained(base, folder, "m"), "m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "a prompt before the text"),
        ({"init_lora_weights": "pissa_niter_4"}, "found at random"),
    ],
)
def test_what_can_not_become_weights_is_said_beforehand(
    fields: dict[str, Any], message: str, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path / "adapter")
    configured(tmp_path / "adapter", **fields)
    with pytest.raises(InputError, match=message):
        methods.refuse_unmergeable(tmp_path / "adapter")


def proved(base: Path, adapter: Path, output: Path, **changes: Any) -> tuple[dict[str, Any], Weights]:
    facts = models.read(base, id=base.name, source="local")
    result = merging.run(plan_of(adapter, model=facts, output=output, **{"dtype": facts.dtype} | changes))
    return result, tensors(output)


def _head_apart(held: Weights) -> Weights:
    return {**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}, {"r": 8}])
def test_a_head_that_is_stored_twice_is_untied_where_it_changes(more: dict[str, Any], tmp_path: Path) -> None:
    """Engines that believe config.json would take the embeddings for the head, and lose what was trained."""
    base = based(tmp_path / "base", "Qwen3Config", **{**QWEN, "tie_word_embeddings": True})
    changed(base, _head_apart, WEIGHTS)
    adapter = made(tmp_path / "adapter", "LoraConfig", {**LORA, **more}, base)
    _result, found = proved(base, adapter, tmp_path / "out")
    alike = torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert alike == ("r" in more)
    assert dict(files.read_json(tmp_path / "out/config.json") or {})["tie_word_embeddings"] is alike


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [({"mlp": torch.float16}, "bfloat16"), ({"": torch.float64}, "float32"), ({"norm": torch.float32}, "bfloat16"),
     ({"q_proj": torch.float32}, "bfloat16")],
)  # fmt: skip
def test_a_base_of_mixed_precision_is_merged_as_it_is_computed(
    stored: dict[str, torch.dtype], dtype: str, tmp_path: Path
) -> None:
    base = based(tmp_path / "base", "Qwen3Config", dtype, **UNTIED)
    ((part, other),) = stored.items()
    changed(base, lambda held: {k: v.to(other) if part in k else v for k, v in held.items()}, WEIGHTS)
    adapter = made(tmp_path / "adapter", "LoraConfig", LORA, base, dtype)
    expected = by_peft(adapter, tmp_path / "whole", base, dtype)
    _result, found = proved(base, adapter, tmp_path / "out")
    computed = {name: tensor.to(getattr(torch, dtype)) for name, tensor in found.items()}
    assert not [name for name in expected if not torch.equal(computed[name], expected[name])]
    assert {tensor.dtype for name, tensor in found.items() if "norm" not in name} == {getattr(torch, dtype)}


@pytest.mark.slow
def test_a_router_that_turns_by_rounding_fails_no_right_merge(tmp_path: Path) -> None:
    turned = []
    for scale in (16, 64, 128):
        folder = tmp_path / str(scale)
        base = based(folder / "base", "Qwen3MoeConfig", "bfloat16", **{**EXPERTS, "initializer_range": 0.3})
        adapter = made(folder / "adapter", "LoraConfig", {**LORA, "lora_alpha": scale}, base, "bfloat16")
        result, _found = proved(base, adapter, folder / "out")
        assert result["passed"]
        turned.append(not result["greedy_equal"])
    assert any(turned)


KINDS: dict[str, dict[str, Any]] = {
    "FrodConfig": {}, "RoadConfig": {"group_size": 8}, "C3AConfig": {"block_size": 8},
    "WaveFTConfig": {"n_frequency": 40}, "TinyLoraConfig": {}, "UniLoraConfig": {}, "PveraConfig": {},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pefts_that_no_method_here_trains(kind: str, tmp_path: Path) -> None:
    base = based(tmp_path / "base", "Qwen3Config", **UNTIED)
    settings = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **KINDS[kind]}
    adapter = made(tmp_path / "adapter", kind, settings, base)
    expected = by_peft(adapter, tmp_path / "whole", base)
    result, found = proved(base, adapter, tmp_path / "out")
    assert result["adapter_effect"] > 0
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


BROKEN: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "a tensor is missing": (
        lambda base: changed(base, without("layers.1.self_attn.q_proj"), WEIGHTS), CorruptError,
        r"nothing for 1 of its model's tensors, first model\.layers\.1\.self_attn\.q_proj",
    ),
    "a number is none": (
        lambda base: changed(base, _with_nan, WEIGHTS), CorruptError, "base model is broken: its model",
    ),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), TokenizerError, "holds no tokenizer"),
    "fewer embeddings": (lambda base: _cropped(base, 1000), InputError, "and base has 1000 embeddings"),
}  # fmt: skip


def _with_nan(held: Weights) -> Weights:
    held["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    return held


def _cropped(base: Path, rows: int) -> None:
    """Fewer embeddings than its tokenizer has tokens."""
    ends = ("embed_tokens.weight", "lm_head.weight")
    changed(base, lambda held: {k: v[:rows].clone() if k.endswith(ends) else v for k, v in held.items()}, WEIGHTS)
    config = dict(files.read_json(base / "config.json") or {})
    files.write_json(base / "config.json", {**config, "vocab_size": rows})


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_base_is_named_as_what_is_broken(broken: str, tmp_path: Path) -> None:
    change, error, message = BROKEN[broken]
    base = based(tmp_path / "base", "Qwen3Config", **UNTIED)
    change(base)
    adapter = made(tmp_path / "adapter", "LoraConfig", LORA, base)
    with pytest.raises(error, match=message):
        proved(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_short_context_is_asked_no_more_than_it_holds(tmp_path: Path) -> None:
    base = based(tmp_path / "base", "GPT2Config", vocab_size=1800, n_embd=16, n_layer=2, n_head=2, n_positions=24)
    adapter = made(tmp_path / "adapter", "LoraConfig", {**LORA, "target_modules": ["c_attn"]}, base)
    result, _found = proved(base, adapter, tmp_path / "out")
    assert result["passed"]
