"""`finetune`: tune a model on data; toolbox/planning.py decides how, toolbox/training/ does it."""

from typing import TYPE_CHECKING, Annotated, Any

from toolbox.commands import Command, Session, devices, differing, known, plugged
from toolbox.commands.plan import TuningOptions, resolve_datasets, show, summary, wishes
from toolbox.errors import DoesNotFitError, InputError, Interrupted, NotFoundError
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from toolbox.device import Device
    from toolbox.models import ModelFacts
    from toolbox.plan import FinetunePlan
    from toolbox.runs import Run

SCRIPT = "bash yichuidingyin.sh"


class Options(TuningOptions, kw_only=True):
    """What `finetune` takes; unlike for `plan`, data is needed."""

    dataset: Annotated[
        list[str],
        option(
            N_("Data sets: demo-persona, JSON, CSV or Parquet files, or downloaded ones"), ask=True, choices="datasets"
        ),
    ]
    tune: Annotated[
        bool, option(N_("Try first which micro-batch is fastest and which learning rate does not diverge"))
    ] = False
    background: Annotated[bool, option(N_("Return as soon as the job runs"))] = False


def run(options: Options, session: Session) -> dict[str, Any]:
    """Plan, show, ask, start, follow; returns what the job left."""
    made = make_plan(options, session)
    show(made, session)
    if session.dry_run:
        return summary(made)
    if not session.confirm(_("Start?")):
        raise Interrupted(_("Nothing was started."))
    started = start(made, session)
    if options.background:
        return {"run": started.id, "state": started.status().state}
    session.follow(started)
    result = started.result()
    say_next(started, session)
    return result


def make_plan(options: Options, session: Session) -> "FinetunePlan":
    """Everything that is decided before the training.

    Raises InputError for what can't be; DoesNotFitError where memory or disk are too small.
    """
    from pathlib import Path

    from toolbox import device, planning, tunings

    loaded = plugged.load(options.plugin, session, options.recipe)
    datasets, held_out = resolve_datasets(options, session, fetch=True)
    target = devices.best(session)
    refuse_cpu_build(target, device.torch_cuda())
    asked = wishes(options, session)

    def plan(model: "ModelFacts") -> "FinetunePlan":
        made = planning.plan_finetune(model, datasets, target, asked, session.home, eval_datasets=held_out)
        look_for_room(made.estimate.disk_bytes, session.home.path)
        return made

    made = plan(find_model(options.model, session, suits=plan))
    made.plugins, made.tune = loaded, options.tune
    if made.tune:
        tunings.refuse(made.stage, made.training.packing)
    if folder := session.settings.tensorboard_dir:
        made.tensorboard = Path(folder).expanduser()
    return made


def find_model(
    name: str, session: Session, suits: "Callable[[ModelFacts], object]" = lambda facts: None
) -> "ModelFacts":
    """The model of that name; one that is not here yet is fetched, if the person agrees.

    `suits` raises where a known model can't be what is asked for: nobody should fetch it to learn that.
    """
    from toolbox import models

    known.warn(name, session)
    try:
        return _shown(models.resolve(name, session.home), session)
    except NotFoundError:
        if not models.HUB_ID.fullmatch(name):
            raise
        if session.dry_run:
            return known.facts(name, session)
        if not session.confirm(_offer(name, session, suits), default=False):
            raise
    from toolbox.hub import fetching

    fetching.fetch(
        fetching.Request(
            id=name,
            also=known.ids(name, session),
            source=session.settings.source,
            home=session.home,
            settings=session.settings,
            progress=session.transfer,
            say=session.say,
        )
    )
    return _shown(models.resolve(name, session.home), session)


def _shown(model: "ModelFacts", session: Session) -> "ModelFacts":
    differing.show(model.path, [], session)
    return model


def _offer(name: str, session: Session, suits: "Callable[[ModelFacts], object]") -> str:
    """The question whether to fetch a model, with its size where that is known; raises what `suits` raises."""
    from toolbox import registry, units
    from toolbox.registry import shapes

    listed = registry.find(name, session.home)
    if not listed:
        return _("{name} is not on this machine. Download it now?").format(name=name)
    if not listed.native:
        raise InputError(
            _("{name} needs program code of its own repository, which is not run unasked.").format(name=name),
            _("Take another, as models search shows them; or fetch it, and see: models trust {name}").format(name=name),
        )
    found = shapes.facts(listed)
    if not found.guessed:
        suits(found)
    return _("{name} is not on this machine. Download it now, about {size}?").format(
        name=name, size=units.size(found.weights_bytes)
    )


def refuse_cpu_build(target: "Device", cuda: str) -> None:
    """Raise InputError where a GPU is here, but the environment's torch was built without CUDA (`cuda` is empty)."""
    if target.kind == "cuda" and not cuda:
        raise InputError(
            _("{device} is here, but this environment holds the CPU build of torch.").format(device=target.name),
            _("Prepare the environment for CUDA: YCDY_LOCK=cuda {command} --prepare").format(command=SCRIPT),
        )


def look_for_room(needed: int, folder: "Path") -> None:
    """Raise DoesNotFitError where the disk has less room than the run will take."""
    from toolbox import files, units

    free = files.free_bytes(folder)
    if needed > free:
        raise DoesNotFitError(
            _("The run takes up to {needed}, and {path} has {free} left.").format(
                needed=units.size(needed), path=folder, free=units.size(free)
            ),
            _("Free some space, or name a folder on another disk with --home DIR."),
        )


def start(plan: "FinetunePlan", session: Session) -> "Run":
    """Create the run's directory and start its job."""
    from toolbox import runs

    name = plan.model.id.rstrip("/").rpartition("/")[2]
    run = runs.create(session.home.prepare().runs, f"{plan.stage}-{name}", plan)
    run.start()
    session.say(_("Run {run}; its log: {log}").format(run=run.id, log=run.log_path))
    return run


def say_next(run: "Run", session: Session) -> None:
    """What is odd about the result, and what can be done with it."""
    from toolbox import diagnosis

    if causes := diagnosis.diagnose(run):
        session.say("\n".join(cause.message for cause in causes))
        session.say(_("Why, and what to do: {command}").format(command=run.command("runs", "diagnose")))
    if run.status().stage == "rm":
        session.say(
            _("Done. The reward model scores answers; transformers reads it from {path}.").format(path=run.path)
        )
        return
    lines = [
        run.command(verb, "--run")
        for verb in ("chat", "evaluate", "merge", "export", "serve")
        if verb != "merge" or run.adapter.is_dir()
    ]
    session.say(_("Done. What next:") + "".join(f"\n  {line}" for line in lines))


COMMANDS = (Command("finetune", N_("Fine-tune a model on your data"), Options, run),)
