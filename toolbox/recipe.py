"""Recipes: YAML files that say what to do on which hardware; those in HOME/recipes overlay the shipped ones by name."""

import ast
import difflib
import importlib.util
import math
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast: planning reads every recipe
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from toolbox import methods, stages
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _
from toolbox.runs import ROOT

SHIPPED = ROOT / "recipes"
LIBRARY_BLOCKS = {
    "BitsAndBytesConfig": ("transformers", "utils/quantization_config.py"),
    **{block: ("peft", f"tuners/{folder}/config.py") for block, folder in methods.PEFT_FOLDERS.items()},
}
"""The blocks that go to a library's class as they are: the package and the file that define it."""


Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Training(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The numbers of the training loop, named as transformers' `TrainingArguments` names them (a test checks that)."""

    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count = 1
    per_device_eval_batch_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Rows at once in evaluations; 0: as many as in training."""
    max_length: Count = 2048
    """Tokens a row; longer rows are cut, and counted."""
    packing: bool = False
    """A batch takes rows until they have `max_length` tokens for each that it would take; they don't see each other."""
    num_train_epochs: Amount = 3.0
    max_steps: int = -1
    """Optimizer steps; -1: as many as the epochs need."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)]
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.03
    weight_decay: Amount = 0.0
    max_grad_norm: Amount = 1.0
    optim: str = "adamw_torch"
    """One of `plugins.BUILT_IN`, or a plugin's."""
    report_to: list[str] = msgspec.field(default_factory=lambda: ["tensorboard"])
    """Trackers: tensorboard, wandb, swanlab, or a plugin's; none where it is empty."""
    gradient_checkpointing: bool = False
    use_liger_kernel: bool = False
    """Fused kernels of the package liger-kernel, on a CUDA GPU."""
    save_steps: Count = 100
    eval_steps: Count = 100
    eval_on_start: bool = True
    """Whether the held-out rows are evaluated before the first step too: what the training changed is told by it."""


class Match(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Which hardware and which models a recipe is for; what is left out matches all."""

    device: list[Literal["cuda", "mps", "cpu"]] = msgspec.field(default_factory=lambda: ["cuda", "mps", "cpu"])
    memory_from_gib: float = 0.0
    """Memory as sold: a GPU is what its box says, though NVML reports a little less."""
    memory_to_gib: float = math.inf
    """Below this."""
    parameters_to: float = math.inf
    """Models of at most so many parameters."""


class Recipe(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What to do on the hardware that `match` describes."""

    name: str
    summary: str
    match: Match = Match()
    automatic: bool = True
    """Whether it may be picked where nobody asked for it or for its method."""
    method: str
    """A name of `methods.METHODS`."""
    quantization: Literal["none", "nf4"] = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    training: Training
    LoraConfig: dict[str, Any] = {}
    BitsAndBytesConfig: dict[str, Any] = {}
    blocks: dict[str, dict[str, Any]] = {}
    """What other classes take, by their names; a file has each as a block of its own, as `OFTConfig:`."""
    stage: stages.StageName = "sft"
    """What the learning rate is meant for; at other stages it is scaled."""
    plugins: list[str] = []
    """Plugin files, from the recipe's folder on; such a recipe is taken only where it is named."""
    stages: dict[str, dict[str, Any]] = {}
    """What stages take, by their names; a file has each as a block of its own, as `dpo:`."""


_OTHER_BLOCKS = (*(block for block in methods.PEFT_FOLDERS if block != "LoraConfig"), *methods.OWN_BLOCKS)
_ALL_BLOCKS = (*_OTHER_BLOCKS, *stages.OPTIONS)
_GATHERED = ("blocks", "stages")


class _Loader(SafeLoader):
    """YAML without Python objects, in which `2e-4` is a number, as in YAML 1.2 and JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""[-+]?( [0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?
                 | [0-9][0-9_]*[eE][-+]?[0-9]+
                 | \.[0-9]+([eE][-+]?[0-9]+)?
                 | \.(inf|Inf|INF) ) $ | \.(nan|NaN|NAN)$""",
        re.VERBOSE,
    ),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    """YAML text as plain values. Raises yaml.YAMLError; nothing in it can make a Python object.

    An alias is an error too: a few lines of them stand for more values than any memory holds.
    """
    if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, _Loader)):
        raise yaml.YAMLError(_("an alias, as *name"))
    return yaml.load(text, _Loader)


