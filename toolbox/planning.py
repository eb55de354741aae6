"""Fine-tuning decided: recipe, types and batch for this model, data and device; `plan` shows it, `finetune` does it."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import msgspec

from toolbox import models, plugins, templates
from toolbox import recipe as recipes
from toolbox import wishes as wishing
from toolbox.config import Home
from toolbox.datasets import DatasetSpec
from toolbox.device import GIB, Device
from toolbox.errors import DoesNotFitError, InputError
from toolbox.i18n import _, sentences
from toolbox.memory import Estimate, Load, Rollout, estimate
from toolbox.models import ModelFacts
from toolbox.plan import FinetunePlan
from toolbox.recipe import Recipe, Training
from toolbox.stages import PASSES_BEFORE, SEQUENCES, AnyOptions, Dpo, Grpo, Ppo, Sft
from toolbox.units import size
from toolbox.wishes import Wishes

MARGIN = 0.1
"""What a batch that is sized here leaves free of the device's memory: the memory model is right to about that."""
SOLD = 0.92
"""A GPU counts as what its box says from this share of it on: an A10 of 24 GiB shows 22.2 to 22.5 with ECC."""
TEMPLATE_TOKENS = 64
"""Room for what a chat template adds to a row."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English or Chinese text that become a token, about; a planning figure for the time only."""
LACKING = {"adamw_8bit": ("mps",), "paged_adamw_8bit": ("mps", "cpu")}
"""Kinds of devices that bitsandbytes has no such optimizer for."""
MIN_LENGTH = 128
"""Rows cut shorter than this are of no use, so none are proposed."""
TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class Alternative(msgspec.Struct, kw_only=True, frozen=True):
    """Another recipe, planned with the same wishes on the same device."""

    recipe: str
    method: str
    per_device_train_batch_size: int
    peak_bytes: int
    fits: bool


class _Choice(msgspec.Struct, frozen=True):
    """A recipe with nothing left open, and what it takes."""

    recipe: Recipe
    estimate: Estimate


def plan_finetune(
    model: ModelFacts,
    datasets: list[DatasetSpec],
    device: Device,
    wishes: Wishes,
    home: Home,
    must_fit: bool = True,
    eval_datasets: Sequence[DatasetSpec] = (),
) -> FinetunePlan:
    """Decide how to fine-tune `model` on `datasets` with `device`; nothing is decided after it.

    The evaluation loss is that of `eval_datasets`, or of rows that are held out.

    Raises InputError where the model or a wish can't be; DoesNotFitError with both figures and what would fit, but with
    `must_fit` false the plan that does not fit is returned.
    """
    _refuse_untunable(model)
    stage = wishing.stage(wishes, [*datasets, *eval_datasets])
    wishes = msgspec.structs.replace(wishing.agreed(wishes), stage=stage)
    needed = bool(datasets) and stage != "pt" and not model.chat_template
    template = templates.settled(wishes.chat_template, model.path, needed)
    eval_rows = wishing.eval_rows(wishes, sum(spec.distinct for spec in datasets), bool(eval_datasets))
    load = _load(datasets, eval_rows, stage)
    choices = [
        _settle(candidate, model, device, load, wishes) for candidate in _candidates(model, device, wishes, home)
    ]
    choice = next((choice for choice in choices if choice.estimate.fits), choices[0])
    if must_fit and not choice.estimate.fits:
        raise _does_not_fit(model, device, choice, load, wishes, home)
    chosen = choice.recipe
    wishing.refuse_unheeded(chosen, wishes)
    _refuse_missing_kernels(chosen.training, device)
    options = recipes.stage_options(chosen, stage)
    if must_fit:
        wishing.check_judged(options)
    _refuse_unknown_names(chosen, stage, wishes.callbacks)
    return FinetunePlan(
        entry="toolbox.training:run",
        stage=stage,
        options=options,
        model=model,
        device=device,
        seed=wishes.seed,
        recipe=chosen.name,
        why=_why(device, choice, choices[0], wishes),
        method=chosen.method,
        quantization=chosen.quantization,
        dtype=cast(Any, chosen.dtype),
        datasets=datasets,
        chat_template=template,
        eval_rows=eval_rows,
        eval_datasets=list(eval_datasets),
        training=chosen.training,
        LoraConfig=chosen.LoraConfig,
        BitsAndBytesConfig=chosen.BitsAndBytesConfig,
        blocks=chosen.blocks,
        callbacks=wishes.callbacks,
        estimate=choice.estimate,
    )


