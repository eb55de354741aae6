"""What a person said about a fine-tuning (`finetune`, `plan`), and what it makes of a recipe."""

from pathlib import Path
from typing import Literal, cast

import msgspec

from toolbox import datasets, methods, rewards, stages
from toolbox import recipe as recipes
from toolbox.datasets import DatasetSpec
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.recipe import Recipe
from toolbox.stages import StageName

KINDS = {
    "sft": N_("conversations"),
    "preference": N_("preferences"),
    "kto": N_("answers labelled as wanted or not"),
    "text": N_("plain texts"),
    "prompt": N_("questions without answers"),
}
"""What rows of a kind are, in words."""
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""`BitsAndBytesConfig` where a recipe has none: as QLoRA's paper (arXiv:2305.14314)."""
EVAL_SHARE, EVAL_ROWS = 10, 200
"""A tenth of the rows is held out, at most this many; none of fewer than ten."""


class Wishes(msgspec.Struct, kw_only=True, frozen=True):
    """What a person said about a fine-tuning; None, empty and "auto": the recipe decides."""

    method: str = "auto"
    """A name of `methods.METHODS`, or "auto"."""
    quantization: Literal["auto", "none", "nf4"] = "auto"
    recipe: str = ""
    prefer: Literal["auto", "quality", "speed", "memory"] = "auto"
    """What decides between recipes that fit; auto: the one made for this hardware."""
    max_length: int | None = None
    num_train_epochs: float | None = None
    learning_rate: float | None = None
    per_device_train_batch_size: int | None = None
    chat_template: str = ""
    """A name of `templates.known()`, or a Jinja file; empty: the model's own."""
    callbacks: list[str] = []
    """Names of plugins that look on."""
    settings: list[str] = []
    """KEY=VALUE, as `recipe.change` takes them."""
    seed: int = 42
    val_size: float | None = None
    """Rows that are held out, or below 1 their share."""
    stage: Literal["auto", StageName] = "auto"
    """auto: the one that the data are made for."""
    reward_funcs: list[str] = []
    reward_model: str = ""
    """A run of the stage rm, or a folder."""
    allow_4bit: bool = False
    allow_shorter: bool = False


def agreed(wishes: Wishes) -> Wishes:
    """The wishes with method and quantization in accord. Raises InputError where they can't be."""
    if wishes.method == "auto":
        return msgspec.structs.replace(wishes, method="qlora") if wishes.quantization == "nf4" else wishes
    method = methods.find(wishes.method)
    if (method.name, wishes.quantization) == ("qlora", "none"):
        raise InputError(_("qlora without 4 bits is lora."), _("Take --method lora."))
    if method.name == "qlora" or (method.name == "lora" and wishes.quantization == "nf4"):
        return msgspec.structs.replace(wishes, method="qlora", quantization="nf4")
    return wishes


def stage(wishes: Wishes, specs: list[DatasetSpec]) -> StageName:
    """The wished stage, or the one that all data are made for; without data, supervised fine-tuning.

    Raises InputError where some data do not fit it.
    """
    if wishes.stage == "auto" and any(spec.kind == "prompt" for spec in specs):
        raise InputError(
            _("{dataset} holds questions without answers: there is nothing to imitate.").format(
                dataset=next(spec.name for spec in specs if spec.kind == "prompt")
            ),
            _(
                "Name the answers' column with --columns response=COLUMN, or let a reward judge what the model answers:"
                " --stage grpo --reward NAME."
            ),
        )
    fitting = [[name for name in stages.NAMES if name in datasets.STAGES[spec.kind]] for spec in specs]
    meant = [datasets.STAGES[spec.kind][0] for spec in specs]
    wished = wishes.stage if wishes.stage != "auto" else meant[0] if meant else "sft"
    for spec, names in zip(specs, fitting, strict=True):
        if wished not in names:
            raise InputError(
                _("{dataset} holds {kind}; the stage {stage} can't learn from that.").format(
                    dataset=spec.name, kind=_(KINDS[spec.kind]), stage=wished
                ),
                _("These stages can: {names}.").format(names=", ".join(names)),
            )
    return cast(StageName, wished)


def judged(wishes: Wishes) -> list[str]:
    """What judges answers, as `recipe.change` takes it.

    Raises InputError where the stage has no use for it.
    """
    if not (wishes.reward_funcs or wishes.reward_model):
        return []
    if not issubclass(stages.OPTIONS.get(wishes.stage, stages.Options), stages.Rewarded):
        raise InputError(
            _("The stage {stage} has no use for rewards.").format(stage=wishes.stage),
            _("Take --stage grpo or ppo."),
        )
    said: dict[str, object] = {"reward_funcs": wishes.reward_funcs} if wishes.reward_funcs else {}
    if wishes.reward_model:
        said["reward_model"] = wishes.reward_model
    return [f"{wishes.stage}.{name}={msgspec.json.encode(value).decode()}" for name, value in said.items()]


