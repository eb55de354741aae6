"""Everything in HOME that takes room, by kind: what was downloaded, what was made, what was left over (`cache`)."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from toolbox import facts, files, runs
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.hub import store
from toolbox.hub.checking import Problem, changed, differing, torn
from toolbox.i18n import N_, _
from toolbox.runs import Run

Kind = Literal["model", "dataset", "made", "rows", "run", "engine", "partial", "scratch", "other"]
KINDS: dict[Kind, str] = {
    "model": N_("downloaded model"),
    "dataset": N_("downloaded data set"),
    "made": N_("model made here"),
    "rows": N_("rows of a program"),
    "run": N_("run"),
    "engine": N_("engine"),
    "partial": N_("cut-off download or merge"),
    "scratch": N_("cache, made again when needed"),
    "other": N_("notes and settings"),
}
"""What there is, in the order in which it is listed."""
WORTHLESS: tuple[Kind, ...] = ("partial", "scratch")
"""What nobody misses: it is made again, or resumed at the cost of its beginning."""
AGES = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be deleted by itself."""

    kind: Kind
    name: str
    path: Path
    bytes: int
    last_used: float
    """Seconds since the epoch."""
    source: str = ""
    """The hub that it is from."""
    live: bool = False
    """Whether a process works in it now."""


class Need(msgspec.Struct, frozen=True):
    """A run that reads something outside of its own folder."""

    run: Run
    live: bool
    paths: frozenset[Path]


def every(home: Home) -> list[Holding]:
    """All there is, by kind and name. Sizes of downloads are their manifests'; the rest is walked through once."""
    found = [*_copies(home), *_runs(home), *_leftovers(home)]
    found += [_one("rows", path.stem, path) for path in (home.datasets / ".made").glob("*.jsonl")]
    shared: set[tuple[int, int]] = set()  # What an engine was before its last change has most files in common with it.
    found += [_one("engine", path.name, path, counted=shared) for path in _folders(home.engines)]
    found += [_one("scratch", path.name, path) for path in _folders(home.path / "cache")]
    known = {home.models, home.datasets, home.runs, home.engines, home.path / "cache"}
    found += [_one("other", path.name, path) for path in _entries(home.path) if path not in known]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda holding: (order[holding.kind], holding.name))


def _copies(home: Home) -> Iterator[Holding]:
    """Downloads; a model without a manifest was merged, exported, or copied here by hand."""
    for copy in store.copies(home):
        kind: Kind = copy.kind if copy.manifest or copy.kind == "dataset" else "made"
        size = copy.manifest.bytes if copy.manifest else files.size_of(copy.path)
        source = copy.manifest.source if copy.manifest else ""
        yield Holding(kind=kind, name=copy.id, path=copy.path, bytes=size, last_used=copy.last_used, source=source)


def _runs(home: Home) -> Iterator[Holding]:
    for run in runs.every(home.runs):
        live = run.alive()
        yield _one("run", run.id, run.path, live)
        if not live and (run.path / "engine").is_dir():
            yield _one("scratch", f"{run.id}/engine", run.path / "engine")


def _leftovers(home: Home) -> Iterator[Holding]:
    """Downloads, merges and exports that were begun and not ended; one that goes on is `live`."""
    for path in store.leftovers(home):
        kept = path.relative_to(store.root(home, "model" if path.is_relative_to(home.models) else "dataset"))
        yield _one("partial", str(kept), path, live=files.is_locked(path) or store.busy(store.owner_of(path)))


def _one(kind: Kind, name: str, path: Path, live: bool = False, counted: set[tuple[int, int]] | None = None) -> Holding:
    size = files.size_of(path, counted)
    return Holding(kind=kind, name=name, path=path, bytes=size, last_used=_last_used(path), live=live)


def _last_used(path: Path) -> float:
    """When it was written to or marked as used last: of a run its status tells, of the rest the folder itself."""
    status = path / "status.json"
    return (status if status.is_file() else path).stat().st_mtime


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir()]