def alternatives(plan: FinetunePlan, wishes: Wishes, home: Home) -> list[Alternative]:
    """The other recipes for this kind of device, with what they would have taken."""
    load = _load(plan.datasets, plan.eval_rows, plan.stage)
    wishes = msgspec.structs.replace(wishes, method="auto", quantization="auto", stage=plan.stage)
    others = [
        recipe
        for recipe in recipes.every(home)
        if recipe.name != plan.recipe and _is_for(recipe, plan.model, plan.device)
    ]
    choices = [_settle(recipe, plan.model, plan.device, load, wishes) for recipe in others]
    return [
        Alternative(
            recipe=choice.recipe.name,
            method=choice.recipe.method,
            per_device_train_batch_size=choice.recipe.training.per_device_train_batch_size,
            peak_bytes=choice.estimate.peak_bytes,
            fits=choice.estimate.fits,
        )
        for choice in choices
    ]


def _refuse_unknown_names(recipe: Recipe, stage: str, callbacks: list[str]) -> None:
    """Raise NotFoundError where what a recipe names is neither built in nor a plugin's."""
    plugins.require("optimizer", recipe.training.optim)
    for name in recipe.training.report_to:
        plugins.require("tracker", name)
    for name in callbacks:
        plugins.require("callback", name)
    options = recipes.stage_options(recipe, stage)
    if isinstance(options, Sft | Dpo):
        plugins.require("loss", f"{stage}.{options.loss_type}")


def _refuse_untunable(model: ModelFacts) -> None:
    if model.quantization:
        raise InputError(
            _("{model} is quantised already ({method}) and can't be fine-tuned.").format(
                model=model.id, method=model.quantization
            ),
            _("Take the original model; QLoRA quantises it while loading."),
        )
    if model.architecture and not model.architecture.endswith(TEXT_MODELS):
        raise InputError(
            _("{model} ({architecture}) is not a model that writes text.").format(
                model=model.id, architecture=model.architecture
            ),
            _("Take a causal language model."),
        )


def _refuse_missing_kernels(training: Training, device: Device) -> None:
    if training.use_liger_kernel and device.kind != "cuda":
        raise InputError(_("use_liger_kernel is for CUDA GPUs."), _("Leave out use_liger_kernel."))
    if training.use_liger_kernel and not find_spec("liger_kernel"):
        raise InputError(
            _("use_liger_kernel needs the package liger-kernel, which is not installed."),
            _("Install it: {command}").format(command=f"{sys.executable} -m pip install liger-kernel"),
        )


def _load(datasets: list[DatasetSpec], eval_rows: int, stage: str) -> Load:
    """What data and stage do to a step; without data, rows as long as they may get, and no time."""
    sequences = SEQUENCES.get(stage, 1)
    if not datasets:
        return Load(rows=0, longest_tokens=1 << 40, mean_tokens=0, sequences=sequences)
    rows = sum(spec.rows for spec in datasets)
    size = sum(spec.size_bytes for spec in datasets)
    return Load(
        rows=max(1, rows - eval_rows),
        longest_tokens=max(spec.longest_chars for spec in datasets) + TEMPLATE_TOKENS,
        mean_tokens=size / BYTES_PER_TOKEN / max(1, rows),
        sequences=sequences,
        scored=stage == "rm",
        passes_before=PASSES_BEFORE.get(stage, 0),
        data_bytes=size,
        eval_rows=eval_rows,
    )


def load_of(plan: FinetunePlan) -> Load:
    """What the plan's data and stage do to a step."""
    return _rolled_out(_load(plan.datasets, plan.eval_rows, plan.stage), plan.options)


def _rolled_out(load: Load, options: AnyOptions | None) -> Load:
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


def _candidates(model: ModelFacts, device: Device, wishes: Wishes, home: Home) -> list[Recipe]:
    """The recipes to try, best first: the one named; of a wished method the most apt; else those for this hardware.

    Where nobody asked, recipes for smaller hardware of the same kind follow: they may fit where the apt one does not.
    """
    if wishes.recipe:
        return [recipes.find(wishes.recipe, home)]
    known = [recipe for recipe in recipes.every(home) if not recipe.plugins]
    if wishes.method != "auto":
        known = wishing.nearest(known, wishes)
        return sorted(known, key=lambda recipe: _aptness(recipe, model, device))[:1]
    known = [recipe for recipe in known if recipe.automatic and _is_for(recipe, model, device)]
    return sorted(known, key=lambda recipe: _aptness(recipe, model, device))


