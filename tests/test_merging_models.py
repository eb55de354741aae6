"""Merging adapters of many kinds into models of many layouts, as peft merges them whole; and proved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_merging_tuners import by_peft, made, plan_of, tensors

from toolbox import embedded, files, loading, merging, models
from toolbox.errors import ToolboxError
from toolbox.merging import lora

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
QWEN = {**LLAMA, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.08}
EXPERTS = {**QWEN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.08}
VISION = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4, "mlp_ratio": 2}
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 16,
}  # fmt: skip
"""Shapes of tiny models with random weights."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def based(folder: Path, kind: str, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Path:
    """A tiny model of that config's class in `folder`, with the embedded model's tokenizer."""
    tokenizer = loading.tokenizer(embedded.MODEL)
    config: Any = getattr(transformers, kind)(**changes)
    config.get_text_config().vocab_size = len(tokenizer)
    config.get_text_config().eos_token_id = config.get_text_config().pad_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForMultimodalLM
    if type(config) not in auto._model_mapping:
        auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "moe attention": (
        "Qwen2MoeConfig",
        {**EXPERTS, "shared_expert_intermediate_size": 16},
        {"target_modules": ATTENTION},
    ),
    "moe experts": (
        "Qwen3MoeConfig",
        EXPERTS,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "moe mixtral": ("MixtralConfig", {**QWEN, "num_local_experts": 4}, {"target_modules": ATTENTION}),
    "moe mixtral experts": (
        "MixtralConfig",
        {**QWEN, "num_local_experts": 4},
        {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "conv1d": ("GPT2Config", GPT2, {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "conv1d, not said": ("GPT2Config", GPT2, {"target_modules": ["c_attn"]}),
    "conv1d dora": ("GPT2Config", GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "dora": ("Qwen3Config", QWEN, {"target_modules": "all-linear", "use_dora": True}),
    "embedding": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    ),
    "embedding dora": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ["embed_tokens"], "use_dora": True},
    ),
    "patterns": (
        "Qwen3Config",
        QWEN,
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 5},
            "alpha_pattern": {"q_proj": 9, "^model.layers.0.self_attn.o_proj": 1},
        },
    ),
    "patterns rslora": (
        "Qwen3Config",
        QWEN,
        {
            "target_modules": ATTENTION,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"v_proj": 9},
        },
    ),
    "saved": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "saved norms": ("Qwen3Config", QWEN, {"target_modules": ATTENTION, "modules_to_save": ["input_layernorm"]}),
    "tokens": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ATTENTION, "trainable_token_indices": [3, 7]},
    ),
    "tokens tied": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": True},
        {"target_modules": ATTENTION, "trainable_token_indices": [3, 7]},
    ),
    "more tokens": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"], "more": 5},
    ),
    "more tokens, dora": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": False},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True, "modules_to_save": ["lm_head"], "more": 5},
    ),
    "more tokens, tied": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": True},
        {"target_modules": ATTENTION, "more": 5},
    ),
    "tied throughout": (
        "Qwen3Config",
        {**QWEN, "tie_word_embeddings": True},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "bias": ("Qwen2Config", QWEN, {"target_modules": ATTENTION, "bias": "all"}),
    "lora bias": ("Qwen2Config", QWEN, {"target_modules": ["q_proj"], "lora_bias": True}),
    "llava": (
        "LlavaConfig",
        {"text_config": {"model_type": "llama", **QWEN}, "vision_config": CLIP, "image_token_index": 9},
        {"target_modules": r".*language_model.*\.(q_proj|down_proj)"},
    ),
    "llava tower": (
        "LlavaConfig",
        {"text_config": {"model_type": "llama", **QWEN}, "vision_config": CLIP, "image_token_index": 9},
        {"target_modules": ["q_proj", "linear_1", "patch_embedding"]},
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": {
                **QWEN,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            "vision_config": VISION,
        },
        {"target_modules": ATTENTION},
    ),
}
SHARDED = ["moe attention", "moe experts", "embedding", "llava"]


