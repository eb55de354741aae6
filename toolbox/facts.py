"""What a run directory holds, read leniently: a part that is absent, torn or of another version is empty."""

import os
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files
from toolbox.runs import Run, Status

SECRET_NAMES = re.compile(r"(api_?key|secret|password|authorization|(access|auth|hub|hf)_?token)$", re.IGNORECASE)
SECRET_SHAPES = re.compile(r"\b(?:sk|hf|ms|ghp|Bearer)[-_ ][A-Za-z0-9_\-.]{12,}")
HIDDEN = "••••"


class Facts(msgspec.Struct, frozen=True):
    """A run as the report sees it; `plan`, `env` and `result` are plain data, since old runs outlive their schemas.

    Keys are blotted out of all of it, so that no section can print one.
    """

    run: Run
    plan: dict[str, Any]
    status: Status
    env: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    secrets: frozenset[str] = frozenset()
    """What was blotted out."""

    @classmethod
    def of(cls, run: Run) -> "Facts":
        plan, status, result = read_plan(run), run.status(), _mapping(run.result())
        secrets = _secrets(result) | _secrets(plan)
        hide = partial(without, secrets=secrets)
        status.error = hide(status.error)
        return cls(
            run=run,
            plan=hide(plan),
            status=status,
            env=hide(_mapping(files.read_json(run.path / "env.json"))),
            result=hide(result),
            metrics=[line for line in run.metrics() if isinstance(line, dict)],
            secrets=frozenset(secrets),
        )

    @property
    def verb(self) -> str:
        return str(self.plan.get("verb") or self.status.verb)

    @property
    def model(self) -> dict[str, Any]:
        return _mapping(self.plan.get("model"))

    def curve(self, name: str) -> list[tuple[float, float]]:
        """The (step, value) points of one metric."""
        return [
            (line["step"], line[name])
            for line in self.metrics
            if isinstance(line.get(name), int | float) and isinstance(line.get("step"), int | float)
        ]


def read_plan(run: Run) -> dict[str, Any]:
    """The run's plan as plain data; empty where it is absent or torn."""
    try:
        return _mapping(msgspec.yaml.decode(run.plan_path.read_bytes()))
    except (OSError, msgspec.DecodeError):
        return {}


def paths_in(value: object) -> Iterator[Path]:
    """Every absolute path in a plan, or another piece of plain data, at any depth."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from paths_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from paths_in(inner)
    elif isinstance(value, str) and value.startswith(os.sep):
        yield Path(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _secrets(value: Any, name: str = "") -> set[str]:
    """The texts in `value` that stand under a name like api_key."""
    if isinstance(value, dict):
        return set().union(*(_secrets(item, str(key)) for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(_secrets(item, name) for item in value))
    return {value} if isinstance(value, str) and len(value) >= 6 and SECRET_NAMES.search(name) else set()


def without(value: Any, secrets: Collection[str]) -> Any:
    """`value` with these secrets, and whatever looks like one, blotted out of every text in it."""
    if isinstance(value, dict):
        return {key: without(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [without(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    for secret in sorted(secrets, key=len, reverse=True):
        value = value.replace(secret, HIDDEN)
    return SECRET_SHAPES.sub(HIDDEN, value)
