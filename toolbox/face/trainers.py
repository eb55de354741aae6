"""`toolbox.SFTTrainer`, `toolbox.DPOTrainer`, `toolbox.Trainer`: `finetune` from Python, in the caller's process."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from toolbox import files, runs, stages
from toolbox.commands.finetune import Options, make_plan
from toolbox.commands.runs import why_not_resumable
from toolbox.datasets import registry
from toolbox.datasets.hub import DatasetHub
from toolbox.errors import InputError
from toolbox.face.here import carry_out_here
from toolbox.face.models import LanguageModel, as_yaml, load_model
from toolbox.face.session import Caller, built, open_session
from toolbox.i18n import _
from toolbox.plan import FinetunePlan, load
from toolbox.recipe import Training
from toolbox.runs import Run
from toolbox.ui.words import near

Data = str | Path | DatasetHub | Iterable[Mapping[str, Any]] | list[str]
"""A data set's name, file or address, several of them, a `DatasetHub`, or rows: any iterable of dicts."""
ALIASES = {"num_train_epochs": "epochs", "train_dataset": "dataset"}
"""transformers' and TRL's names of what `finetune` calls otherwise."""


class Trainer:
    """One fine-tuning: a plan as `finetune` makes it, and once it trains, a run as any other.

    `plan` is all that was decided: method, batch, predicted peak of memory. `run` is the run's directory, or None
    before `train`; `runs list` shows it, and `model` is what it made.
    """

    stage: ClassVar[str] = "auto"

    def __init__(
        self,
        model: LanguageModel | str | Path = "demo",
        dataset: Data | None = None,
        *,
        output_dir: str | Path | None = None,
        home: str | None = None,
        silent: bool = False,
        **settings: Any,
    ) -> None:
        """Plan the training of `model` on `dataset`.

        `settings` are `finetune`'s options (`method`, `max_length`, `seed` …), the loop's (`max_steps`,
        `learning_rate`, `per_device_train_batch_size` … as transformers names them), the stage's (`beta` …), and
        blocks as `LoraConfig={"r": 8}`. `output_dir`: a new folder, which gets the adapter or the model besides.
        Raises InputError naming the setting or the row that can't be, DoesNotFitError where memory is too small.
        """
        self.session = open_session(home, silent)
        self.output_dir = _new(output_dir)
        self.run: Run | None = None
        given = {"stage": self.stage, "dataset": dataset, **settings}
        given = {ALIASES.get(name, name): value for name, value in given.items() if value is not None}
        given |= _tuned(model if isinstance(model, LanguageModel) else load_model(model, home=home), given)
        given["dataset"] = _names(given.get("dataset", []), self.session)
        self.plan = make_plan(built(Options, "finetune", _sorted(given)), self.session)

    def train(self) -> dict[str, Any]:
        """Train, in this process, and return what `finetune --json` says: run, adapter, train_loss, eval_loss …

        Called again after Ctrl-C or an error, it goes on from the newest checkpoint. Seeds Python, NumPy and torch.
        Raises KeyboardInterrupt after Ctrl-C, once what was done is saved; DivergedError, OutOfMemoryError.
        """
        if self.run is None:
            name = Path(self.plan.model.id).name
            self.run = runs.create(self.session.home.prepare().runs, f"{self.plan.stage}-{name}", self.plan)
            self.session.say(_("Run {run}; its log: {log}").format(run=self.run.id, log=self.run.log_path))
        elif self.run.status().state == "done":
            return self.run.result()
        result = carry_out_here(self.run, self.session.silent)
        if self.output_dir:
            with files.whole_folder(self.output_dir) as folder:
                shutil.copytree(result["adapter"] or result["model"], folder, dirs_exist_ok=True)
        return result

    @property
    def model(self) -> LanguageModel:
        """What the training made. Raises InputError before it has, and for a reward model, which writes nothing."""
        if self.run is None:
            raise InputError(_("Nothing is trained yet."), _("Call train() first."))
        return load_model(run=self.run.id, home=str(self.session.home.path))

    @classmethod
    def resume(cls, run: str = "last", home: str | None = None, silent: bool = False) -> "Trainer":
        """A trainer of a run begun here or on the command line; its `train` goes on from the newest checkpoint.

        Raises InputError where there is nothing to go on with.
        """
        trainer = cls.__new__(cls)
        trainer.session, trainer.output_dir = open_session(home, silent), None
        found = runs.find(trainer.session.home.runs, run, lambda run: not _why_not(run))
        if reason := _why_not(found):
            raise InputError(_("{run} can't be resumed: {reason}.").format(run=found.id, reason=reason))
        trainer.run, trainer.plan = found, cast(FinetunePlan, load(found.plan_path))
        return trainer