def load(path: Path) -> Recipe:
    """The recipe in a file. Raises InputError naming the unknown key and the known ones, or what is wrong."""
    try:
        values = parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise _bad(path, reason) from None
    if not isinstance(values, dict):
        raise _bad(path, _("it is not a list of keys and values"))
    _refuse_unknown(
        path, "", values, [*(name for name in Recipe.__struct_fields__ if name not in _GATHERED), *_ALL_BLOCKS]
    )
    for block, struct in (("match", Match), ("training", Training)):
        _refuse_unknown(path, block, values.get(block), struct.__struct_fields__)
    for block in ("BitsAndBytesConfig", "LoraConfig", *_ALL_BLOCKS):
        if block in values:
            _refuse_unknown(path, block, values[block], _known(block))
    values["blocks"] = {block: values.pop(block) for block in _OTHER_BLOCKS if block in values}
    values["stages"] = {stage: values.pop(stage) for stage in stages.OPTIONS if stage in values}
    try:
        recipe = _checked(msgspec.convert(values, Recipe))
    except msgspec.ValidationError as error:
        raise _bad(path, str(error)) from None
    beside = [str(path.parent.absolute() / Path(name).expanduser()) for name in recipe.plugins]
    return msgspec.structs.replace(recipe, plugins=beside)


def every(home: Home) -> list[Recipe]:
    """All recipes, the person's own first; a recipe of theirs hides the shipped one of the same name."""
    recipes: dict[str, Recipe] = {}
    for folder in (home.recipes, SHIPPED):
        for path in sorted(folder.rglob("*.y*ml")) if folder.is_dir() else ():
            recipe = load(path)
            recipes.setdefault(recipe.name, recipe)
    return list(recipes.values())


def known(home: Home) -> list[str]:
    """The names of all recipes, as `find` takes them."""
    return sorted(recipe.name for recipe in every(home))


def find(name: str, home: Home) -> Recipe:
    """The recipe of that name, or in that file. Raises NotFoundError naming those there are."""
    if name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file():
        return load(Path(name).expanduser())
    recipes = {recipe.name: recipe for recipe in every(home)}
    if name in recipes:
        return recipes[name]
    raise NotFoundError(
        _("There is no recipe {name!r}.").format(name=name),
        _("Recipes: {names}; or a YAML file.").format(names=", ".join(known(home))),
    )


