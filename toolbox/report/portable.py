"""Plans without places: what a run did, in words that mean the same on another machine (`record.py`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from toolbox import chains, embedded, files
from toolbox.chains import Origin
from toolbox.datasets import addresses
from toolbox.facts import Facts
from toolbox.report import stated
from toolbox.report.record import ELSEWHERE, PLACE, Data, Folder, Made, Repair, Source, Step, Verb

SERVERS = ("endpoint", "judge", "backend")
"""Fields of plans that name servers, or other programs that measure."""
WEIGHTS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf")
"""Endings of files that make a model or an adapter what it is."""
_kept: dict[tuple[str, int, int], str] = {}
"""Hashes of large files by path, size and time, for one process: a chain names its base in each step."""


def steps(chain: Sequence[Facts]) -> list[Step]:
    """The runs of a chain that did something, oldest first."""
    done = [facts for facts in chain if facts.verb in get_args(Verb) and facts.plan and facts.result]
    places = _Places(done)
    return [_step(facts, places) for facts in done]


class _Places:
    """What paths in plans mean: something that a step of the chain made, or an origin with its hashes."""

    def __init__(self, chain: Sequence[Facts]) -> None:
        self.number = {facts.run.id: place for place, facts in enumerate(chain, 1)}
        self._folders = [(place, Path(facts.run.path)) for place, facts in enumerate(chain, 1)]
        outputs = [(place, facts.plan.get("output")) for place, facts in enumerate(chain, 1)]
        self._outputs = [(place, Path(str(output))) for place, output in outputs if output]
        self._origins = {origin.path: origin for origin in chains.origins(list(chain))}

    def made(self, path: Path) -> Made | None:
        """The step that made what lies at `path`."""
        for place, output in self._outputs:
            if path == output:
                return Made(step=place, path="output")
        for place, folder in self._folders:
            if path.is_relative_to(folder):
                return Made(step=place, path=path.relative_to(folder).as_posix())
        return None

    def folder(self, path: Path, name: str = "") -> Folder | Made:
        """A model or adapter folder."""
        if made := self.made(path):
            return made
        origin = self._origins.get(path)
        listed = {name: digest for name, digest in origin.hashes.items() if _counts(name)} if origin else {}
        local = not origin or origin.source in ("local", "made")
        return Folder(
            name=path.name if local else name or path.name,
            source="local" if local or not origin else _source(origin),
            revision=origin.revision if origin else "",
            files=listed or {file.name: _hash(file) for file in _files(path)},
        )

    def data(self, spec: dict[str, Any]) -> Data:
        """A data set of a plan."""
        path, said = Path(str(spec.get("path", ""))), str(spec.get("name", ""))
        made, origin = self.made(path), self._origins.get(path)
        known = origin if origin and origin.source not in ("local", "made") else None
        return Data(
            name=said if known else _short(said),
            sha256=str(spec.get("sha256", "")),
            source="step" if made else _source(known) if known else "local",
            id=_repository(known),
            revision=known.revision if known else "",
            made=made,
            rows=spec.get("rows", 0),
            columns=spec.get("columns") or {},
            skip_broken=bool(spec.get("skip_broken")),
        )


def _step(facts: Facts, places: _Places) -> Step:
    plan = facts.plan
    base, judge = plan.get("base"), (plan.get("options") or {}).get("reward_model")
    return Step(
        run=facts.run.id,
        verb=facts.verb,  # type: ignore[arg-type]
        model=places.folder(Path(str(facts.model.get("path"))), str(facts.model.get("id", ""))),
        base=places.folder(Path(str(base["path"])), str(base["id"])) if isinstance(base, dict) else None,
        adapters=[places.folder(Path(path)) for path in _adapters(plan)],
        judge=places.folder(Path(judge)) if judge else None,
        suites=[_suite(str(name), facts, places) for name in plan.get("suites") or []],
        repair=_repair(facts),
        after=places.number.get(str(plan.get("run", "")), 0),
        needs=_needs(plan),
        settings=_settings({name: value for name, value in plan.items() if name not in ELSEWHERE}),
        machine=stated.machine(plan.get("device"), facts.env),
        numbers=stated.numbers(facts),
        datasets=[places.data(spec) for spec in plan.get("datasets") or []],
        eval_datasets=[places.data(spec) for spec in plan.get("eval_datasets") or []],
        calibration=[places.data(spec) for spec in plan.get("calibration") or []],
    )


def _repair(facts: Facts) -> Repair | None:
    """How the rows in the run's repair/ were made, where it has any."""
    told = files.read_json(facts.run.path / "repair" / "repair.json")
    if not isinstance(told, dict):
        return None
    return Repair(**{name: told[name] for name in Repair.__struct_fields__ if name in told})


