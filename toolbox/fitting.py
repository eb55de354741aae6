"""Which methods of tuning a device has room for, model by model (`models search --fits`, the menu's catalogue)."""

import functools
from collections.abc import Iterable, Iterator

import msgspec

from toolbox import registry, search
from toolbox.config import Home
from toolbox.device import Device
from toolbox.memory import Load, parts_bytes
from toolbox.models import ModelFacts
from toolbox.recipe import Recipe
from toolbox.registry import Model, shapes
from toolbox.search import Problem
from toolbox.wishes import Wishes, agreed

METHODS = ("full", "lora", "qlora")
LENGTH = 2048
"""Tokens a row, where a recipe takes as many: what `plan` plans with."""
ROWS = Load(rows=0, longest_tokens=1 << 40, mean_tokens=0)
"""As long as they may get."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has room for, one row at a time with activations computed again."""

    methods: tuple[str, ...]
    """Of `METHODS`, those that fit; empty: none, or it can't be trained at all."""
    peak_bytes: int = 0
    """Of the smallest method."""
    too_large_bytes: int = 0
    """What the device lacks for the smallest method, with its margin; 0: it fits."""
    refused: str = ""
    """native or quantised: why it can't be trained whatever the device; empty: it can."""

    @property
    def best(self) -> str:
        """The method to take: LoRA, else QLoRA."""
        return next((name for name in ("lora", "qlora", "full") if name in self.methods), "")


def fits(models: Iterable[Model], device: Device, home: Home) -> Iterator[tuple[Model, Fit]]:
    """Each model with what fits, one after the other: a page of them costs milliseconds."""
    by_method = {name: found for name in METHODS if (found := _recipe(name, device, home))}
    by_shape: dict[str, Fit] = {}
    for model in models:
        if not model.tunable:
            yield model, Fit(methods=(), refused="quantised" if model.quantised else "native")
            continue
        key = model.shape or model.name
        if key not in by_shape:
            by_shape[key] = fit(shapes.facts(model), device, by_method)
        yield model, by_shape[key]


def fit(model: ModelFacts, device: Device, by_method: dict[str, Recipe]) -> Fit:
    """What `device` has room for, of these methods' recipes."""
    room = device.memory_free_bytes * (1 - search.margin(model))
    peaks = {name: _peak(model, device, recipe) for name, recipe in by_method.items()}
    smallest = min(peaks.values())
    return Fit(
        methods=tuple(name for name, peak in peaks.items() if peak <= room),
        peak_bytes=smallest,
        too_large_bytes=max(0, smallest - int(room)),
    )


def of(model: ModelFacts, device: Device, home: Home) -> Fit:
    """What `device` has room for, of all methods."""
    return fit(model, device, {name: found for name in METHODS if (found := _recipe(name, device, home))})


def _peak(model: ModelFacts, device: Device, recipe: Recipe) -> int:
    training = msgspec.structs.replace(
        recipe.training, max_length=min(recipe.training.max_length, LENGTH, model.max_position_embeddings)
    )
    return sum(parts_bytes(model, msgspec.structs.replace(recipe, training=training), device, ROWS).values())


def _recipe(method: str, device: Device, home: Home) -> Recipe | None:
    """The recipe of a method at its smallest on this kind of device; None where there is none."""
    if method == "qlora" and device.kind != "cuda":
        return None
    problem = Problem(model=_any(home), device=device, load=ROWS, wishes=_asked(method), home=home)
    variants = search.variants(problem, search.candidates(problem)[0])
    return search.smallest(variants).recipe


def _asked(method: str) -> Wishes:
    return msgspec.structs.replace(agreed(Wishes(method=method, per_device_train_batch_size=1)), stage="sft")


@functools.cache
def _any(home: Home) -> ModelFacts:
    """Some model, for a recipe to be settled with: types and batch are the same for all."""
    return shapes.facts(registry.get("Qwen/Qwen2.5-7B", home))
