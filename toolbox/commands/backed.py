"""`evaluate --backend`: what has to be there, and may be asked, before EvalScope or lm-evaluation-harness measures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolbox.commands import Session
from toolbox.commands import engines as environments
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.backends import Backend
    from toolbox.plan import EvaluatePlan


def changes(
    name: str, words: list[str], arguments: list[str], plan: "EvaluatePlan", session: Session
) -> dict[str, Any]:
    """What a backend makes of a plan: its entry, its tasks, its interpreter.

    Raises InputError where it is not installed, and was not to be, or can't be given this model or these suites.
    """
    from toolbox import backends

    backend = backends.BACKENDS[name]
    tasks = backends.tasks(backend, words, session.home)
    _refuse(backend, plan)
    return {
        "entry": "toolbox.evaluation.backends:run",
        "backend": backend.name,
        "suites": [task.word for task in tasks],
        "arguments": backends.arguments(backend, arguments),
        "fetches": any(task.fetched for task in tasks) and not backends.offline(),
        "python": _installed(backend, plan.device.kind == "cuda", session),
    }


def show_stated(stated: list[dict[str, Any]], session: Session) -> None:
    """Figures that came without rows and without an error: nothing can be said of what chance does to them."""
    if stated:
        told = [f"{row['suite']}, {row['metric']}, {_(row['model'])}: {row['value']:.4g}" for row in stated]
        session.say(_("Without an interval, as the backend gives neither rows nor an error:") + "\n" + "\n".join(told))


def _refuse(backend: "Backend", plan: "EvaluatePlan") -> None:
    """Raise InputError for a model that it would load otherwise than it was trained, or not at all."""
    from toolbox import methods
    from toolbox.errors import InputError

    model, adapter = plan.model, plan.adapter
    if plan.metrics:
        raise InputError(
            _("Metrics of plugins are measured here, not by {title}.").format(title=backend.title),
            _("Leave out --metric, or --backend."),
        )
    if model.own_code:
        raise InputError(
            _("{model} needs program code of its own repository, which {title} is not given.").format(
                model=model.id, title=backend.title
            ),
            _("Measure it without --backend."),
        )
    if not backend.loads:
        if adapter:
            methods.refuse_unserved(adapter, plain_only=False)
        return
    if model.quantization or plan.quantization != "none":
        raise InputError(
            _("The environment of {title} loads no quantised weights.").format(title=backend.title),
            _("Measure it with --backend evalscope, or merge it first: merge --run … and evaluate what that makes."),
        )
    method = methods.of_adapter(adapter) if adapter else None
    if method and not method.served:
        raise InputError(
            _("{path} ({method}) is loaded by nothing but this toolbox.").format(path=adapter, method=method.name),
            _("Measure it without --backend, or merge it first: merge --adapter {path}").format(path=adapter),
        )


def _installed(backend: "Backend", cuda: bool, session: Session) -> Path:
    """Its interpreter, installed now where a person says so."""
    from toolbox.engines import preparing
    from toolbox.errors import InputError
    from toolbox.interpreters import INSTALLED_BYTES
    from toolbox.units import size

    name = backend.environment(cuda)
    if not backend.python(cuda, session.home) and session.interactive and not session.dry_run:
        environments.install(environments.NameOptions(name=name), session)
    if python := backend.python(cuda, session.home):
        return python
    takes = INSTALLED_BYTES.get(name, 0)
    raise InputError(
        _("{title} is not installed.").format(title=backend.title),
        _("Give it an environment of its own, {size} large: {command}").format(
            size=size(takes) if takes else _("several GB"), command=preparing(name, session.home)
        ),
    )