def _is_for(recipe: Recipe, model: ModelFacts, device: Device) -> bool:
    """Whether the recipe is for this kind of device and for models of this size, and runs nobody's code."""
    if recipe.plugins:
        return False
    return device.kind in recipe.match.device and model.parameters <= recipe.match.parameters_to


def _aptness(recipe: Recipe, model: ModelFacts, device: Device) -> tuple[bool, bool, float, float]:
    """A key that sorts the most apt recipe first: for this kind, for this memory, for the smallest models, the
    largest GPU."""
    match, memory_gib = recipe.match, device.memory_total_bytes / GIB
    in_range = match.memory_from_gib * SOLD <= memory_gib < match.memory_to_gib * SOLD
    return not _is_for(recipe, model, device), not in_range, match.parameters_to, -match.memory_from_gib


def _settle(recipe: Recipe, model: ModelFacts, device: Device, load: Load, wishes: Wishes) -> _Choice:
    """The recipe with every wish in it, its types settled, and its batch sized for the device."""
    recipe = recipes.change(
        recipes.for_stage(wishing.granted(recipe, wishes), wishes.stage),
        [*_settings(wishes), *wishing.judged(wishes), *wishes.settings],
    )
    recipe = _typed(recipe, model, device)
    load = _rolled_out(load, recipes.stage_options(recipe, wishes.stage))
    fixed = wishes.per_device_train_batch_size or any("per_device_train" in setting for setting in wishes.settings)
    sized = [recipe] if fixed else [_with_batch(recipe, batch) for batch in _batches(recipe, device)]
    choices = [_Choice(candidate, estimate(model, candidate, device, load)) for candidate in sized]
    limit = device.memory_free_bytes * (1 - MARGIN)
    return next((choice for choice in choices if choice.estimate.peak_bytes <= limit), choices[-1])


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


def _why(device: Device, choice: _Choice, first: _Choice, wishes: Wishes) -> str:
    """The choice in a few sentences."""
    recipe, training = choice.recipe, choice.recipe.training
    facts = {
        "device": device.name, "total": size(device.memory_total_bytes), "recipe": recipe.name, "first":
        first.recipe.name, "peak": size(first.estimate.peak_bytes), "free": size(device.memory_free_bytes), "dtype":
        recipe.dtype, "batch": training.per_device_train_batch_size, "steps": training.gradient_accumulation_steps,
        "effective": training.per_device_train_batch_size * training.gradient_accumulation_steps,
    }  # fmt: skip
    if wishes.recipe or wishes.method != "auto":
        told = [_("You asked for it.")]
    elif choice is first:
        told = [_("{recipe} is the recipe for {device} ({total}) and this model.")]
    else:
        told = [_("{first} would take {peak} of {free}; {recipe} takes less.")]
    if recipe.dtype == "float16":
        told.append(_("{device} has no bfloat16, so it computes in float16."))
    told.append(_("Each step takes {batch} × {steps} = {effective} rows."))
    return sentences(*(sentence.format(**facts) for sentence in told))


def _does_not_fit(
    model: ModelFacts, device: Device, choice: _Choice, load: Load, wishes: Wishes, home: Home
) -> DoesNotFitError:
    """The refusal, with what would fit: other methods, then shorter rows."""
    fitting = []
    for method in ("lora", "qlora"):
        other = msgspec.structs.replace(
            wishes, method=method, quantization="auto", recipe="", per_device_train_batch_size=None
        )
        for candidate in _candidates(model, device, other, home):
            if method != choice.recipe.method and _settle(candidate, model, device, load, other).estimate.fits:
                fitting.append(f"--method {method}")
    length = choice.recipe.training.max_length // 2
    while length >= MIN_LENGTH:
        shorter = msgspec.structs.replace(wishes, max_length=length, per_device_train_batch_size=1)
        if _settle(choice.recipe, model, device, load, shorter).estimate.fits:
            fitting.append(f"--max-length {length}")
            break
        length //= 2
    return DoesNotFitError(
        _("{model} with {method} needs {peak}; {device} has {free} free.").format(
            model=model.id,
            method=choice.recipe.method,
            peak=size(choice.estimate.peak_bytes),
            device=device.name,
            free=size(device.memory_free_bytes),
        ),
        _("This would fit: {options}.").format(options=_(" or ").join(fitting))
        if fitting
        else _("Take a smaller model or a larger device."),
    )
