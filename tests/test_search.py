"""The search: it takes what fits, the fastest of it, and its refusals and proposals hold when they are estimated."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hardware import QWEN_7B, write_model

from toolbox import calibration, device, memory, models, nearest, registry, search
from toolbox.config import Home
from toolbox.memory import Load
from toolbox.registry import shapes as registered
from toolbox.search import Problem
from toolbox.wishes import Wishes

DEVICES = [
    "NVIDIA A10:24GiB", "Tesla T4", "A100:80GiB", "RTX 3060:12GiB", "NVIDIA L20", "Apple M2:24GiB", "CPU:16GiB",
    "GeForce RTX 4060 Ti:16GiB", "NVIDIA H100 80GB HBM3", "CPU:128GiB",
]  # fmt: skip
SIZES = [(896, 4864, 24, 14, 2), (2048, 11008, 36, 16, 2), (3584, 18944, 28, 28, 4), (5120, 13824, 48, 40, 8)]
"""Hidden, inner, layers, heads, kv heads: Qwen2.5's 0.5B, 3B, 7B and 14B."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[models.ModelFacts]:
    folder = tmp_path_factory.mktemp("models")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    configs = [{**QWEN_7B, **dict(zip(names, size, strict=True))} for size in SIZES]
    return [
        models.read(write_model(folder / str(number), config), id=str(number), source="local")
        for number, config in enumerate(configs)
    ]


def problems(shapes: list[models.ModelFacts], home: Path, count: int) -> Iterator[Problem]:
    draw = random.Random(7)
    for _ in range(count):
        rows, length = draw.choice([0, 300, 20000]), draw.choice([200, 1500, 30000])
        yield Problem(
            model=draw.choice(shapes),
            device=device.assume(draw.choice(DEVICES)),
            load=Load(rows=rows, longest_tokens=length, mean_tokens=length / 3, data_bytes=rows * length),
            wishes=Wishes(
                stage="sft",
                prefer=draw.choice(["auto", "quality", "speed", "memory"]),
                method=draw.choice(["auto", "auto", "lora", "full"]),
                max_length=draw.choice([None, 512, 30000]),
            ),
            home=Home(home),
        )


def test_what_is_taken_fits_and_is_the_fastest_of_its_kind(shapes: list[models.ModelFacts], home: Path) -> None:
    fitted = 0
    for problem in problems(shapes, home, 24):
        found = search.search(problem)
        chosen, prefer = found.choice, problem.wishes.prefer
        groups = [search.variants(problem, recipe) for recipe in search.candidates(problem)]
        every = [choice for group in groups for choice in group]
        fitting = [choice for choice in every if choice.too_large_bytes <= 0]
        assert found.fitting == len(fitting)
        if not chosen.estimate.fits:
            assert not any(choice.estimate.fits for choice in every)
            continue
        fitted += 1
        assert chosen in (fitting or every)
        own = next(group for group in groups if chosen in group)
        if not fitting:
            continue
        default = next((choice for choice in own if choice in fitting), chosen)
        if prefer in ("auto", "quality", "speed"):
            assert chosen.estimate.tokens_per_s >= default.estimate.tokens_per_s * 0.995
        if prefer == "speed":
            assert chosen.estimate.tokens_per_s >= 0.995 * max(choice.estimate.tokens_per_s for choice in fitting)
        if prefer == "memory":
            assert chosen.estimate.peak_bytes == min(choice.estimate.peak_bytes for choice in fitting)
        if prefer == "quality" and any(choice.recipe.quantization == "none" for choice in fitting):
            assert chosen.recipe.quantization == "none"
        training, as_written = chosen.recipe.training, own[0].recipe.training
        assert (
            training.per_device_train_batch_size * training.gradient_accumulation_steps
            == as_written.per_device_train_batch_size * as_written.gradient_accumulation_steps
        )
    assert 5 < fitted < 24


