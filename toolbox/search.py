"""The search: of all recipes and variants that fit a device, the one that trains fastest; `plan` shows it.

A variant divides a step otherwise, and teaches the same: a smaller micro-batch with the same effective batch, and
activations kept or computed again. Which kernel attends is the training's own choice, by what is installed.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import msgspec

from toolbox import calibration, memory, models
from toolbox import recipe as recipes
from toolbox import wishes as wishing
from toolbox.config import Home
from toolbox.device import GIB, Device
from toolbox.memory import Estimate, Load, Rollout
from toolbox.models import ModelFacts
from toolbox.recipe import Recipe
from toolbox.stages import AnyOptions, Grpo, Ppo
from toolbox.wishes import Wishes

MARGIN = 0.1
"""Share of the device's free memory that is left free at least; more where runs here have lain further off."""
MARGIN_GUESSED = 0.2
"""Where the model's shape is guessed from its size: same-sized models of a kind differ by as much in what they keep."""
SOLD = 0.92
"""A GPU counts as what its box says from this share of it on: an A10 of 24 GiB shows 22.2 to 22.5 with ECC."""
LACKING = {"adamw_8bit": ("mps",), "paged_adamw_8bit": ("mps", "cpu")}
"""Kinds of devices that bitsandbytes has no such optimizer for."""
DIGITS = 3
"""Significant digits in which one variant is faster than another: the time model is no better."""


