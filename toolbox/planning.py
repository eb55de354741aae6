"""Fine-tuning decided: recipe, types and batch for this model, data and device; `plan` shows it, `finetune` does it."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import msgspec

from toolbox import calibration, plugins, registry, search, templates
from toolbox import recipe as recipes
from toolbox import wishes as wishing
from toolbox.config import Home
from toolbox.datasets import DatasetSpec
from toolbox.device import Device
from toolbox.errors import DoesNotFitError, InputError
from toolbox.i18n import _, sentences
from toolbox.memory import Load
from toolbox.models import ModelFacts
from toolbox.nearest import nearest
from toolbox.plan import FinetunePlan
from toolbox.recipe import Recipe, Training
from toolbox.search import Choice, Found, Problem
from toolbox.stages import PASSES_BEFORE, SEQUENCES, Dpo, Sft
from toolbox.units import size
from toolbox.wishes import Wishes

TEMPLATE_TOKENS = 64
"""Room for what a chat template adds to a row."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English or Chinese text that become a token, about; a planning figure for the time only."""
TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "OmniModel")


class Alternative(msgspec.Struct, kw_only=True, frozen=True):
    """Another recipe, planned with the same wishes on the same device."""

    recipe: str
    method: str
    per_device_train_batch_size: int
    peak_bytes: int
    fits: bool


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
    asked = _problem(model, datasets, device, wishes, home, eval_rows)
    found = search.search(asked)
    choice = found.choice
    if must_fit and not choice.estimate.fits:
        raise _does_not_fit(asked, choice)
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
        why=_why(device, found, wishes),
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
        allow_4bit=wishes.allow_4bit,
        allow_shorter=wishes.allow_shorter,
        estimate=choice.estimate,
    )


def _problem(
    model: ModelFacts, datasets: list[DatasetSpec], device: Device, wishes: Wishes, home: Home, eval_rows: int
) -> Problem:
    """What is searched for: `wishes` in accord, what the data do to a step, and what runs here have taken."""
    return Problem(
        model=model,
        device=device,
        load=_load(datasets, eval_rows, wishes.stage),
        wishes=wishes,
        home=home,
        noted=tuple(calibration.read(home.path)),
    )


def problem(plan: FinetunePlan, wishes: Wishes, home: Home) -> Problem:
    """What was searched for when `plan` was made with `wishes`."""
    wishes = msgspec.structs.replace(wishing.agreed(wishes), stage=plan.stage)
    return _problem(plan.model, plan.datasets, plan.device, wishes, home, plan.eval_rows)


def alternatives(plan: FinetunePlan, wishes: Wishes, home: Home) -> list[Alternative]:
    """The other recipes for this kind of device, with what they would have taken."""
    free = msgspec.structs.replace(wishes, method="auto", quantization="auto")
    asked = problem(plan, free, home)
    others = [recipe for recipe in recipes.every(home) if recipe.name != plan.recipe and search.is_for(recipe, asked)]
    choices = [search.fastest(search.variants(asked, recipe)) for recipe in others]
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
            _("Take the original model, {name}; QLoRA quantises it while loading.").format(name=made_from)
            if (made_from := registry.original(model.id))
            else _("Take the original model; QLoRA quantises it while loading."),
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
    return search.rolled_out(_load(plan.datasets, plan.eval_rows, plan.stage), plan.options)


def _why(device: Device, found: Found, wishes: Wishes) -> str:
    """The choice in a few sentences."""
    recipe, first, estimate = found.choice.recipe, found.first, found.choice.estimate
    training = recipe.training
    facts = {
        "device": device.name, "total": size(device.memory_total_bytes), "recipe": recipe.name, "first":
        first.recipe.name, "peak": size(first.estimate.peak_bytes), "free": size(device.memory_free_bytes), "dtype":
        recipe.dtype, "batch": training.per_device_train_batch_size, "steps": training.gradient_accumulation_steps,
        "effective": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "count": found.fitting, "margin": f"{estimate.margin:.0%}", "runs": estimate.factors.runs,
    }  # fmt: skip
    if wishes.recipe or wishes.method != "auto":
        told = [_("You asked for it.")]
    elif recipe.name == first.recipe.name:
        told = [_("{recipe} is the recipe for {device} ({total}) and this model.")]
    elif first.too_large_bytes > 0:
        told = [_("{first} would take {peak} of {free}; {recipe} takes less.")]
    else:
        told = [_("{recipe} is taken before {first}, as you prefer.")]
    if recipe.dtype == "float16":
        told.append(_("{device} has no bfloat16, so it computes in float16."))
    told.append(_("Each step takes {batch} × {steps} = {effective} rows."))
    if found.fitting > 1 and estimate.tokens_per_s:
        told.append(_("Of {count} ways that leave {margin} of the memory free, this one is predicted to be best."))
    if estimate.fits and not found.fitting:
        told.append(_("It leaves less than {margin} of the memory free."))
    if estimate.factors.runs:
        told.append(_("The figures are corrected by {runs} runs of this machine."))
    return sentences(*(sentence.format(**facts) for sentence in told))


def _does_not_fit(problem: Problem, choice: Choice) -> DoesNotFitError:
    """The refusal, with what would fit."""
    found = nearest(problem, choice)
    fitting = [_("on {device}").format(device=item.option) if item.kind == "device" else item.option for item in found]
    return DoesNotFitError(
        _("{model} with {method} needs {peak}; {device} has {free} free.").format(
            model=problem.model.id,
            method=choice.recipe.method,
            peak=size(choice.estimate.peak_bytes),
            device=problem.device.name,
            free=size(problem.device.memory_free_bytes),
        ),
        _("This would fit: {options}.").format(options=_(" or ").join(fitting))
        if fitting
        else _("Take a smaller model or a larger device."),
    )
