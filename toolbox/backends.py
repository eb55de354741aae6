"""Other evaluations, in interpreters of their own: which there are, and what each takes (`evaluate --backend`)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from toolbox import embedded, engines, suites
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _
from toolbox.suites import Suite

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Set to anything but 0, nothing is fetched: as Hugging Face's libraries have it."""

YAML = (".yaml", ".yml")


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. Its name is also its lock's; with `loads`, that of the lock for a machine with an NVIDIA GPU."""

    name: str
    title: str
    loads: bool
    """It loads a model by itself; else it asks a server, which is ours unless an endpoint was named."""
    kinds: frozenset[str]
    """Kinds of our suites that can be said in its format."""
    arguments: frozenset[str]
    """What `--backend-args` may set, in its own words."""

    def environment(self, cuda: bool) -> str:
        """The environment that it runs in, as `engines list` names it."""
        return self.name if cuda or not self.loads else f"{self.name}-cpu"

    def python(self, cuda: bool, home: Home) -> Path | None:
        """Its interpreter; None where it is not installed. Without a GPU the other build will do too."""
        found = (engines.own_python(name, home) for name in dict.fromkeys((self.environment(cuda), self.name)))
        return next(filter(None, found), None)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="lm-eval", title="lm-evaluation-harness", loads=True,
            kinds=frozenset({"exact_match", "multiple_choice"}),
            arguments=frozenset({
                "num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction", "gen_kwargs",
                "batch_size", "max_length",
            }),
        ),
        Backend(
            name="evalscope", title="EvalScope", loads=False, kinds=frozenset({"exact_match"}),
            arguments=frozenset({"few_shot_num", "eval_batch_size", "max_tokens", "temperature", "dataset_hub"}),
        ),
    )
}  # fmt: skip


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured. A name that both have is the backend's, but for the suites that are shipped here."""

    name: str
    """As results call it."""
    task: str = ""
    """The backend's own name for it; empty for one of our suites."""
    path: Path | None = None
    """A YAML file of lm-evaluation-harness's, or where the rows of an EvalScope benchmark lie."""
    suite: Suite | None = None
    """A suite of ours, to be said in the backend's format."""

    @property
    def word(self) -> str:
        """What means it again, from any folder."""
        if self.suite or not self.path:
            return self.name
        return str(self.path) if self.path.suffix in YAML else f"{self.task}={self.path}"

    @property
    def fetched(self) -> bool:
        """Whether its rows come from a hub, where they are not here already."""
        return self.suite is None and self.path is None


def tasks(backend: Backend, words: list[str], home: Home) -> list[Task]:
    """What `--suite` means for that backend: our shipped suites and files of rows, else its own tasks by name.

    `TASK=FOLDER` are rows for a benchmark of EvalScope's, `FILE.yaml` a task of lm-evaluation-harness's. Whether a name
    is known to the backend only itself can tell. Raises InputError for a suite that can't be said in its format,
    NotFoundError for a file that is not there.
    """
    if not words:
        raise InputError(
            _("{title} was not told what to measure.").format(title=backend.title),
            _("Name its tasks, files or suites of ours: --suite NAME …"),
        )
    return [task for word in words for task in _tasks_of(backend, word, home)]


def _tasks_of(backend: Backend, word: str, home: Home) -> list[Task]:
    own, equals, place = word.partition("=")
    path = Path(place if equals else word).expanduser()
    if equals and not backend.loads:
        return [Task(name=word, task=own, path=_there(path))]
    if backend.loads and path.suffix in YAML:
        return [Task(name=path.stem, task=path.stem, path=_there(path))]
    if word not in embedded.SUITES and os.sep not in word and not path.exists():
        return [Task(name=word, task=word)]
    found = suites.resolve_all([word], home)
    for suite in found:
        if suite.kind not in backend.kinds:
            raise InputError(
                _("{title} has no way to say what {suite} measures.").format(title=backend.title, suite=suite.name),
                _("Measure it without --backend. These can be said: {kinds}").format(
                    kinds=", ".join(_(suites.KINDS[kind].title) for kind in sorted(backend.kinds))
                ),
            )
    return [Task(name=suite.name, suite=suite) for suite in found]


def _there(path: Path) -> Path:
    if not path.exists():
        raise NotFoundError(_("There is no {path}.").format(path=path), _("Check the spelling."))
    return path.absolute()


def arguments(backend: Backend, words: list[str]) -> dict[str, Any]:
    """`--backend-args KEY=VALUE …`, values as YAML has them. Raises InputError for one that it does not take."""
    import yaml

    found = {}
    for word in words:
        name, _equals, value = word.partition("=")
        if name not in backend.arguments:
            raise InputError(
                _("{title} is not given {name!r} here.").format(title=backend.title, name=name),
                _("It takes: {names}").format(names=", ".join(sorted(backend.arguments))),
            )
        found[name] = yaml.safe_load(value)
    return found


def offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a person said that nothing is to be fetched."""
    return any(environ.get(name, "0").lower() not in ("", "0", "false", "no", "off") for name in OFFLINE)
