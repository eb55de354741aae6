"""A step of somebody's record as a plan of this machine: models and data found by name and hash (`runs reproduce`).

A record is data from anybody: it chooses no entry, no place but below what is named here, no plugin, no server.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from toolbox import datasets, exports, files, memory, models, plan, planning, search, suites
from toolbox.config import Home
from toolbox.datasets import DatasetSpec, NotDownloadedError
from toolbox.device import Device
from toolbox.errors import InputError, NotFoundError
from toolbox.hub import store
from toolbox.i18n import _
from toolbox.models import ModelFacts
from toolbox.plan import AnyPlan, FinetunePlan
from toolbox.report.record import Data, Folder, Made, Step
from toolbox.runs import Run

WORK = {
    "finetune": "toolbox.training:run",
    "merge": "toolbox.merging:run",
    "export": "toolbox.exporting:run",
    "evaluate": "toolbox.evaluation:run",
}
"""The work of each verb that is done again, whatever a record says."""
Fetch = Callable[[store.Kind, str, str, str], None]
"""Fetches (kind, OWNER/NAME, hub, revision) into the home folder."""


class Here(msgspec.Struct, kw_only=True):
    """What a record is done again with."""

    home: Home
    device: Device
    fetch: Fetch
    given: Mapping[str, Path] = {}
    """Where files and folders lie that a person named."""
    beside: Path | None = None
    """The report's folder: files that came with it are taken where their hash is right."""
    made: dict[int, Run] = {}
    """The runs of the steps that are done."""


class Repeated(msgspec.Struct, frozen=True):
    """A plan, and what had to be planned otherwise than on the machine of the report."""

    plan: AnyPlan
    adapted: list[str]


def repeated(step: Step, here: Here) -> Repeated:
    """The step's plan on this machine's model and data.

    Raises InputError where something is not here, or is not what the report was made with; HubError.
    """
    fields: dict[str, Any] = {
        **step.settings, "verb": step.verb, "entry": WORK[step.verb], "device": here.device,
        "model": model(step.model, here), **_of_verb(step, here),
    }  # fmt: skip
    try:
        made: Any = plan.convert(fields)
    except msgspec.ValidationError as error:
        raise InputError(
            _("The plan of {run} can't be done here: {reason}.").format(run=step.run, reason=error),
            _("Take the version of the toolbox that the report names."),
        ) from error
    made, adapted = _adapted(made, here.device)
    if isinstance(made, FinetunePlan):
        load = planning.load_of(made)
        made = msgspec.structs.replace(made, estimate=memory.estimate(made.model, made, here.device, load))  # type: ignore[arg-type]
    return Repeated(made, adapted)


def look(step: Step, here: Here) -> None:
    """Find, or fetch, all that the step reads and no step makes, before any work begins. Raises as `repeated`."""
    for part in (step.model, step.base):
        if isinstance(part, Folder):
            model(part, here)
    for part in (step.judge, *step.adapters):
        if isinstance(part, Folder):
            _folder(part, here)
    for data in (*step.datasets, *step.eval_datasets, *step.calibration):
        if not data.made:
            _data(data, here)
    for suite in step.suites:
        if not suite.made:
            _suite(suite, here)


def _of_verb(step: Step, here: Here) -> dict[str, Any]:
    """What a verb's plan has beside model and settings."""
    after = here.made[step.after].id if step.after else ""
    adapters = [_folder(part, here) for part in step.adapters]
    rows = [_data(part, here) for part in step.datasets]
    adapted = {"run": after, "adapter": adapters[0] if adapters else None}
    if step.verb == "finetune":
        return {"datasets": rows, **_finetune(step, here)}
    if step.verb == "merge":
        mixture = step.settings.get("mixture")
        return {
            **adapted, "datasets": rows, "mixture": {**mixture, "adapters": adapters} if mixture else None,
            "output": files.free_path(here.home.models / "merged" / (after or step.run)),
        }  # fmt: skip
    if step.verb == "export":
        return {**adapted, "datasets": rows, **_export(step, here, after or step.run)}
    base = model(step.base, here) if step.base else None
    return {**adapted, "suites": [_suite(each, here) for each in step.suites], "base": base, "cached": False}


def _finetune(step: Step, here: Here) -> dict[str, Any]:
    options = step.settings.get("options")
    judged = {**(options or {}), "reward_model": str(_folder(step.judge, here))} if step.judge else options
    rows = [_data(each, here) for each in step.eval_datasets]
    return {"eval_datasets": rows, "options": judged, "why": "", "estimate": NO_ESTIMATE}


def _export(step: Step, here: Here, name: str) -> dict[str, Any]:
    format, kind = (str(step.settings.get(part)) for part in ("format", "type"))
    if format not in exports.FORMATS:
        raise InputError(_("There is no export to {name}.").format(name=format))
    kind = exports.chosen_type(exports.FORMATS[format], kind, bool(step.settings.get("adapter_only")))
    cuda = here.device.kind == "cuda"
    return {
        "calibration": [_data(part, here) for part in step.calibration],
        "python": exports.choose(format, kind, cuda, here.home).python(here.home, kind, cuda),
        "output": files.free_path(here.home.models / "exported" / f"{name}-{kind}"),
    }


NO_ESTIMATE = memory.Estimate(peak_bytes=0, parts_bytes={}, device_bytes=0, fits=True, time_s=0.0, disk_bytes=0)
"""Until the plan is whole, and can be estimated on this machine."""