def _entries(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def age(text: str) -> float:
    """Seconds in `30d`, `12h`, `4w`; 0 for none. Raises InputError on anything else."""
    found = re.fullmatch(r"(\d{1,4})([hdw])", text.strip().lower())
    if text and not found:
        raise InputError(_("{age!r} is no age.").format(age=text), _("Give hours, days or weeks, as 12h, 30d or 4w."))
    return int(found[1]) * AGES[found[2]] if found else 0.0


def needs(home: Home) -> list[Need]:
    """The runs that would miss something if it went: those that live, that can be resumed, and whose adapter needs its
    base model."""
    found = []
    for run in runs.every(home.runs):
        live, resumable = run.alive(), run.status().state != "done" and run.has_checkpoint()
        plan = facts.read_plan(run) if live or resumable or run.adapter.is_dir() else {}
        named = facts.paths_in(plan) if live or resumable else facts.paths_in({"model": plan.get("model", {})})
        if outside := frozenset(path for path in named if not path.is_relative_to(run.path)):
            found.append(Need(run, live, outside))
    return found


def needed_by(holding: Holding, known: Iterable[Need]) -> list[Need]:
    """The runs among `known` that need it; those that live first."""
    inside = [need for need in known if any(path.is_relative_to(holding.path) for path in need.paths)]
    return sorted((need for need in inside if need.run.path != holding.path), key=lambda need: not need.live)


def unused(holding: Holding, known: Iterable[Need]) -> bool:
    """Whether nothing would miss it: a download or something left over that no run needs, or a run that left nothing.

    What was made here is a result, whoever uses it; so is what a finished merge, export or evaluation tells.
    """
    if holding.live or holding.kind in ("engine", "other", "rows", "made") or needed_by(holding, known):
        return False
    if holding.kind != "run":
        return True
    run = Run(holding.path)
    if run.adapter.is_dir() or (run.path / "model").is_dir() or run.has_checkpoint():
        return False
    return run.status().state != "done" or run.status().verb in ("serve", "plan")


def problems(holding: Holding, home: Home, progress: Callable[[int], None] = lambda size: None) -> list[Problem] | None:
    """What is damaged, by the hashes that were noted when it was fetched, saved or made; None where none were noted."""
    if holding.kind in ("model", "dataset"):
        manifest = store.read_manifest(holding.path)
        copy = store.Copy("model" if holding.kind == "model" else "dataset", holding.name, holding.path, manifest)
        found = {problem.file: problem for problem in [*torn(holding.path), *changed(copy, progress)]}
        return list(found.values()) if manifest or found else None
    hashes = dict(_noted(holding, home))
    found = {problem.file: problem for problem in differing(holding.path, hashes, progress)}
    if holding.kind == "made":
        found = {problem.file: problem for problem in torn(holding.path)} | found
    return list(found.values()) if hashes or found else None


def _noted(holding: Holding, home: Home) -> Iterator[tuple[str, str]]:
    """(file below the holding, its SHA-256) as far as markers of checkpoints and results of runs tell."""
    if holding.kind == "run":
        for marker in holding.path.glob("checkpoints/checkpoint-*/complete.json"):
            folder = marker.parent.relative_to(holding.path)
            yield from ((str(folder / name), sha256) for name, sha256 in _texts(files.read_json(marker), "files"))
    for run in [Run(holding.path)] if holding.kind == "run" else runs.every(home.runs):
        result = run.result()
        made = next((Path(result[name]) for name in ("output", "adapter", "model") if result.get(name)), None)
        if made and made.is_relative_to(holding.path):
            inside = made.relative_to(holding.path)
            yield from ((str(inside / name), sha256) for name, sha256 in _texts(result.get("hashes"), "output"))


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    inner = value.get(name) if isinstance(value, dict) else None
    yield from ((str(key), str(text)) for key, text in inner.items()) if isinstance(inner, dict) else ()