def _adapters(plan: dict[str, Any]) -> list[str]:
    """All of a mixture, or the one; those of a server have names."""
    mixture = plan.get("mixture")
    if isinstance(mixture, dict):
        return [str(path) for path in mixture["adapters"]]
    served = [str(each["path"]) for each in plan.get("adapters") or []]
    return [str(plan["adapter"])] if plan.get("adapter") else served


def _needs(plan: dict[str, Any]) -> list[str]:
    plugins = [Path(str(file.get("path"))).name for file in plan.get("plugins") or []]
    return plugins + [f"--{name}" for name in SERVERS if plan.get(name)]


def _settings(value: Any, name: str = "") -> Any:
    """The rest of a plan: of a path that is left in it only the name remains, and no tracker sends anything away."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if (name, key) not in DROPPED}
        return {key: _settings(inner, key) for key, inner in kept.items()}
    if isinstance(value, list):
        return [_settings(inner, name) for inner in value]
    return Path(value).name if isinstance(value, str) and name != "chat_template" and PLACE.search(value) else value


DROPPED = (("options", "reward_model"), ("training", "report_to"), ("mixture", "adapters"))


def _suite(name: str, facts: Facts, places: _Places) -> Data:
    """A suite by the hash of its rows when they were measured."""
    measured = [files.read_json(path) for path in sorted((facts.run.path / "evaluation").glob("*.json"))]
    digest = next((str(one["sha256"]) for one in measured if isinstance(one, dict) and one.get("suite") == name), "")
    path = Path(name)
    known = name in embedded.MEASURED
    if not digest and path.is_file():
        digest = files.sha256(path)
    made = places.made(path) if path.is_absolute() else None
    return Data(
        name=name if known else path.name,
        sha256=digest or "0" * 64,
        source="embedded" if known else "step" if made else "local",
        made=made,
    )


def _source(origin: Origin) -> Source:
    """Mirrors have names of their own, and mean nothing elsewhere."""
    return origin.source if origin.source in ("embedded", "modelscope", "huggingface") else "hub"  # type: ignore[return-value]


def _short(name: str) -> str:
    """`rows.jsonl#500` of `/home/me/rows.jsonl#500`."""
    whole = addresses.parse(name).name
    return name.replace(whole, Path(whole).name, 1)


def _repository(origin: Origin | None) -> str:
    """OWNER/NAME that the file came from: the two folders below datasets/."""
    parts = origin.path.parts if origin and origin.source in ("modelscope", "huggingface") else ()
    place = len(parts) - 1 - parts[::-1].index("datasets") if "datasets" in parts else 0
    return "/".join(parts[place + 1 : place + 3]) if place else ""


def _counts(name: str) -> bool:
    return name.endswith(WEIGHTS) and not name.startswith(".")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if _counts(file.name) and file.is_file())


def _hash(file: Path) -> str:
    found = file.stat()
    key = (str(file), found.st_size, found.st_mtime_ns)
    if key not in _kept:
        _kept[key] = files.sha256(file)
    return _kept[key]