def model(part: Folder | Made, here: Here) -> ModelFacts:
    """The model that a step reads, with the very files. Raises as `repeated` does."""
    if isinstance(part, Made):
        return models.resolve(str(_made(part, here)), here.home)
    name = str(here.given.get(part.name) or _beside(part, here) or part.name)
    try:
        found = models.resolve(name, here.home)
    except NotFoundError:
        if part.source in ("local", "embedded") or not models.HUB_ID.fullmatch(part.name):
            raise _asked_for(part.name, next(iter(part.files.values()), "")) from None
        here.fetch("model", part.name, part.source, part.revision)
        found = models.resolve(name, here.home)
    _same_files(part, found.path)
    return found


def _folder(part: Folder | Made, here: Here) -> Path:
    """An adapter's folder, or a reward model's."""
    if isinstance(part, Made):
        return _made(part, here)
    path = here.given.get(part.name) or _beside(part, here)
    if not path or not path.is_dir():
        raise _asked_for(part.name, next(iter(part.files.values()), ""))
    _same_files(part, path)
    return path


def _made(part: Made, here: Here) -> Path:
    """What an earlier step made, where this machine's run of it put it."""
    run = here.made[part.step]
    if part.path == "output":
        return Path(getattr(plan.load(run.plan_path), "output", run.path))
    path = run.path / part.path
    if not path.resolve().is_relative_to(run.path.resolve()) or not path.exists():
        raise NotFoundError(_("{run} has made no {path}.").format(run=run.id, path=part.path))
    return path


def _same_files(part: Folder, path: Path) -> None:
    """Raises InputError where a file of a model or adapter is missing, or another than the report was made with."""
    manifest = store.read_manifest(path)
    listed = {record.path: record for record in manifest.files} if manifest else {}
    for name, expected in part.files.items():
        record = listed.get(name)
        file = path / name
        if not file.is_file():
            raise _another(file, expected, _("there is none"))
        found = record.sha256 if record and record.unchanged(path) else files.sha256(file)
        if found != expected:
            raise _another(file, expected, found)


def _data(part: Data, here: Here) -> DatasetSpec:
    """The data set that a step reads, with the very rows."""
    base = datasets.addresses.parse(part.name).name
    rest = part.name.replace(base, "", 1)
    place = _made(part.made, here) if part.made else here.given.get(base) or _beside(part, here)
    if not place and part.source == "local":
        raise _asked_for(base, part.sha256)
    name = f"{place}{rest}" if place else part.name
    try:
        spec = datasets.resolve(name, here.home, part.columns, part.skip_broken)
    except NotDownloadedError as missing:
        here.fetch("dataset", missing.id, part.source, part.revision)
        spec = datasets.resolve(name, here.home, part.columns, part.skip_broken)
    if spec.sha256 != part.sha256 and not part.made:
        raise _another(spec.path, part.sha256, spec.sha256)
    return spec


def _suite(part: Data, here: Here) -> str:
    """The suite's name, or the path of its rows."""
    place = _made(part.made, here) if part.made else here.given.get(part.name) or _beside(part, here)
    name = str(place or part.name)
    try:
        suite = suites.resolve(name, here.home)
    except NotFoundError:
        raise _asked_for(part.name, part.sha256) from None
    if suite.sha256 != part.sha256:
        raise _another(suite.path, part.sha256, suite.sha256)
    return suite.name


def _beside(part: Folder | Data, here: Here) -> Path | None:
    """A file or folder of a person's own that came with the report."""
    name = datasets.addresses.parse(part.name).name
    path = here.beside / name if here.beside and part.source == "local" else None
    return path if path and path.exists() else None


def _asked_for(name: str, sha256: str) -> NotFoundError:
    return NotFoundError(
        _("{name} can't be fetched, and is not here (SHA-256 {digest}).").format(name=name, digest=sha256),
        _("Say where it lies: --data {name}=PATH; or put it beside the report.").format(name=name),
    )


def _another(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        _("{path} is not what the report was made with: SHA-256 {expected}, here {found}.").format(
            path=path, expected=expected, found=found
        ),
        _("Bring that very file: --data NAME=PATH; of a model, download the revision that the report names."),
    )


def _adapted(made: Any, device: Device) -> tuple[Any, list[str]]:
    """The plan without what this device can't do, and what was changed, in sentences."""
    told = []
    if getattr(made, "dtype", "") == "float16" and device.kind != "cuda":
        made = msgspec.structs.replace(made, dtype="float32")
        told.append(_("float32 for float16, which {device} can't train in").format(device=device.name))
    if getattr(made, "dtype", "") == "bfloat16" and device.kind == "cuda" and not device.bf16:
        made = msgspec.structs.replace(made, dtype="float16")
        told.append(_("float16 for bfloat16, which {device} does not have").format(device=device.name))
    if not isinstance(made, FinetunePlan):
        return made, told
    training = made.training
    if device.kind in search.LACKING.get(training.optim, ()):
        told.append(_("adamw_torch for {optim}, which is not made for it").format(optim=training.optim))
        training = msgspec.structs.replace(training, optim="adamw_torch")
    if training.use_liger_kernel and (device.kind != "cuda" or not importlib.util.find_spec("liger_kernel")):
        told.append(_("without Liger's kernels, which are for CUDA GPUs"))
        training = msgspec.structs.replace(training, use_liger_kernel=False)
    return msgspec.structs.replace(made, training=training), told
