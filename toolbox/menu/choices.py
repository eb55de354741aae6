"""What there is to choose from where an option names a source of choices."""

from collections.abc import Callable

from toolbox import datasets as data
from toolbox import embedded, methods, models, recipe, runs
from toolbox.config import Home
from toolbox.i18n import _

Choice = tuple[str, str]
"""(the value, a faint note beside it)"""


def offered(source: str, home: Home) -> list[Choice]:
    """The choices of a source that `options.option(choices=…)` names."""
    return _SOURCES[source](home)


def _models(home: Home) -> list[Choice]:
    return [(name, "") for name in models.known(home)]


def _datasets(home: Home) -> list[Choice]:
    return [(name, "") for name in data.known(home)]


def _runs(home: Home) -> list[Choice]:
    return [(run.id, _said(run)) for run in runs.every(home.runs)]


def _tuned(home: Home) -> list[Choice]:
    results = ((run, run.result()) for run in runs.every(home.runs))
    return [(run.id, _said(run)) for run, result in results if result.get("adapter") or result.get("output")]


def _adapters(home: Home) -> list[Choice]:
    tuned = (run for run in runs.every(home.runs) if run.adapter.is_dir())
    return [(str(run.adapter), run.id) for run in tuned]


def _suites(home: Home) -> list[Choice]:
    return [(name, "") for name in embedded.SUITES]


def _recipes(home: Home) -> list[Choice]:
    return [(name, "") for name in recipe.known(home)]


def _methods(home: Home) -> list[Choice]:
    """The common ones; any other is typed."""
    common = [(method.name, _(method.summary)) for method in methods.METHODS if method.common]
    return [("auto", _("by hardware and model")), *common]


def _said(run: runs.Run) -> str:
    status = run.status()
    return " ".join(filter(None, [status.verb, status.model, status.state]))


_SOURCES: dict[str, Callable[[Home], list[Choice]]] = {
    "models": _models,
    "datasets": _datasets,
    "runs": _runs,
    "tuned": _tuned,
    "adapters": _adapters,
    "suites": _suites,
    "recipes": _recipes,
    "methods": _methods,
}