def change(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """`recipe` with `KEY=VALUE` settings: a field of `training`, or one of a block, as `LoraConfig.r`.

    Raises InputError naming the unknown key and the known ones.
    """
    values: dict[str, Any] = msgspec.to_builtins(recipe)
    for setting in settings:
        key, equals, text = setting.partition("=")
        block, _dot, name = key.strip().rpartition(".")
        block = block or "training"
        known = _known(block)
        if not equals or not known:
            raise InputError(
                _("--set {setting!r} is not understood.").format(setting=setting),
                _("Write KEY=VALUE, as learning_rate=1e-4 or LoraConfig.r=16."),
            )
        _refuse_unknown(f"--set {setting}", block, {name: text}, known)
        gathered = "blocks" if block in _OTHER_BLOCKS else "stages" if block in stages.OPTIONS else ""
        into = values[gathered].setdefault(block, {}) if gathered else values[block]
        try:
            into[name] = parse(text)
        except yaml.YAMLError:
            into[name] = text
    try:
        return _checked(msgspec.convert(values, Recipe))
    except msgspec.ValidationError as error:
        raise _bad("--set", str(error)) from None


def by_method(recipe: Recipe, name: str) -> Recipe:
    """`recipe` for another method: its blocks, and a learning rate that suits it as the recipe's own suits its own.

    What the recipe says of LoRA holds for every method that is a LoRA. A recipe of that method is only completed.
    """
    method, before = methods.find(name), methods.find(recipe.method)
    if method == before:
        defaults, said = method.blocks, {"LoraConfig": recipe.LoraConfig, **recipe.blocks}
    else:
        defaults, said = {"LoraConfig": recipe.LoraConfig, **recipe.blocks}, method.blocks
    blocks = {block: {**defaults.get(block, {}), **said.get(block, {})} for block in method.blocks}
    rate = recipe.training.learning_rate * method.rate / before.rate
    optim = method.optim or (recipe.training.optim if not before.optim else "adamw_torch")
    training = msgspec.structs.replace(recipe.training, learning_rate=float(f"{rate:.3g}"), optim=optim)
    return msgspec.structs.replace(
        recipe, method=name, training=training, LoraConfig=blocks.pop("LoraConfig", {}), blocks=blocks
    )


@cache
def library_keys(block: str) -> frozenset[str]:
    """What the class named `block` takes, read from the library's source: importing it would bring torch.

    Empty where the library is not installed; then nothing is checked here.
    """
    package, file = LIBRARY_BLOCKS.get(block) or ("peft", "tuners/lycoris_utils.py")
    spec = importlib.util.find_spec(package)
    if not spec or not spec.submodule_search_locations:
        return frozenset()
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text("utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == block)
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return frozenset(argument.arg for argument in node.args.args) - {"self"}
    fields = (node.target for node in found.body if isinstance(node, ast.AnnAssign))
    bases = {base.id for base in found.bases if isinstance(base, ast.Name)} & {"LoraConfig", "LycorisConfig"}
    inherited = (library_keys(base) for base in bases)
    return frozenset(target.id for target in fields if isinstance(target, ast.Name)).union(*inherited) | {"task_type"}


def _known(block: str) -> Collection[str]:
    """The keys that `--set` can change in a block; none where there is no such block."""
    if block == "training":
        return Training.__struct_fields__
    if block in stages.OPTIONS:
        return stages.OPTIONS[block].__struct_fields__
    if block in methods.OWN_BLOCKS:
        return methods.OWN_BLOCKS[block].__struct_fields__
    return library_keys(block) if block in LIBRARY_BLOCKS else ()


def _checked(recipe: Recipe) -> Recipe:
    """Itself. Raises InputError where it names no method there is, ValidationError where a stage can't be so."""
    if not recipe.plugins:  # else its method may be theirs
        methods.find(recipe.method)
    for stage in recipe.stages:
        stage_options(recipe, stage)
    return recipe


def stage_options(recipe: Recipe, stage: str) -> stages.AnyOptions | None:
    """What the recipe says of a stage, on top of its defaults; None where the stage takes nothing."""
    kind = stages.OPTIONS.get(stage)
    return msgspec.convert({"stage": stage, **recipe.stages.get(stage, {})}, kind) if kind else None


def for_stage(recipe: Recipe, stage: str) -> Recipe:
    """`recipe` with a learning rate that suits `stage` as its own suits the stage it is meant for."""
    rate = recipe.training.learning_rate * stages.LEARNING_RATE[stage] / stages.LEARNING_RATE[recipe.stage]
    training = msgspec.structs.replace(recipe.training, learning_rate=float(f"{rate:.3g}"))
    return msgspec.structs.replace(recipe, training=training, stage=cast(Any, stage))


def _refuse_unknown(where: object, block: str, values: object, known: Collection[str]) -> None:
    """Raise InputError for the first key of `values` that is not known."""
    if not isinstance(values, Mapping) or not known:
        return
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = _("Did you mean {name}?").format(name=near[0]) + " " if near else ""
            remedy += _("Known keys: {keys}.").format(keys=", ".join(sorted(known)))
            name = f"{block}.{key}" if block else key
            raise InputError(_("{where}: the key {key!r} is unknown.").format(where=where, key=name), remedy)


def _bad(where: object, reason: str) -> InputError:
    return InputError(
        _("The recipe {where} can't be used: {reason}.").format(where=where, reason=reason.rstrip(".")),
        _("Mend it, or take a shipped one: plan shows their names."),
    )
