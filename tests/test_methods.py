"""The table of methods: its names, its formulas against what peft really makes, and what it makes of recipes."""

import math
from pathlib import Path
from typing import Any

import pytest
from plans import demo_facts

from toolbox import methods, parameters, recipe
from toolbox.config import Home
from toolbox.device import assume
from toolbox.errors import InputError
from toolbox.methods import METHODS, Method
from toolbox.plan import FinetunePlan
from toolbox.planning import plan_finetune
from toolbox.wishes import Wishes

ADAPTERS = [method for method in METHODS if method.kind == "adapter"]


def made(method: str = "auto", device: str = "A100:80GiB", **wishes: Any) -> FinetunePlan:
    return plan_finetune(demo_facts(), [], assume(device), Wishes(method=method, **wishes), Home(Path("/nowhere")))


def base() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo_facts().path))


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_the_weights_counted_are_those_that_peft_makes(method: Method) -> None:
    import peft

    plan = made(method.name)
    settings = methods.settings(plan) | ({"total_step": 100} if method.name == "adalora" else {})
    tuned = peft.get_peft_model(base(), getattr(peft, method.block)(**settings))
    counted = tuned.num_parameters(only_trainable=True)
    if method.name == "lora-fa":
        counted = sum(weight.numel() for name, weight in tuned.named_parameters() if "lora_B" in name)
    expected = parameters.trained(demo_facts(), plan)
    assert expected >= counted if method.name in ("ia3", "ln") else expected == counted


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_can_be_planned_and_says_what_it_is(method: Method) -> None:
    plan = made(method.name)
    assert plan.method == method.name
    assert plan.quantization == ("nf4" if method.name == "qlora" else "none")
    for block, settings in method.blocks.items():
        assert settings.items() <= methods.settings(plan, block).items()
        assert set(methods.settings(plan, block)) <= set(recipe._known(block))
    assert plan.training.optim == (method.optim or plan.training.optim)
    assert method.summary
    assert not math.isnan(plan.estimate.peak_bytes)


@pytest.mark.parametrize(
    ("typed", "near"), [("LORA", "lora"), ("dorra", "dora"), ("ada-lora", "adalora"), ("magic", "Methods: lora")]
)
def test_an_unknown_method_is_answered_with_what_is_near(typed: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        made(typed)
    assert typed in caught.value.message
    assert near in caught.value.remedy


def test_a_method_takes_what_the_recipe_says_of_lora_and_a_rate_of_its_own() -> None:
    lora, dora, vera = made("lora"), made("dora"), made("vera")
    assert dora.LoraConfig == {**lora.LoraConfig, "use_dora": True}
    assert (vera.LoraConfig, list(vera.blocks)) == ({}, ["VeraConfig"])
    assert vera.training.learning_rate == pytest.approx(lora.training.learning_rate * methods.find("vera").rate)
    assert made("vera", learning_rate=1e-3).training.learning_rate == 1e-3


def test_four_bits_go_with_the_methods_that_take_them() -> None:
    assert made("dora", quantization="nf4").BitsAndBytesConfig["bnb_4bit_quant_type"] == "nf4"
    assert made("lora", quantization="nf4").method == "qlora"
    assert made(quantization="nf4").method == "qlora"
    with pytest.raises(InputError, match="4 bits"):
        made("boft", quantization="nf4")
    with pytest.raises(InputError, match="4 bits"):
        made("full", quantization="nf4")
    with pytest.raises(InputError, match="is lora"):
        made("qlora", quantization="none")


def test_settings_of_other_blocks_are_set_and_checked(tmp_path: Path) -> None:
    assert made("oft", settings=["OFTConfig.oft_block_size=16"]).blocks["OFTConfig"]["oft_block_size"] == 16
    assert made("lisa", settings=["LisaConfig.layers=3"]).blocks["LisaConfig"]["layers"] == 3
    with pytest.raises(InputError, match=r"OFTConfig\.block_size"):
        made("oft", settings=["OFTConfig.block_size=16"])
    with pytest.raises(InputError, match="LisaConfig"):
        made("lisa", settings=["LisaConfig.layers=none"])
    with pytest.raises(InputError, match="VeraConfig"):
        made("oft", settings=["VeraConfig.r=16"])


def test_a_recipe_file_names_the_class_as_its_block(tmp_path: Path) -> None:
    least = (
        "name: mine\nsummary: a test\nmethod: oft\ntraining: {per_device_train_batch_size: 2, learning_rate: 2e-4}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(least + "OFTConfig: {oft_block_size: 8}\n")
    plan = made(recipe=str(path))
    assert plan.blocks == {"OFTConfig": {**methods.find("oft").settings, "oft_block_size": 8}}
    assert plan.training.learning_rate == 2e-4
    path.write_text(least + "OFTConfig: {blocksize: 8}\n")
    with pytest.raises(InputError, match="blocksize"):
        made(recipe=str(path))
    path.write_text(least.replace("oft", "often"))
    with pytest.raises(InputError) as caught:
        made(recipe=str(path))
    assert "oft" in caught.value.remedy


def test_fewer_gradients_or_moments_take_less_memory() -> None:
    facts = demo_facts()
    full, lisa = made("full"), made("lisa")
    assert parameters.trained(facts, made("freeze")) < parameters.trained(facts, full) == facts.parameters
    assert parameters.optimizer_elements(facts, lisa) < facts.parameters
    galore = made("galore", settings=["GaloreConfig.rank=16"])
    assert parameters.optimizer_elements(facts, galore) < facts.parameters
    assert parameters.trained(facts, made("loreft")) == 4 * 4 * (2 * 192 + 1)
