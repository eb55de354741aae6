"""Chains of runs, and what they began with: download → finetune → merge → export → evaluate → serve (`runs report`)."""

import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from toolbox import embedded, runs
from toolbox.facts import Facts, paths_in, read_plan
from toolbox.hub import store
from toolbox.runs import Run

OWN = ("output", "tensorboard", "python")
"""Paths in a plan that are written to, or that run it: they say nothing of what it builds on."""
OUTPUT = re.compile(rb"^output: (.+(?:\n +.+)*)", re.MULTILINE)
"""Where a plan.yaml says that its model goes to, without parsing it: hundreds of plans take seconds to parse."""
LICENCE = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.+ -]+?)[\"']?\s*$", re.MULTILINE)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A model or data set that a chain begins with, as the hub's store recorded it: the chain's first step."""

    kind: store.Kind
    name: str
    """As the person named it."""
    path: Path
    source: str
    """modelscope, huggingface, embedded or local."""
    repository: str = ""
    """OWNER/NAME, where it was fetched."""
    revision: str = ""
    hashes: dict[str, str] = {}
    """SHA-256 by file."""
    verified: bool = False
    """Whether all hashes are those that the hub lists."""
    bytes: int = 0
    fetched_at: float = 0.0
    """Seconds since the epoch; 0 where nothing was fetched."""
    licence: str = ""
    """What its README.md states; empty where it states none."""


def chain(run: Run) -> list[Facts]:
    """What `run` was made from, `run`, and what was made from those that were made from it; the oldest comes first.

    Other runs that were made from the same ones are left out: they have chains of their own.
    """
    return [Facts.of(each) for each in related(run)]


def related(run: Run) -> list[Run]:
    """The runs of `run`'s chain, oldest first, for those who don't need what they hold."""
    kin = _Kin(run.path.parent)
    me = run.path.name
    kept = {me, *_reach(me, kin.parents), *_reach(me, kin.children)}
    order: dict[str, None] = {}
    for id in sorted(kept & kin.age.keys(), key=kin.age.__getitem__):
        _put(id, kin, kept, order)
    return [run if id == me else Run(run.path.parent / id) for id in order] or [run]


def later(run: Run) -> list[Run]:
    """The runs that were made from `run` itself, oldest first."""
    kin = _Kin(run.path.parent)
    return [Run(run.path.parent / id) for id in kin.children(run.path.name)]


def earlier(run: Run) -> list[Run]:
    """All runs that `run` was made from, oldest first."""
    found = related(run)
    kin = _Kin(run.path.parent)
    before = _reach(run.id, kin.parents)
    return [each for each in found if each.id in before]


def origins(chain: list[Facts]) -> list[Origin]:
    """The models and data sets that a chain reads and none of its runs made, each once, as recorded when fetched."""
    made = [Path(path) for facts in chain for path in (facts.run.path, facts.plan.get("output")) if path]
    found: dict[Path, Origin] = {}
    for kind, name, path, source, sha256 in _read(chain):
        if path not in found and not any(path.is_relative_to(folder) for folder in made):
            found[path] = _origin(kind, name, path, source, sha256)
    return list(found.values())


def _read(chain: list[Facts]) -> Iterator[tuple[store.Kind, str, Path, str, str]]:
    """(kind, name, path, source, SHA-256 of a data set) of all that the plans read."""
    for facts in chain:
        for model in (facts.plan.get("base"), facts.model):
            if isinstance(model, dict) and model.get("path"):
                yield "model", str(model.get("id", "")), Path(str(model["path"])), str(model.get("source", "")), ""
        for field in ("datasets", "eval_datasets", "calibration"):
            specs = facts.plan.get(field)
            for spec in specs if isinstance(specs, list) else []:
                if isinstance(spec, dict) and spec.get("path"):
                    yield "dataset", str(spec.get("name", "")), Path(str(spec["path"])), "", str(spec.get("sha256", ""))


def _origin(kind: store.Kind, name: str, path: Path, source: str, sha256: str) -> Origin:
    folder = path if kind == "model" else path.parent
    hashes = {path.name: sha256} if sha256 else {}
    for place in (folder, *folder.parents[:3]):  # A data set's file may lie some folders deep in its repository.
        if manifest := store.read_manifest(place):
            listed = {record.path: record.sha256 for record in manifest.files}
            inside = str(path.relative_to(place))
            return Origin(
                kind=kind, name=name, path=path, source=manifest.source, repository=manifest.id,
                revision=manifest.revision,
                hashes=listed if kind == "model" else {inside: listed.get(inside, sha256)},
                verified=bool(manifest.files) and all(record.verified for record in manifest.files),
                bytes=manifest.bytes, fetched_at=manifest.fetched_at, licence=licence(place),
            )  # fmt: skip
    ours = path.is_relative_to(embedded.FOLDER)
    source = "embedded" if ours else source or "local"
    return Origin(
        kind=kind, name=name, path=path, source=source, hashes=hashes, licence="Apache-2.0" if ours else licence(folder)
    )


def licence(folder: Path) -> str:
    """The licence that a folder's README.md states in its front matter; empty where it states none."""
    try:
        found = LICENCE.search((folder / "README.md").read_text("utf-8", errors="replace")[:4000])
    except OSError:
        return ""
    return found.group(1) if found else ""


