"""What has a name and can be chosen: the built-ins, installed packages' and a person's own (`--plugin FILE.py`).

docs/plugins.md tells what each kind has to be. A built-in is a text `module:attribute`, as an entry point is, so that
names can be listed without importing what they stand for.
"""

import difflib
import functools
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

import msgspec

from toolbox.errors import InputError, NotFoundError, ToolboxError
from toolbox.i18n import N_, _

Kind = Literal[
    "loss", "metric", "optimizer", "callback", "tuner", "dataset", "model", "reward", "tracker", "suite", "stage"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: dict[Kind, str] = {
    "loss": N_("loss"), "metric": N_("metric"), "optimizer": N_("optimizer"), "callback": N_("callback"),
    "tuner": N_("tuner"), "dataset": N_("data set"), "model": N_("model"), "reward": N_("reward function"),
    "tracker": N_("tracker"), "suite": N_("suite"), "stage": N_("stage"),
}  # fmt: skip
GROUP = "yichuidingyin"
"""Entry points of the group `yichuidingyin.KIND` are plugins of that kind."""

_STAGES = ("pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "cpo", "ppo", "grpo")
_DPO = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop",
)  # fmt: skip
_OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit", "galore_adamw", "apollo_adamw")
_SUITES = (
    "perplexity", "exact_match", "gender", "gsm8k", "multiple_choice", "truthfulqa",
    "crows_pairs", "winobias", "winogender", "stereoset", "bbq", "cbbq",
    "code", "mbpp", "ifeval", "math_problems", "commonsense", "open_questions", "text",
)  # fmt: skip
BUILT_IN: dict[Kind, dict[str, str]] = {
    "stage": {name: f"toolbox.training.stages.{name}:make" for name in _STAGES},
    "loss": {
        **{f"dpo.{name}": f"toolbox.training.stages.losses:{name}" for name in _DPO},
        "sft.cross_entropy": "toolbox.training.stages.losses:cross_entropy",
    },
    "optimizer": {name: f"toolbox.training.optim:{name}" for name in _OPTIMIZERS},
    "tuner": {
        "adapter": "toolbox.training.tuners.adapters:AdapterTuner",
        "loreft": "toolbox.training.tuners.interventions:LoreftTuner",
        "weights": "toolbox.training.tuners.weights:WeightsTuner",
    },
    "suite": {name: f"toolbox.evaluation.{name}:measure" for name in _SUITES},
    "metric": {"exact_match": "toolbox.evaluation.exact_match:exact"},
    "tracker": {
        "tensorboard": "toolbox.training.trackers:TensorBoard",
        "wandb": "toolbox.training.trackers:Wandb",
        "swanlab": "toolbox.training.trackers:SwanLab",
    },
    "reward": {
        "exact_match": "toolbox.rewards:exact_match",
        "number_match": "toolbox.rewards:number_match",
        "format": "toolbox.rewards:format_match",
        "contains": "toolbox.rewards:contains",
        "brevity": "toolbox.rewards:brevity",
    },
}
PARAMETERS: dict[str, tuple[str, ...]] = {
    "dpo": ("pairs", "options"), "sft": ("logits", "targets"), "metric": ("question", "said"), "callback": ("plan",),
    "optimizer": ("named_parameters", "plan"), "tuner": ("plan",), "dataset": (), "stage": ("plan",),
    "tracker": ("plan", "run", "step"), "suite": ("subject", "suite", "limit", "watch"),
}  # fmt: skip
"""What each kind is called with, in this order; a loss is told apart by the stage that its name begins with."""

T = TypeVar("T")


class Callback:
    """What may look on while a model is trained, and end it. Each method may be left out."""

    def __init__(self, plan: Any) -> None:
        """`plan`: the `FinetunePlan`."""

    def on_train_begin(self, model: Any, step: int, steps: int) -> None:
        """Before step `step` + 1 of `steps`; `step` is above 0 where the training was resumed."""

    def on_step_end(self, step: int, metrics: dict[str, float]) -> bool | None:
        """After each optimizer step, with what is logged of it; True: this was the last one."""

    def on_evaluate(self, step: int, metrics: dict[str, float]) -> bool | None:
        """After each evaluation, with its figures, to which more may be added; True: the training ends here."""

    def on_save(self, step: int, folder: Path) -> None:
        """A complete checkpoint lies in `folder`."""

    def on_train_end(self, step: int) -> None:
        """After the last step, before the result is written."""

    def state_dict(self) -> dict[str, Any]:
        """What it has to know when the training is resumed, as JSON takes it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring back what `state_dict` gave."""


class File(msgspec.Struct, frozen=True):
    """A plugin file that was loaded, as a plan records it."""

    path: Path
    sha256: str


class _Registered(msgspec.Struct, frozen=True):
    value: Any
    origin: str


_registered: dict[tuple[str, str], _Registered] = {}
_files: dict[str, str] = {}
"""Source files of plugins, by what tracebacks call them: the SHA-256 of a file that was loaded, "" of a package's."""
_loading = ""


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Decorates what shall be known as `name`. Raises InputError where the name is taken, or it can't be called so."""

    def take(value: T) -> T:
        origin = _loading or str(getattr(value, "__module__", ""))
        holder = _holder(kind, name)
        if holder and holder != origin:
            raise InputError(
                _("the {kind} {name!r} is there already, from {holder}").format(
                    kind=_(TITLES[kind]), name=name, holder=holder
                ),
                _("Choose another name."),
            )
        _check_call(kind, name, value)
        _registered[kind, name] = _Registered(value, origin)
        return value

    return take


def find(kind: Kind, name: str) -> Any:
    """What has that name. Raises NotFoundError naming what is near, InputError where a package's plugin is broken."""
    if (kind, name) in _registered:
        return _registered[kind, name].value
    if reference := BUILT_IN.get(kind, {}).get(name):
        module, attribute = reference.split(":")
        return getattr(import_module(module), attribute)
    if point := _entry_points(kind).get(name):
        return _of_package(kind, point)
    known = names(kind)
    near = difflib.get_close_matches(name, known, n=1)
    raise NotFoundError(
        _("There is no {kind} {name!r}.").format(kind=_(TITLES[kind]), name=name),
        _("Did you mean {name}?").format(name=near[0])
        if near
        else _("There is: {names}; or bring your own with --plugin FILE.py.").format(names=", ".join(known) or "–"),
    )


def require(kind: Kind, name: str) -> None:
    """Raise as `find` does where there is no such name; a built-in is not imported for that."""
    if name not in BUILT_IN.get(kind, {}):
        find(kind, name)


def names(kind: Kind) -> list[str]:
    """All names of a kind: the built-ins first, in their order, then the others."""
    own = sorted(name for of, name in _registered if of == kind)
    return list(dict.fromkeys([*BUILT_IN.get(kind, {}), *own, *sorted(_entry_points(kind))]))


def added(kind: Kind) -> list[str]:
    """The names of a kind that are no built-ins."""
    return [name for name in names(kind) if name not in BUILT_IN.get(kind, {})]


def of_files(kind: Kind) -> list[str]:
    """The names of a kind that were registered by the files that were loaded."""
    return [name for (of, name), known in _registered.items() if of == kind and known.origin in _files]


def packages() -> list[tuple[Kind, str, str]]:
    """(kind, name, package with its version) of every plugin that an installed package offers; none is imported."""
    points = [(kind, point) for kind in KINDS for point in _entry_points(kind).values()]
    return [
        (kind, point.name, f"{point.dist.name} {point.dist.version}" if point.dist else "?") for kind, point in points
    ]


def file_of(kind: Kind, name: str) -> Path:
    """The source file of a plugin."""
    value = find(kind, name)
    return Path(inspect.getsourcefile(getattr(value, "__init__", value) if inspect.isclass(value) else value) or "")


def load(path: Path, shown: Path | None = None, sha256: str = "") -> File:
    """Run a plugin file, whose `register` calls then hold; one that was loaded before is not run again.

    `shown`: what errors call it, where `path` is a copy. Raises NotFoundError, or InputError naming the file, the line
    and the reason where it is broken, or not the one with that `sha256`; then nothing of it is registered.
    """
    name = str(shown or path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            _("The plugin {path} can't be read: {reason}.").format(path=path, reason=error.strerror),
            _("Check the file's path."),
        ) from None
    file = File(Path(name), hashlib.sha256(source).hexdigest())
    if sha256 and file.sha256 != sha256:
        raise InputError(
            _("The plugin {path} is not the one that was planned with.").format(path=path),
            _("Bring the old file back, or make a new run."),
        )
    if _files.get(name) != file.sha256:
        _run(source, name, file.sha256)
    return file


def source(file: File) -> bytes:
    """The bytes of a file that was loaded. Raises InputError where it has changed since."""
    try:
        data = file.path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise InputError(
            _("The plugin {path} is not the one that was planned with.").format(path=file.path),
            _("Bring the old file back, or make a new run."),
        )
    return data


def changed(file: File) -> str | None:
    """A sentence where the original of a run's copy has changed, or is gone, since the plan was made; else None."""
    try:
        source(file)
    except InputError:
        return _("{path} has changed since the plan was made; the run uses its own copy.").format(path=file.path)
    return None


def _run(source: bytes, name: str, sha256: str) -> None:
    global _loading
    module, before = ModuleType(f"plugin_{sha256[:16]}"), dict(_registered)
    module.__file__ = name
    sys.modules[module.__name__] = module  # where dataclasses and the like look for a class's home
    _files[name], _loading = sha256, name
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # another's code may raise anything
        _registered.clear()
        _registered.update(before)
        del sys.modules[module.__name__]
        broken = blame(error)
        del _files[name]
        raise broken or error from error
    finally:
        _loading = ""


def blame(error: BaseException) -> InputError | None:
    """The sentence for what went wrong in a plugin, with file and line; None where no plugin had a part in it."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno or 0))
    reason = error.message if isinstance(error, ToolboxError) else f"{type(error).__name__}: {error}"
    found = next(((file, line) for file, line in reversed(places) if file in _files), None)
    return _broken(*found, reason) if found else None


def wrong(kind: Kind, name: str, reason: str) -> InputError:
    """The error for a plugin that did not give what it has to."""
    value = find(kind, name)
    code = getattr(value, "__code__", None) or getattr(getattr(value, "__init__", None), "__code__", None)
    return _broken(code.co_filename if code else _holder(kind, name), code.co_firstlineno if code else 0, reason)


def _broken(file: str, line: int, reason: str) -> InputError:
    return InputError(
        _("The plugin {file} is broken, line {line}: {reason}.").format(
            file=file, line=line, reason=" ".join(reason.split()).rstrip(".")
        ),
        _("Mend it; docs/plugins.md tells what a plugin has to be."),
    )


def _holder(kind: Kind, name: str) -> str:
    """Where the name comes from that is taken; empty where it is free."""
    if (kind, name) in _registered:
        return _registered[kind, name].origin
    return BUILT_IN.get(kind, {}).get(name, "")


@functools.cache
def _entry_points(kind: Kind) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=f"{GROUP}.{kind}")}


@functools.cache
def _of_package(kind: Kind, point: metadata.EntryPoint) -> Any:
    """What an installed package offers. Raises InputError naming the package where it can't be had."""
    try:
        value = point.load()
        _check_call(kind, point.name, value)
    except Exception as error:  # another's code may raise anything
        reason = error.message if isinstance(error, ToolboxError) else f"{type(error).__name__}: {error}"
        package = point.dist.name if point.dist else "?"
        raise InputError(
            _("The plugin {name!r} of the package {package} ({value}) is broken: {reason}.").format(
                name=point.name, package=package, value=point.value, reason=reason.rstrip(".")
            ),
            _("Bring that package up to date, or uninstall it."),
        ) from error
    _files.setdefault(inspect.getsourcefile(inspect.getmodule(value) or value) or "", "")
    return value


def _check_call(kind: Kind, name: str, value: Any) -> None:
    """Raise InputError where `value` can't be called as its kind is."""
    if kind == "model":
        return
    taken = PARAMETERS.get(name.partition(".")[0] if kind == "loss" else kind)
    if taken is None and kind == "loss":
        raise InputError(_("a loss has a name as dpo.NAME or sft.NAME, and {name!r} has not").format(name=name))
    try:
        if kind == "reward":  # which columns it needs besides, its data have to tell
            known = inspect.signature(value).parameters
            inspect.signature(value).bind(**dict.fromkeys(["prompts", "completions", *known, "column"]))
        else:
            inspect.signature(value).bind(*(taken or ()))
    except (TypeError, ValueError):
        wanted = ", ".join(("prompts", "completions", "**columns") if kind == "reward" else taken or ())
        raise InputError(
            _("the {kind} {name!r} has to take ({wanted})").format(kind=_(TITLES[kind]), name=name, wanted=wanted)
        ) from None