class Problem(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be trained, on what, and what was said about it."""

    model: ModelFacts
    device: Device
    load: Load
    wishes: Wishes
    """With method, quantization and stage in accord."""
    home: Home
    noted: tuple[calibration.Line, ...] = ()
    """What runs here took."""


class Choice(msgspec.Struct, frozen=True):
    """A recipe with nothing left open, and what it takes."""

    recipe: Recipe
    estimate: Estimate

    @property
    def too_large_bytes(self) -> int:
        """Bytes that the device lacks for it and its margin; 0 or less: it fits."""
        return self.estimate.peak_bytes - int(self.estimate.device_bytes * (1 - self.estimate.margin))


class Refusal(msgspec.Struct, kw_only=True, frozen=True):
    """What would have come first, had it fitted."""

    recipe: str
    method: str
    quantization: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    peak_bytes: int
    too_large_bytes: int
    """Beyond what is free less the margin."""
    tokens_per_s: float
    """Predicted; 0: not known."""


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """What a search came to."""

    choice: Choice
    first: Choice
    """The best of the most apt recipe; it may not fit."""
    refused: list[Refusal]
    fitting: int
    """How many variants fit."""


def search(problem: Problem) -> Found:
    """The variant to train by.

    Without a preference the most apt recipe that fits is taken (24 GiB and more: LoRA; less: QLoRA; Apple: a small
    batch), in its fastest variant. `quality`: a base in 16 bits comes before one in 4. `speed`, `memory`: the fastest
    or the smallest of all. What leaves no margin is taken only where nothing leaves one.
    """
    by_recipe = [variants(problem, recipe) for recipe in candidates(problem)]
    ranked = _ranked(by_recipe, problem.wishes.prefer)
    fitting = [choice for choice in ranked if choice.too_large_bytes <= 0]
    tight = [choice for choice in ranked if choice.estimate.fits]
    chosen = next(iter(fitting or tight), None) or smallest(by_recipe[0])
    ahead = list(takewhile(lambda choice: choice is not chosen, ranked)) if chosen.estimate.fits else ranked
    return Found(
        choice=chosen,
        first=fastest(by_recipe[0]),
        refused=[_refusal(choice) for choice in ahead if choice.too_large_bytes > 0],
        fitting=len(fitting),
    )


def _ranked(by_recipe: Sequence[Sequence[Choice]], prefer: str) -> list[Choice]:
    """The best first. Equals stay in their order: the more apt recipe, its own way, larger batches."""

    def key(placed: tuple[int, Choice]) -> tuple[float, ...]:
        place, choice = placed
        match prefer:
            case "speed":
                return (_slowness(choice),)
            case "memory":
                return choice.estimate.peak_bytes, _slowness(choice)
            case "quality":
                return choice.recipe.quantization != "none", place, _slowness(choice)
            case _:
                return place, _slowness(choice)

    placed = [(place, choice) for place, choices in enumerate(by_recipe) for choice in choices]
    return [choice for _place, choice in sorted(placed, key=key)]


def _slowness(choice: Choice) -> float:
    return -float(f"{choice.estimate.tokens_per_s:.{DIGITS}g}")


def smallest(choices: Iterable[Choice]) -> Choice:
    """The one that takes the least memory."""
    return min(choices, key=lambda choice: choice.estimate.peak_bytes)


def fastest(choices: Sequence[Choice]) -> Choice:
    """Of one recipe's variants, the fastest that fits; the smallest where none does."""
    fitting = [choice for choice in choices if choice.too_large_bytes <= 0]
    return min(fitting, key=_slowness) if fitting else smallest(choices)


def _refusal(choice: Choice) -> Refusal:
    recipe, training = choice.recipe, choice.recipe.training
    return Refusal(
        recipe=recipe.name,
        method=recipe.method,
        quantization=recipe.quantization,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=training.gradient_checkpointing,
        peak_bytes=choice.estimate.peak_bytes,
        too_large_bytes=choice.too_large_bytes,
        tokens_per_s=choice.estimate.tokens_per_s,
    )


def candidates(problem: Problem) -> list[Recipe]:
    """The recipes to try, best first: the one named; of a wished method the most apt; else those for this hardware.

    Where nobody asked, recipes for smaller hardware of the same kind follow: they may fit where the apt one does not.
    """
    wishes, home = problem.wishes, problem.home
    if wishes.recipe:
        return [recipes.find(wishes.recipe, home)]
    known = [recipe for recipe in recipes.every(home) if not recipe.plugins]
    if wishes.method != "auto":
        known = wishing.nearest(known, wishes)
        return sorted(known, key=lambda recipe: _aptness(recipe, problem))[:1]
    known = [recipe for recipe in known if recipe.automatic and is_for(recipe, problem)]
    return sorted(known, key=lambda recipe: _aptness(recipe, problem))


def is_for(recipe: Recipe, problem: Problem) -> bool:
    """Whether the recipe is for this kind of device and for models of this size, and runs nobody's code."""
    match = recipe.match
    return (
        not recipe.plugins and problem.device.kind in match.device and problem.model.parameters <= match.parameters_to
    )


def _aptness(recipe: Recipe, problem: Problem) -> tuple[bool, bool, float, float]:
    """A key that sorts the most apt recipe first: for this kind, for this memory, for the smallest models, the
    largest GPU."""
    match, memory_gib = recipe.match, problem.device.memory_total_bytes / GIB
    in_range = match.memory_from_gib * SOLD <= memory_gib < match.memory_to_gib * SOLD
    return not is_for(recipe, problem), not in_range, match.parameters_to, -match.memory_from_gib


def variants(problem: Problem, recipe: Recipe) -> list[Choice]:
    """The recipe with every wish in it and its types settled, in all variants: its own way first, then smaller batches;
    then the same with activations computed again, or kept."""
    wishes, device = problem.wishes, problem.device
    recipe = recipes.change(
        recipes.for_stage(wishing.granted(recipe, wishes), wishes.stage),
        [*_settings(wishes), *wishing.judged(wishes), *wishes.settings],
    )
    recipe = _typed(recipe, problem.model, device)
    load = rolled_out(problem.load, recipes.stage_options(recipe, wishes.stage))
    said = [setting.partition("=")[0].strip().removeprefix("training.") for setting in wishes.settings]
    divided = wishes.per_device_train_batch_size or "per_device_train_batch_size" in said
    sized = [recipe] if divided else [_with_batch(recipe, batch) for batch in _batches(recipe, device)]
    if "gradient_checkpointing" not in said:
        sized += [_with_other_checkpointing(variant) for variant in sized]
    by = calibration.of_lines(problem.noted, problem.model, recipe, device, wishes.stage)
    return [Choice(variant, _estimated(problem, variant, load, by)) for variant in sized]


def _estimated(problem: Problem, recipe: Recipe, load: Load, by: calibration.Factors) -> Estimate:
    estimate = calibration.corrected(memory.estimate(problem.model, recipe, problem.device, load), by)
    return msgspec.structs.replace(estimate, margin=max(margin(problem.model), by.margin))


def margin(model: ModelFacts) -> float:
    """Share of the free memory that is left free for `model` at least."""
    return MARGIN_GUESSED if model.guessed else MARGIN


def _settings(wishes: Wishes) -> list[str]:
    """The wishes that have an option of their own, as `recipe.change` takes them."""
    named = {
        "max_length": wishes.max_length,
        "num_train_epochs": wishes.num_train_epochs,
        "max_steps": None if wishes.num_train_epochs is None else -1,
        "learning_rate": wishes.learning_rate,
        "per_device_train_batch_size": wishes.per_device_train_batch_size,
    }
    return [f"{name}={value}" for name, value in named.items() if value is not None]


def _typed(recipe: Recipe, model: ModelFacts, device: Device) -> Recipe:
    """The recipe with a dtype, an optimizer that this device has, and no longer rows than the model takes."""
    sixteen = "bfloat16" if device.bf16 else "float16" if device.kind == "cuda" else "float32"
    dtype = sixteen if recipe.dtype == "auto" else recipe.dtype
    training = msgspec.structs.replace(
        recipe.training,
        max_length=min(recipe.training.max_length, model.max_position_embeddings),
        optim="adamw_torch" if device.kind in LACKING.get(recipe.training.optim, ()) else recipe.training.optim,
    )
    family, lora = models.family(model.model_type), recipe.LoraConfig
    if family and family.target_modules and lora.get("target_modules") == "all-linear":
        lora = {**lora, "target_modules": family.target_modules}
    quantization = {"bnb_4bit_compute_dtype": dtype, **recipe.BitsAndBytesConfig} if recipe.BitsAndBytesConfig else {}
    return msgspec.structs.replace(
        recipe, dtype=cast(Any, dtype), training=training, BitsAndBytesConfig=quantization, LoraConfig=lora
    )


def _batches(recipe: Recipe, device: Device) -> list[int]:
    """Batch sizes to try, largest first: divisors of the effective batch; only a CUDA GPU may get more than the
    recipe's."""
    training = recipe.training
    effective = training.per_device_train_batch_size * training.gradient_accumulation_steps
    largest = effective if device.kind == "cuda" else training.per_device_train_batch_size
    return [batch for batch in range(largest, 0, -1) if effective % batch == 0]


def _with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with that batch, and as many accumulated as keep the effective batch."""
    training = recipe.training
    effective = training.per_device_train_batch_size * training.gradient_accumulation_steps
    training = msgspec.structs.replace(
        training, per_device_train_batch_size=batch, gradient_accumulation_steps=effective // batch
    )
    return msgspec.structs.replace(recipe, training=training)


def _with_other_checkpointing(recipe: Recipe) -> Recipe:
    training = recipe.training
    training = msgspec.structs.replace(training, gradient_checkpointing=not training.gradient_checkpointing)
    return msgspec.structs.replace(recipe, training=training)


def rolled_out(load: Load, options: AnyOptions | None) -> Load:
    """`load` with what it takes that the model answers the rows itself, where the stage has it do so."""
    match options:
        case Grpo():
            answers, updates, reference = options.num_generations, options.num_iterations, options.beta > 0
        case Ppo():
            answers, updates, reference = 1, options.num_ppo_epochs, options.kl_coef > 0
        case _:
            return load
    folder = Path(options.reward_model)
    judging = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if options.reward_model else 0
    rollout = Rollout(
        answers=answers,
        tokens=options.response_length,
        updates=updates,
        reference=reference,
        reward_model_bytes=judging,
    )
    return msgspec.structs.replace(load, longest_tokens=load.longest_tokens + rollout.tokens, rollout=rollout)
