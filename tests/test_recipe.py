"""Recipes: every shipped one against the classes that take it, and what a person may get wrong in their own."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from toolbox import recipe
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError

SHIPPED = sorted(recipe.SHIPPED.rglob("*.y*ml"))
NOT_IN_TRAINING_ARGUMENTS = {"packing", "max_length", "warmup_ratio"}
"""trl's SFTConfig has the first; the second is transformers' name until version 5, which reads it from warmup_steps."""
LEAST = "name: mine\nsummary: a test\nmethod: lora\ntraining: {per_device_train_batch_size: 2, learning_rate: 2e-4}\n"


def test_there_are_recipes_for_every_device() -> None:
    kinds = {kind for path in SHIPPED for kind in recipe.load(path).match.device}
    assert kinds == {"cuda", "mps", "cpu"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_opens_with_the_command_that_uses_it(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    name = recipe.load(path).name
    assert first.startswith("# bash yichuidingyin.sh finetune ")
    assert first.endswith((f"--recipe {name}", f"--method {name}"))
    assert name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipes_blocks_are_taken_by_their_classes(path: Path) -> None:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    loaded = recipe.load(path)
    assert bool(loaded.LoraConfig) == (loaded.method != "full")
    assert bool(loaded.BitsAndBytesConfig) == (loaded.quantization != "none")
    LoraConfig(**loaded.LoraConfig)
    BitsAndBytesConfig(**loaded.BitsAndBytesConfig)
    assert set(loaded.LoraConfig) <= set(inspect.signature(LoraConfig).parameters)
    assert set(loaded.BitsAndBytesConfig) <= set(inspect.signature(BitsAndBytesConfig).parameters)


def test_the_training_block_has_transformers_names() -> None:
    from transformers import TrainingArguments

    names = set(recipe.Training.__struct_fields__) - NOT_IN_TRAINING_ARGUMENTS
    assert names <= set(inspect.signature(TrainingArguments).parameters)


@pytest.mark.parametrize("block", recipe.LIBRARY_BLOCKS)
def test_keys_read_from_the_source_are_those_of_the_class(block: str) -> None:
    import peft
    import transformers

    library = {"BitsAndBytesConfig": transformers}.get(block, peft)
    parameters = set(inspect.signature(getattr(library, block)).parameters) - {"kwargs"}
    inherited = {"auto_mapping", "peft_version", "peft_type", "base_model_name_or_path", "revision", "inference_mode"}
    assert recipe.library_keys(block) == parameters - inherited


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E5", 1e5), ("-3e2", -300.0), (".5", 0.5), ("1.5e-3", 1.5e-3), ("1_000", 1000), ("12", 12),
        ("2e", "2e"), ("e5", "e5"), ("1.2.3", "1.2.3"), ("nf4", "nf4"), ("true", True),
    ],
)  # fmt: skip
def test_numbers_are_read_as_json_would(text: str, value: object) -> None:
    found = recipe.parse(f"x: {text}")["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        (LEAST + "summery: x\n", "summery", "summary"),
        (LEAST + "match: {divice: [cuda]}\n", "match.divice", "device"),
        (LEAST.replace("2e-4", "2e-4, learning_rates: 1"), "training.learning_rates", "learning_rate"),
        (LEAST + "LoraConfig: {lora_alfa: 16}\n", "LoraConfig.lora_alfa", "lora_alpha"),
        (LEAST + "BitsAndBytesConfig: {load_in_4bits: true}\n", "BitsAndBytesConfig.load_in_4bits", "load_in_4bit"),
    ],
)
def test_an_unknown_key_is_refused_and_the_known_ones_named(tmp_path: Path, text: str, key: str, known: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe.load(written(tmp_path, text))
    assert repr(key) in caught.value.message
    assert caught.value.remedy.startswith(f"Did you mean {known}?")
    assert "Known keys: " in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {canary}']",
        LEAST + "LoraConfig: !!python/object/new:os.system ['touch {canary}']",
        LEAST + "LoraConfig: {r: &a [1, 1], lora_alpha: &b [*a, *a], lora_dropout: [*b, *b]}",
        "a: [",
        "- a\n- b",
        "",
        "\x00",
        LEAST.replace("lora\n", "magic\n"),
        LEAST.replace("2e-4", "fast"),
        LEAST.replace("2e-4", "-1"),
        "name: x",
    ],
)
def test_a_hostile_or_broken_recipe_is_one_sentence(tmp_path: Path, text: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(InputError) as caught:
        recipe.load(written(tmp_path, text.replace("{canary}", str(canary))))
    assert "\n" not in caught.value.message
    assert not canary.exists()


def test_a_persons_recipe_hides_the_shipped_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    written(home.recipes / "deep", LEAST.replace("mine", "lora"))
    assert recipe.find("lora", home).training.per_device_train_batch_size == 2
    assert recipe.known(home) == recipe.known(Home(tmp_path / "other"))


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    assert recipe.find(str(written(tmp_path, LEAST)), Home(tmp_path)).name == "mine"


def test_an_unknown_recipe_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'lorra'") as caught:
        recipe.find("lorra", Home(tmp_path))
    assert "qlora" in caught.value.remedy


def test_settings_change_a_recipe(tmp_path: Path) -> None:
    changed = recipe.change(
        recipe.load(written(tmp_path, LEAST)),
        ["learning_rate=1e-5", "training.max_steps=7", "LoraConfig.r=16", "LoraConfig.target_modules=[q_proj, v_proj]"],
    )
    assert (changed.training.learning_rate, changed.training.max_steps) == (1e-5, 7)
    assert changed.LoraConfig == {"r": 16, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    "setting", ["max_steps", "=3", "lr=1", "LoraConfig.rank=8", "os.system=1", "max_length=0", "max_steps=["]
)
def test_a_wrong_setting_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InputError, match=re.escape("--set")):
        recipe.change(recipe.load(written(tmp_path, LEAST)), [setting])


def test_yaml_of_any_kind_is_written_back_as_it_was() -> None:
    values = {"learning_rate": 2e-4, "tiny": 1e-12, "r": 8, "on": True, "text": "nf4"}
    assert recipe.parse(yaml.safe_dump(values)) == values


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path
