"""What a verb works on: a model, a model with an adapter, or what an earlier run made of them."""

import contextlib
from pathlib import Path

import msgspec

from toolbox import files, methods, models, plan, runs
from toolbox.config import Home
from toolbox.errors import CorruptError, InputError, NotFoundError
from toolbox.i18n import _
from toolbox.models import ModelFacts
from toolbox.runs import Run

SCORING = "ForSequenceClassification"
"""How transformers ends the names of models that score."""


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """A base model and, where there is one, the adapter on top of it."""

    model: ModelFacts
    adapter: Path | None = None
    run: str = ""
    """The id of the run that made it, where one did."""

    @property
    def name(self) -> str:
        """What clients call it: the run's id, else the adapter's or the model's own name, never a path."""
        local = self.model.source == "local"
        return self.run or (self.adapter.name if self.adapter else Path(self.model.id).name if local else self.model.id)


def resolve(model: str, adapter: str, run: str, home: Home, with_adapter: bool = False) -> Target:
    """What `--model`, `--adapter` and `--run` mean together.

    `with_adapter`: `--run last` is the last that made one, and a reward model's will do; else the model has to write.
    An adapter alone brings the base that its adapter_config.json names. Raises InputError where they contradict each
    other or nothing was named, NotFoundError where what was named is not here.
    """
    if run:
        if model or adapter:
            raise InputError(_("--run already says which model and adapter."), _("Leave out --model and --adapter."))
        return _last(home, with_adapter) if run == "last" else _made_by(runs.find(home.runs, run), home, with_adapter)
    if not model and not adapter:
        raise InputError(_("No model was named."), _("Name one with --model, or what a run made with --run."))
    folder = Path(adapter).expanduser().absolute() if adapter else None
    target = Target(model=models.resolve(model or _base_of(folder), home), adapter=folder and _checked(folder))
    return target if with_adapter else _writing(target)


def serving(model: str, adapters: list[str], run: str, home: Home) -> tuple[ModelFacts, str, list[plan.ServedAdapter]]:
    """The model that `--model`, several `--adapter [NAME=]DIR` and `--run` mean, its name, and adapters by name.

    Raises as `resolve` does, and InputError for adapters of several bases, or two models of one name.
    """
    named = [_named(word, home) for word in adapters]
    target = resolve(model, str(named[0].path) if named else "", run, home)
    for adapter in named[1:]:
        other = resolve(model, str(adapter.path), "", home)
        if other.model.path != target.model.path:
            raise InputError(
                _("{path} belongs to another base model: {model}.").format(path=adapter.path, model=other.model.id),
                _("Serve it on a port of its own."),
            )
    if run and target.adapter:
        named = [plan.ServedAdapter(target.run, target.adapter)]
    base = msgspec.structs.replace(target, adapter=None, run="" if target.adapter else target.run)
    names = [*(adapter.name for adapter in named), base.name]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(
            _("Two models here would be called {name}.").format(name=twice), _("Give a name: --adapter NAME=DIR")
        )
    return target.model, base.name, named


def _named(word: str, home: Home) -> plan.ServedAdapter:
    """`[NAME=]DIR`; without a name the folder's own, or that of the run that made it."""
    name, equals, folder = word.partition("=")
    if not equals or Path(word).expanduser().is_dir():
        name, folder = "", word
    path = Path(folder).expanduser().absolute()
    made_by = path.parent if path.parent.parent == home.runs and path.name == "adapter" else path
    return plan.ServedAdapter(name.strip() or made_by.name, path)


def reward_model(name: str, home: Home) -> Path:
    """The folder that `--reward-model` means: that one, or what a run of the stage rm left.

    Raises NotFoundError where there is neither, InputError where the run made no reward model.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder.absolute()
    try:
        run = runs.find(home.runs, name, lambda run: run.status().stage == "rm")
    except NotFoundError:
        raise NotFoundError(
            _("There is no reward model {name!r}: neither a folder of a model nor a run.").format(name=name),
            _("Train one with: finetune --stage rm"),
        ) from None
    found = [path for path in (run.path / "model", run.adapter) if path.is_dir()]
    if run.status().stage != "rm" or not found:
        raise InputError(
            _("{run} has made no reward model (it is {state}).").format(run=run.id, state=run.status().state),
            _("Train one with: finetune --stage rm"),
        )
    return found[0]


def _last(home: Home, with_adapter: bool) -> Target:
    """What the newest run made that made a model at all: an evaluation or a chat since then is not meant."""
    for run in (run for run in runs.every(home.runs) if run.status().verb != "export"):
        with contextlib.suppress(InputError):
            target = _made_by(run, home, with_adapter)
            if target.adapter or not with_adapter:
                return target
    raise NotFoundError(_("No run has made a model yet."), _("Start with: finetune --model demo"))


def _made_by(run: Run, home: Home, scores: bool) -> Target:
    """An adapter on its base, a fully tuned model, or a merged one; with `scores`, reward models too."""
    made = plan.load(run.plan_path)
    elsewhere = isinstance(made, plan.MergePlan) or (isinstance(made, plan.ExportPlan) and not made.adapter_only)
    folder = Path(getattr(made, "output", "")) if elsewhere else run.path / "model"
    target = None
    if isinstance(made, plan.FinetunePlan) and run.adapter.is_dir():
        target = Target(model=made.model, adapter=run.adapter, run=run.id)
    elif folder.is_dir():
        target = Target(model=models.resolve(str(folder), home), run=run.id)
    if target:
        return target if scores else _writing(target)
    raise InputError(
        _("{run} has made no model (it is {state}).").format(run=run.id, state=run.status().state),
        _("See what it did: runs show {run}").format(run=run.id),
    )


def _writing(target: Target) -> Target:
    """Itself. Raises InputError for a reward model."""
    if target.model.architecture.endswith(SCORING) or (target.adapter and methods.scores(target.adapter)):
        raise InputError(
            _("{name} is a reward model: it scores answers and writes none.").format(name=target.name),
            _("Train a model that writes with the stage sft, or dpo."),
        )
    return target


def _checked(folder: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise NotFoundError(
                _("{path} is not an adapter: it has no {name}.").format(path=folder, name=name),
                _("Name the folder that a finetune run calls adapter/."),
            )
    config = files.read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise CorruptError(
            _("{path} is torn or not JSON.").format(path=folder / "adapter_config.json"),
            _("Copy the folder again from where it came."),
        )
    if config.get("megatron_config"):  # peft imports whatever module stands beside it
        raise InputError(
            _("{path} names a module to be imported, which is never done here.").format(path=folder),
            _("Take an adapter that was made without Megatron."),
        )
    return folder


def _base_of(folder: Path | None) -> str:
    config = files.read_json(_checked(folder) / "adapter_config.json") if folder else None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise InputError(
            _("{path} does not say which base model it belongs to.").format(path=folder), _("Name it with --model.")
        )
    return str(base)
