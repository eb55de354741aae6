"""The models known by name: how many, how they are found, what is planned with them, names that are nearly theirs."""

import csv
from pathlib import Path

import pytest

from toolbox import device, planning, registry
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.registry import Wanted, lookalikes, shapes
from toolbox.wishes import Wishes

A10 = device.assume("NVIDIA A10:24GiB")


def test_it_holds_the_models_that_were_promised(tmp_path: Path) -> None:
    known = registry.every(Home(tmp_path))
    text = [model for model in known if model.modality == "text"]
    assert len(text) >= 600
    assert len(known) - len(text) >= 300
    assert sum(model.tunable for model in text) >= 450
    assert len({model.name.lower() for model in known}) == len(known)
    assert all(registry.kind(model) in registry.KINDS for model in known)
    assert all(registry.find(name.upper(), Home(tmp_path)) == model for model in known[::40] for name in model.names)


def test_the_readmes_count_them_rightly() -> None:
    count, root = len(registry.shipped()), Path(__file__).parent.parent
    assert f"认识 <!--models-->{count:,}<!--/--> 个模型" in (root / "README.md").read_text(encoding="utf-8")
    assert f"<!--models-->{count:,}<!--/--> models are known" in (root / "README.en.md").read_text(encoding="utf-8")


def test_every_model_can_be_planned_for_or_says_why_not(tmp_path: Path) -> None:
    """In one process; what a shape counts is what the name says, within what names are rounded by."""
    home, counted = Home(tmp_path), 0
    for model in registry.every(home):
        facts = shapes.facts(model)
        assert 0.55 < facts.parameters / 1e9 / model.params_b < 1.9, model.name
        assert facts.guessed == (not shapes.source(model))
        counted += 1
        if counted % 12:
            continue
        if model.quantised:
            with pytest.raises(InputError, match="quantised already"):
                planning.plan_finetune(facts, [], A10, Wishes(), home, must_fit=False)
        else:
            plan = planning.plan_finetune(facts, [], A10, Wishes(), home, must_fit=False)
            assert plan.estimate.peak_bytes > 0.4 * facts.parameters


@pytest.mark.parametrize(
    ("wanted", "some", "none"),
    [
        (Wanted(words=["qwen2.5", "7b"]), "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-72B"),
        (Wanted(words=["coder"], smallest=6, largest=8), "Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-32B"),
        (Wanted(family="qwen3_vl"), "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-4B"),
        (Wanted(licence="mit", kind="base"), "microsoft/phi-2", "Qwen/Qwen2.5-7B"),
        (Wanted(words=["LLM-Research/Meta-Llama-3"]), "meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen2.5-7B"),
    ],
)
def test_a_search_finds_by_name_size_family_and_licence(wanted: Wanted, some: str, none: str, tmp_path: Path) -> None:
    found = [model.name for model in registry.search(wanted, Home(tmp_path))]
    assert some in found
    assert none not in found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen/Qwen2.5-7B-Instuct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwem/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("meta-Ilama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwеn2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("evil/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_names_that_are_nearly_known_ones_warn(name: str, meant: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert registry.find(meant, home), meant
    assert meant in lookalikes.warning(name, home)
    assert lookalikes.nearest(name, home) == meant


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "qwen/qwen2.5-7b-instruct", "Qwen/Qwen2.5-9B-Instruct",
                                  "someone/entirely-different", "demo", "unsloth/Qwen2.5-7B-Instruct"])  # fmt: skip
def test_known_names_and_other_models_do_not_warn(name: str, tmp_path: Path) -> None:
    assert lookalikes.warning(name, Home(tmp_path)) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("THUDM/AgentInstuct", "THUDM/AgentInstruct"),
        ("argila/kto-mix-15k", "argilla/kto-mix-15k"),
        ("Hello-SimpleAl/HC3", "Hello-SimpleAI/HC3"),
        ("evil/xlam-function-calling-60k", "Salesforce/xlam-function-calling-60k"),
        ("Salesforce/xlam-function-calling-60k", ""),
        ("salesforce/XLAM-function-calling-60k", ""),
        ("someone/rows-of-their-own", ""),
    ],
)
def test_data_sets_whose_names_are_nearly_known_ones_warn(name: str, meant: str, tmp_path: Path) -> None:
    warned = lookalikes.warning(name, Home(tmp_path), "dataset")
    assert (meant.partition("/")[2] in warned) if meant else not warned


def test_shapes_name_where_they_are_published(tmp_path: Path) -> None:
    home = Home(tmp_path)
    known = shapes.facts(registry.get("Qwen/Qwen2.5-7B-Instruct", home))
    assert (known.hidden_size, known.num_hidden_layers, known.intermediate_size) == (3584, 28, 18944)
    assert known.parameters == 7_615_616_512
    assert all(shapes.source(model) or model.shape.startswith(shapes.GUESSED) for model in registry.every(home))
    with (shapes.TABLE.with_name("models.csv")).open(encoding="utf-8") as file:
        published = sum(not row["shape"].startswith(shapes.GUESSED) for row in csv.DictReader(file))
    assert published >= 850


def test_the_original_of_a_quantised_model_is_named(tmp_path: Path) -> None:
    awq = shapes.facts(registry.get("Qwen/Qwen2.5-7B-Instruct-AWQ", Home(tmp_path)))
    with pytest.raises(InputError) as raised:
        planning.plan_finetune(awq, [], A10, Wishes(), Home(tmp_path))
    assert "Qwen/Qwen2.5-7B-Instruct;" in raised.value.remedy
    assert registry.original("someone/else-AWQ") == registry.original("Qwen/Qwen2.5-7B-Instruct") == ""


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as raised:
        registry.get("Qwen/Qwen2.5-7B-Instuct", Home(tmp_path))
    assert "Qwen/Qwen2.5-7B-Instruct" in raised.value.remedy