FAST = [("moe experts", "bfloat16"), ("bias", "float32"), ("more tokens, tied", "float32")]
ALL = [
    pytest.param(case, dtype, marks=() if (case, dtype) in FAST else pytest.mark.slow)
    for case in CASES
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("case", "dtype"), ALL)
def test_it_is_what_peft_makes_of_the_whole_model(case: str, dtype: str, tmp_path: Path) -> None:
    kind, shape, lora = CASES[case]
    more, lora = lora.get("more", 0), {name: value for name, value in lora.items() if name != "more"}
    base = based(tmp_path / "base", kind, dtype, "60KB" if case in SHARDED else "1GB", **shape)
    adapter = made(tmp_path / "adapter", "LoraConfig", {"r": 4, "task_type": "CAUSAL_LM", **lora}, base, dtype, more)
    expected = by_peft(adapter, tmp_path / "whole", base, dtype)
    facts = models.read(base, id="base", source="local")
    result = merging.run(plan_of(adapter, model=facts, output=tmp_path / "out", dtype=dtype))
    found = tensors(tmp_path / "out")
    assert found.keys() == expected.keys()
    wrong = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not wrong
    assert result["adapter_effect"] > 0
    theirs, ours = (dict(files.read_json(tmp_path / folder / "config.json") or {}) for folder in ("whole", "out"))
    for key in ("tie_word_embeddings", "vocab_size", "dtype", "model_type", "architectures"):
        assert ours.get(key) == theirs.get(key), key


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of 24 layers in bfloat16, and an adapter of small updates."""
    folder = tmp_path_factory.mktemp("deep")
    base = based(folder / "base", "Qwen3Config", "bfloat16", **{**QWEN, "num_hidden_layers": 24})
    settings = {"r": 4, "target_modules": "all-linear", "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    return base, made(folder / "adapter", "LoraConfig", settings, base, "bfloat16")


def _without_a_layer(self: Any, weight: torch.Tensor, room: torch.Tensor) -> bool:
    return ".layers.13." in self.a or ADD_TO(self, weight, room)


ADD_TO = lora.Delta.add_to
WRONG: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a layer left out": (lora.Delta, "add_to", _without_a_layer),
    "nine tenths of it": (lora, "scaling_of", lambda config, module, r: 0.9 * config["lora_alpha"] / r),
}


@pytest.mark.parametrize("wrong", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in WRONG)])
def test_a_deep_model_in_16_bits_hides_no_wrong_merge(
    wrong: str, deep: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(
        deep[1], model=models.read(deep[0], id="deep", source="local"), output=tmp_path / "out", dtype="bfloat16"
    )
    if not wrong:
        assert merging.run(plan)["passed"]
        return
    monkeypatch.setattr(*WRONG[wrong])
    with pytest.raises(ToolboxError, match=r"Weights equal base . adapter: \d+ tensors differ"):
        merging.run(plan)


LEFT_TIED: list[dict[str, Any]] = [
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["lm_head"]},
    {"modules_to_save": ["lm_head"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("lora", LEFT_TIED)
def test_a_head_that_shares_memory_with_the_embeddings_is_untied_where_peft_would_change_both(
    lora: dict[str, Any], tmp_path: Path
) -> None:
    """peft's merge_and_unload adds to the one tensor that both are: a model that base + adapter never was."""
    base = based(tmp_path / "base", "Qwen3Config", **{**QWEN, "tie_word_embeddings": True})
    settings = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **lora}
    adapter = made(tmp_path / "adapter", "LoraConfig", settings, base)
    result = merging.run(plan_of(adapter, model=models.read(base, id="base", source="local"), output=tmp_path / "out"))
    assert result["passed"]
    assert result["max_abs_diff"] < 1e-3 < result["adapter_effect"]
    assert not dict(files.read_json(tmp_path / "out/config.json") or {})["tie_word_embeddings"]
