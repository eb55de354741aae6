"""What there is to choose from where an option names a source of choices."""

from collections.abc import Callable, Mapping

from toolbox import datasets as data
from toolbox import embedded, exports, methods, models, plugins, recipe, registry, rewards, runs, stages
from toolbox.commands.runs import STATES, why_not_resumable
from toolbox.config import Home
from toolbox.i18n import _
from toolbox.menu.prompts import CATALOGUE
from toolbox.runs import Run
from toolbox.suites import catalogue
from toolbox.suites.catalogue import CATALOGUE as SUITES

Choice = tuple[str, str]
"""(the value, a faint note beside it)"""


def offered(source: str, home: Home, answered: Mapping[str, str | list[str]]) -> list[Choice]:
    """The choices of a source that `options.option(choices=…)` names; some depend on what was `answered` before."""
    return _types(answered) if source == "types" else _SOURCES[source](home)


def _models(home: Home) -> list[Choice]:
    return [(name, "") for name in models.known(home)]


def _models_and_more(home: Home) -> list[Choice]:
    return [*_models(home), (CATALOGUE, _("by what for, size and name; what fits is marked"))]


def _kinds(home: Home) -> list[Choice]:
    return [("", _("all")), *((kind, _(said)) for kind, said in registry.KINDS.items())]


def _datasets(home: Home) -> list[Choice]:
    return [(name, "") for name in data.known(home)]


def _runs(keep: Callable[[Run], object]) -> Callable[[Home], list[Choice]]:
    """A source of the runs of which `keep` is true, newest first."""
    return lambda home: [(run.id, _said(run)) for run in runs.every(home.runs) if keep(run)]


def _pairs(home: Home) -> list[Choice]:
    """The newest run beside each older one of its verb; others are typed."""
    every = runs.every(home.runs)
    older = [run for run in every[1:] if run.status().verb == every[0].status().verb]
    return [(f"{every[0].id}, {run.id}", _said(run)) for run in older]


def _made_a_model(run: Run) -> bool:
    result, status = run.result(), run.status()
    # What was exported stands among the models; not every verb takes it, and some of it is an adapter.
    return status.stage != "rm" and status.verb != "export" and bool(result.get("adapter") or result.get("output"))


def _made_an_adapter(run: Run) -> bool:
    return run.adapter.is_dir() and run.status().stage != "rm"


def _adapters(home: Home) -> list[Choice]:
    return [(str(run.adapter), run.id) for run in runs.every(home.runs) if _made_an_adapter(run)]


def _hubs(home: Home) -> list[Choice]:
    settings = home.load_settings()
    mirrors = filter(None, (mirror.strip() for mirror in settings.mirrors.split(",")))
    hubs = [("", _("as set: {source}").format(source=settings.source)), ("auto", _("the one that brings it soonest"))]
    return [*hubs, ("modelscope", ""), ("huggingface", ""), *((mirror, "") for mirror in mirrors)]


def _suites(home: Home) -> list[Choice]:
    """Those that are here first; the others are fetched, or their page is named."""
    named = sorted(SUITES, key=lambda name: not catalogue.is_here(name, home))
    return [
        *((name, _(measured)) for name, (measured, _path) in embedded.SUITES.items()),
        *((name, " · ".join([_(SUITES[name].title), _(catalogue.where(name, home))])) for name in named),
    ]


def _recipes(home: Home) -> list[Choice]:
    return [(name, "") for name in recipe.known(home)]


def _methods(home: Home) -> list[Choice]:
    """The common ones; any other is typed."""
    common = [(method.name, _(method.summary)) for method in methods.every() if method.common]
    return [("auto", _("by hardware and model")), *common]


def _formats(home: Home) -> list[Choice]:
    return [(name, _(format.summary)) for name, format in exports.FORMATS.items()]


def _types(answered: Mapping[str, str | list[str]]) -> list[Choice]:
    """Those of the format that was chosen, its usual one first."""
    format = exports.FORMATS[str(answered.get("format", "gguf"))]
    usual, *others = ((name, _("{bits:g} bits a weight").format(bits=kind.bits)) for name, kind in format.types.items())
    return [("", f"{usual[0]} · {usual[1]}"), *others]


def _stages(home: Home) -> list[Choice]:
    return [("auto", _("what the data are made for")), *((name, _(said)) for name, said in stages.SUMMARIES.items())]


def _rewards(home: Home) -> list[Choice]:
    """Reward functions; those that take a text are typed with it, as contains:TEXT."""
    return [(name, "") for name in plugins.names("reward") if not rewards.needs_argument(plugins.find("reward", name))]


def _said(run: Run) -> str:
    status = run.status()
    return " · ".join(filter(None, [_(STATES[status.state]), status.model_name]))


_SOURCES: dict[str, Callable[[Home], list[Choice]]] = {
    "models": _models,
    "catalogue": _models_and_more,
    "hub": lambda home: _models_and_more(home)[-1:],
    "kinds": _kinds,
    "datasets": _datasets,
    "runs": _runs(lambda run: True),
    "pairs": _pairs,
    "active": _runs(Run.alive),
    "resumable": _runs(lambda run: not why_not_resumable(run, run.status())),
    "tuned": _runs(_made_a_model),
    "exportable": _runs(lambda run: _made_a_model(run) and run.status().verb != "export"),
    "adapted": _runs(_made_an_adapter),
    "adapters": _adapters,
    "suites": _suites,
    "recipes": _recipes,
    "methods": _methods,
    "rewards": _rewards,
    "stages": _stages,
    "sources": _hubs,
    "formats": _formats,
    "judges": _runs(lambda run: run.status().stage == "rm" and bool(run.result())),
}