def test_a_refusal_says_by_how_many_bytes(shapes: list[models.ModelFacts], home: Path) -> None:
    checked = 0
    for problem in problems(shapes, home, 8):
        by_name = {recipe.name: search.variants(problem, recipe) for recipe in search.candidates(problem)}
        for refusal in search.search(problem).refused:
            recipe = next(
                choice.recipe
                for choice in by_name[refusal.recipe]
                if choice.recipe.training.per_device_train_batch_size == refusal.per_device_train_batch_size
                and choice.recipe.training.gradient_checkpointing == refusal.gradient_checkpointing
            )
            peak = memory.estimate(problem.model, recipe, problem.device, problem.load).peak_bytes
            assert refusal.peak_bytes == peak
            assert refusal.too_large_bytes == peak - int(problem.device.memory_free_bytes * (1 - search.MARGIN)) > 0
            checked += 1
    assert checked > 10


def test_what_is_proposed_fits_when_it_is_asked_for(shapes: list[models.ModelFacts], home: Path) -> None:
    kinds = set()
    for problem in problems(shapes, home, 12):
        refused = search.search(problem).choice
        if refused.estimate.fits:
            continue
        for item in nearest.nearest(problem, refused):
            words = item.option.split()
            said = dict(zip(words[::2], words[1::2], strict=False)) if item.kind != "device" else {}
            wishes = problem.wishes
            if method := said.get("--method"):
                wishes = msgspec.structs.replace(wishes, method=method)
            if length := said.get("--max-length"):
                wishes = msgspec.structs.replace(wishes, max_length=int(length))
            asked = msgspec.structs.replace(problem, wishes=wishes)
            if name := said.get("--model"):
                listed = registry.get(name, problem.home)
                assert (listed.tunable, listed.model_type) == (True, problem.model.model_type)
                assert listed.params_b < problem.model.parameters / 1e9
                asked = msgspec.structs.replace(asked, model=registered.facts(listed))
            if item.kind == "device":
                asked = msgspec.structs.replace(problem, device=device.assume(item.option))
            assert search.search(asked).choice.too_large_bytes <= 0, item
            kinds.add(item.kind)
    assert {"method", "length", "model", "device"} <= kinds


def test_the_rule_of_the_house_stays_where_both_fit(shapes: list[models.ModelFacts], home: Path) -> None:
    """24 GiB: LoRA; less: QLoRA, though LoRA would fit; and a preference is heeded."""
    load = Load(rows=100, longest_tokens=400, mean_tokens=100)
    taken = {}
    for name in ("NVIDIA A10:24GiB", "GeForce RTX 4060 Ti:16GiB"):
        for prefer in ("auto", "quality"):
            problem = Problem(
                model=shapes[0], device=device.assume(name), load=load, home=Home(home),
                wishes=Wishes(stage="sft", prefer=prefer),  # type: ignore[arg-type]
            )  # fmt: skip
            taken[name[-5:], prefer] = search.search(problem).choice.recipe.method
    assert taken == {
        ("24GiB", "auto"): "lora", ("24GiB", "quality"): "lora",
        ("16GiB", "auto"): "qlora", ("16GiB", "quality"): "lora",
    }  # fmt: skip


def test_runs_that_took_more_than_predicted_widen_the_margin(shapes: list[models.ModelFacts], home: Path) -> None:
    problem = next(
        problem for problem in problems(shapes, home, 60)
        if problem.device.kind == "cuda" and search.search(problem).choice.too_large_bytes <= 0
    )  # fmt: skip
    before = search.search(problem).choice
    key = {"device": problem.device.name, "implementation": f"cuda {before.recipe.dtype}", "stage": "sft"}
    kind = "quantized" if before.recipe.quantization != "none" else "adapter"
    kind = "weights" if before.recipe.method == "full" else kind
    figures = calibration.Figures(peak_bytes=100)
    noted = tuple(
        calibration.Line(
            run=str(number), when=0, kind=kind, model=problem.model.id, parameters=problem.model.parameters,
            method=before.recipe.method, batch="1 × 1", max_length=1, predicted=figures, said=figures,
            measured=calibration.Figures(peak_bytes=peak), seen_bytes=100, **key,
        )
        for number, peak in enumerate([100, 100, 160])
    )  # fmt: skip
    after = search.search(msgspec.structs.replace(problem, noted=noted)).choice
    assert after.estimate.margin == pytest.approx(1 - 1 / 1.6)
    assert after.estimate.peak_bytes * 1.6 <= problem.device.memory_free_bytes or after.too_large_bytes > 0