class _Kin:
    """Who was made from whom in a folder of runs; a plan is parsed only where its bytes name what is looked for."""

    def __init__(self, folder: Path) -> None:
        every = runs.every(folder)[::-1]
        self.age = {run.id: place for place, run in enumerate(every)}
        self.folder = folder
        self._raw = {run.id: _bytes(run) for run in every}
        self._plans: dict[str, dict[str, Any]] = {}

    def plan(self, id: str) -> dict[str, Any]:
        if id not in self._plans:
            self._plans[id] = read_plan(Run(self.folder / id))
        return self._plans[id]

    def parents(self, id: str) -> list[str]:
        """The runs that this one names, or whose folder or output holds something that it names."""
        plan = self.plan(id)
        paths = list(paths_in({name: value for name, value in plan.items() if name not in OWN}))
        named = {self._place(path) for path in paths}
        named |= {Path(str(plan["run"])).name} if plan.get("run") else set()
        made = {maker for path in paths for maker in self._makers(path, id)}
        return sorted((named | made) & self.age.keys() - {id}, key=self.age.__getitem__)

    def children(self, id: str) -> list[str]:
        output = self._outputs.get(id)
        tokens = [token for token in (id.encode(), output and _token(output)) if token]
        near = [other for other, raw in self._raw.items() if other != id and any(token in raw for token in tokens)]
        return [other for other in near if id in self.parents(other)]

    def _place(self, path: Path) -> str:
        """The id of the run whose folder a path lies in, wherever the home was when the plan was made."""
        pairs = zip(path.parts, path.parts[1:], strict=False)
        return next((part for parent, part in pairs if parent == self.folder.name and part in self.age), "")

    def _makers(self, path: Path, reader: str) -> list[str]:
        """The newest run before `reader` whose output is, or holds, `path`."""
        found = [
            id
            for id, output in self._outputs.items()
            if self.age[id] < self.age[reader] and path.is_relative_to(output)
        ]
        return found[-1:]

    @cached_property
    def _outputs(self) -> dict[str, Path]:
        """Where merges and exports put what they made, oldest run first."""
        found = {id: OUTPUT.search(raw) for id, raw in self._raw.items()}
        texts = {id: _scalar(match[1]) for id, match in found.items() if match}
        return {id: Path(text) for id, text in texts.items() if text.startswith(os.sep)}


def _reach(id: str, step: Any) -> Collection[str]:
    """All ids that steps lead to from `id`."""
    found: set[str] = set()
    waiting = [id]
    while waiting:
        new = set(step(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def _put(
    id: str, kin: _Kin, kept: Collection[str], order: dict[str, None], above: frozenset[str] = frozenset()
) -> None:
    """Put a run into the order behind all that it was made from; plans that name each other are taken as they come."""
    if id in order or id in above:
        return
    for parent in kin.parents(id):
        if parent in kept:
            _put(parent, kin, kept, order, above | {id})
    order[id] = None


def _bytes(run: Run) -> bytes:
    try:
        return run.plan_path.read_bytes()
    except OSError:
        return b""


def _scalar(text: bytes) -> str:
    """The value of a YAML scalar, or an empty text."""
    try:
        return str(msgspec.yaml.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _token(path: Path) -> bytes:
    """A piece of a path that stands in a plan as it is, however YAML quotes or folds the rest."""
    return max(re.findall(r"[\w.-]+", path.name, re.ASCII), key=len, default="").encode()