def _why_not(run: Run) -> str:
    """Why no trainer can go on with that run; empty where one can."""
    status = run.status()
    return _("it trains nothing") if status.verb == "evaluate" else why_not_resumable(run, status)


class SFTTrainer(Trainer):
    """Supervised fine-tuning on conversations."""

    stage = "sft"


class DPOTrainer(Trainer):
    """Direct preference optimisation, on rows with `chosen` and `rejected`."""

    stage = "dpo"


def _new(folder: str | Path | None) -> Path | None:
    """Raises InputError where something stands there: nothing is overwritten."""
    if folder is None:
        return None
    path = Path(folder).expanduser().absolute()
    if path.exists():
        raise InputError(
            _("{path} is there already, and nothing is overwritten.").format(path=path), _("Name another folder.")
        )
    return path


def _tuned(model: LanguageModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that name the model and its tuner. Raises InputError where a second tuner is asked for."""
    if model.target.adapter:
        raise InputError(
            _("{name} has an adapter already, and a tuner trains a whole model.").format(name=model.target.name),
            _("Merge it first: toolbox.merge gives a model."),
        )
    if model.tuner is None:
        return {"model": model.facts.id}
    if {"method", "quantization"} & set(given):
        raise InputError(
            _("The model has a tuner already: {method}.").format(method=model.tuner.method),
            _("Leave out method and quantization, or apply_tuner."),
        )
    settings = [*model.tuner.settings, *given.get("set", [])]
    tuner = model.tuner
    return {"model": model.facts.id, "method": tuner.method, "quantization": tuner.quantization, "set": settings}


def _names(data: Data, session: Caller) -> list[str]:
    """The names by which planning finds the data; rows become a file of the home folder."""
    several = data if isinstance(data, list) else [data]
    if all(isinstance(item, str | Path | DatasetHub) for item in several):
        return [item.spec.name if isinstance(item, DatasetHub) else str(item) for item in several]
    return [registry.keep(data, session.home)]  # type: ignore[arg-type]


def _sorted(given: dict[str, Any]) -> dict[str, Any]:
    """`given` as `finetune` takes it: what has no option of its own goes into `set`.

    Raises InputError naming the setting that nothing here knows.
    """
    known, stage = Options.__struct_fields__, stages.OPTIONS.get(given["stage"])
    taken = {name: value for name, value in given.items() if name in known}
    extra: list[str] = list(taken.pop("set", []))
    for name in given.keys() - taken.keys() - {"set"}:
        value = given[name]
        if name in Training.__struct_fields__:
            extra.append(f"{name}={as_yaml(value)}")
        elif stage and name in stage.__struct_fields__:
            extra.append(f"{given['stage']}.{name}={as_yaml(value)}")
        elif isinstance(value, Mapping):
            extra += [f"{name}.{key}={as_yaml(item)}" for key, item in value.items()]
        else:
            names = [*known, *Training.__struct_fields__, *(stage.__struct_fields__ if stage else ())]
            raise InputError(
                _("A trainer knows no setting {name!r}.").format(name=name),
                near(name, names) or _("Settings: {names}.").format(names=", ".join(sorted(set(names)))),
            )
    return {**taken, "set": extra}
