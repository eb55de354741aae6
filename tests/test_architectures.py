"""Every architecture of the registry: what was measured of it is what the page says, and a dozen are measured again."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from plans import finetune_plan

sys.path.insert(0, str(ROOT / "scripts"))
import architectures
import architectures_page
import shrinking

from toolbox import loading, models
from toolbox.errors import InputError
from toolbox.runs import Silent
from toolbox.training import attention, layouts
from toolbox.training.adapted import AdaptedLinear
from toolbox.training.rows import Sample
from toolbox.training.step import Forward
from toolbox.training.tuners.adapters import AdapterTuner

DOZEN = (
    "deepseek_v3", "falcon_h1", "gemma2", "gemma3n", "gemma4", "gpt_oss", "llama4", "mamba", "mllama", "qwen2_5_omni",
    "qwen3_next", "unlimited_ocr",
)  # fmt: skip
"""Latent attention, state spaces, softcaps, a missing library, layers with inputs of their own, sinks, chunks,
cross-attention, a part that speaks, gated delta nets, an adapter that peft loses."""
ENOUGH = 0.9
"""The least share of the types that has to train."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_what_the_page_tells_was_measured_of_every_type_in_the_registry() -> None:
    types = architectures.read().types
    assert [one.model_type for one in types] == architectures.every()
    works = [one for one in types if one.works]
    assert len(works) >= ENOUGH * len(types)
    for one in works:
        assert one.moved == 1.0, one.model_type
        assert one.reload_diff is not None, one.model_type
        assert max(one.reload_diff, one.merge_diff or 0) <= architectures.SAME, one.model_type
        assert one.adapted, one.model_type
    for one in types:
        assert one.works or one.refused, one.model_type


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_page_says_what_was_measured(language: str) -> None:
    told = architectures_page.PAGES[language].read_text("utf-8")
    assert told == architectures_page.page(language), "run: python scripts/architectures_page.py"


def test_a_model_that_sees_trains_its_text_and_nothing_else(tmp_path: Path) -> None:
    measured = architectures.measure("qwen2_vl", tmp_path)
    told = {one.model_type: one for one in architectures.read().types}
    assert architectures.same(measured, told["qwen2_vl"]), measured


@pytest.mark.slow
@pytest.mark.parametrize("model_type", DOZEN)
def test_a_dozen_types_do_what_the_page_says(model_type: str, tmp_path: Path) -> None:
    measured = architectures.measure(model_type, tmp_path)
    told = {one.model_type: one for one in architectures.read().types}
    assert architectures.same(measured, told[model_type]), measured


def test_an_encoder_is_not_taken_for_a_writer() -> None:
    """As AutoModelForCausalLM loads one: it sees the answer, so its loss would fall to nothing."""
    from transformers import XLMRobertaForCausalLM

    torch.manual_seed(0)
    model: Any = XLMRobertaForCausalLM(shrinking.config("xlm-roberta"))
    samples = [Sample("", number, ids := list(range(number, number + 20)), ids) for number in (10, 40, 70)]
    with pytest.raises(InputError, match="sees the words"):
        layouts.choose(Forward(model, 0, "cpu", "float32"), samples, Silent())


def test_experts_are_left_out_so_that_dropout_is_allowed(home: Path, tmp_path: Path) -> None:
    architectures.make("mixtral", tmp_path / "copy")
    base = loading.base_model(tmp_path / "copy", "float32", "cpu")
    model = AdapterTuner(finetune_plan(home))._adapted(base)
    assert {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad} == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


def test_a_model_may_add_to_an_adapted_linear_in_place() -> None:
    x, a, b = torch.randn(1, 3, 4), torch.randn(2, 4, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    weight = torch.randn(5, 4)
    out = AdaptedLinear.apply(x, weight, None, a, b, 0.5)  # type: ignore[no-untyped-call]
    expected = x @ weight.T + 0.5 * x @ a.T @ b.T + 1
    assert torch.allclose(out.add_(1), expected, atol=1e-5)
    out.sum().backward()
    assert torch.allclose(b.grad, 0.5 * (x @ a.T).sum((0, 1)).expand(5, 2), atol=1e-5)  # type: ignore[arg-type]


def test_planning_reads_the_config_of_every_type() -> None:
    for model_type in (one.model_type for one in architectures.read().types if one.works):
        config: dict[str, Any] = {"model_type": model_type, "dtype": None, "architectures": ["Any"]}
        if model_type == "nemotron_h":  # its number of layers is nowhere else
            config |= {"layers_block_type": ["linear_attention", "moe", "full_attention"], "num_attention_heads": 32}
        facts = models.facts_of_config(config, id=model_type, source="local")
        assert facts.network.parameters > 0, model_type
        assert facts.num_hidden_layers > 0, model_type


def test_a_window_as_long_as_the_rows_changes_nothing() -> None:
    config: Any = shrinking.config("gemma3_text")
    config._attn_implementation = "sdpa"
    assert attention.suits(config, config.sliding_window)
    assert not attention.suits(config, config.sliding_window + 1)
    config.layer_types = ["linear_attention", "full_attention"]
    assert not attention.suits(config, 8)