def check_judged(options: stages.AnyOptions | None) -> None:
    """Raise InputError where nothing judges the answers, or what is to do so can't be, or weights are missing."""
    if not isinstance(options, stages.Rewarded):
        return
    for wish in options.reward_funcs:
        rewards.find(wish)
    count = len(options.reward_funcs) + bool(options.reward_model)
    if not count:
        raise InputError(
            _("Nothing says what a good answer is."),
            _("Name a reward function, as --reward exact_match, or a --reward-model."),
        )
    if options.reward_weights and len(options.reward_weights) != count:
        raise InputError(
            _("There are {count} rewards and {weights} weights.").format(
                count=count, weights=len(options.reward_weights)
            ),
            _("Name one weight for each, the reward model's last."),
        )
    folder = Path(options.reward_model)
    if options.reward_model and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(
            _("{path} is no folder of a reward model.").format(path=folder),
            _("Name it, or a run of the stage rm, with --reward-model."),
        )


def eval_rows(wishes: Wishes, rows: int, has_others: bool) -> int:
    """How many of `rows` are held out; `has_others`: the evaluation has data of its own.

    Raises InputError where the wish is no number of rows, leaves none to train on, or says it twice.
    """
    val_size = wishes.val_size
    if val_size and has_others:
        raise InputError(
            _("--val-size holds rows out of the data, and --eval-dataset names other ones."), _("Take one of the two.")
        )
    if val_size is None:
        return 0 if has_others else min(EVAL_ROWS, rows // EVAL_SHARE)
    if val_size > 1 and val_size != int(val_size):
        raise InputError(
            _("--val-size {size:g} is neither a share nor a number of rows.").format(size=val_size),
            _("Take a share below 1, as 0.05, or a whole number of rows."),
        )
    wanted = round(rows * val_size) if val_size < 1 else round(val_size)
    if rows and wanted >= rows:
        raise InputError(
            _("--val-size {size:g} holds out all of the {rows} rows.").format(size=val_size, rows=rows),
            _("Take a share below 1, as 0.05, or fewer rows."),
        )
    return wanted


def nearest(known: list[Recipe], wishes: Wishes) -> list[Recipe]:
    """The recipes of the wished method; where it has none of its own, those of the method that is most like it."""
    like = "full" if methods.trained_weights(wishes.method) else "qlora" if wishes.quantization == "nf4" else "lora"
    for name in (wishes.method, like):
        if found := [recipe for recipe in known if recipe.method == name]:
            return found
    return known


def granted(recipe: Recipe, wishes: Wishes) -> Recipe:
    """`recipe` for the wished method, with or without 4 bits. Raises InputError where the method can't have them."""
    method, quantization = wishes.method, wishes.quantization
    if method == "auto":
        method = "lora" if (recipe.method, quantization) == ("qlora", "none") else recipe.method
    if quantization == "auto":
        quantization = recipe.quantization if method == recipe.method else "none"
    _refuse_rounded(method, quantization)
    blocks = {**NF4, **recipe.BitsAndBytesConfig} if quantization == "nf4" else {}
    return msgspec.structs.replace(
        recipes.by_method(recipe, method), quantization=quantization, BitsAndBytesConfig=blocks
    )


def refuse_unheeded(recipe: Recipe, wishes: Wishes) -> None:
    """Raise InputError for a setting of a class that the recipe's method has no use for."""
    if recipe.training.packing and issubclass(stages.OPTIONS.get(wishes.stage, stages.Options), stages.Rewarded):
        raise InputError(
            _("The stage {stage} writes its answers itself, so rows can't be packed beforehand.").format(
                stage=wishes.stage
            ),
            _("Leave out --packing."),
        )
    heeded = methods.find(recipe.method).blocks
    for setting in wishes.settings:
        block = setting.partition("=")[0].strip().rpartition(".")[0]
        if block in stages.OPTIONS and block != wishes.stage:
            raise InputError(
                _("--set {setting}: the stage is {stage}, which has no use for {block}.").format(
                    setting=setting, stage=wishes.stage, block=block
                ),
                _("Take --stage {block}, or leave it out.").format(block=block),
            )
        if block.endswith("Config") and block not in ("BitsAndBytesConfig", *heeded):
            raise InputError(
                _("--set {setting}: {method} has no use for {block}.").format(
                    setting=setting, method=recipe.method, block=block
                ),
                _("It takes {names}.").format(names=", ".join(heeded) or "training"),
            )


def _refuse_rounded(method: str, quantization: str) -> None:
    if quantization == "nf4" and not methods.find(method).nf4:
        raise InputError(
            _("{method} can't be trained on a base in 4 bits.").format(method=method),
            _("These can: {names}.").format(names=", ".join(other.name for other in methods.every() if other.nf4)),
        )
