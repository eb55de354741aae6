"""Has a backend measure a model: what its script is given, how far it is, and why it failed (`evaluate --backend`)."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from toolbox import access, engines, files, foreign, loading
from toolbox.backends import Backend, Task
from toolbox.config import find_home
from toolbox.errors import HubError, InputError, Interrupted, NotFoundError, OutOfMemoryError, ToolboxError
from toolbox.evaluation.backends import conversion
from toolbox.evaluation.backends.figures import Said, Told
from toolbox.evaluation.backends.server import serving_model
from toolbox.evaluation.requests import key_of
from toolbox.i18n import _
from toolbox.plan import EvaluatePlan
from toolbox.runs import Reporter

SCRIPTS = {
    "lm-eval": Path(__file__).with_name("on_lm_eval.py"),
    "evalscope": Path(__file__).with_name("on_evalscope.py"),
}
BAR = re.compile(r"(?:Running \w+ requests|Evaluating\[).*?(\d+)/(\d+) \[")
"""How their bars of items begin: how many of how many."""
TURN = re.compile(r"@task (\d+)")
REFUSED = re.compile(r"@(no task|runs code) (.+)")
"""What the scripts print of themselves."""
SAID = "said.json"
UNREACHED = re.compile(
    r"Couldn't reach|offline ?mode|LocalEntryNotFound|ConnectionError|ConnectError|Max retries", re.I
)
"""How libraries say that a hub is out of reach."""
KEY = "OPENAI_API_KEY"
"""Where the script finds the server's key: never in a file, never on a command line."""
WAYS = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TOKENS = ("HF_ENDPOINT", "HF_TOKEN", "MODELSCOPE_API_TOKEN")
"""What leads out of this machine, and to the hubs; a backend that needs neither is given neither."""


class Work(msgspec.Struct, kw_only=True):
    """WORK.json, which the scripts read."""

    tasks: list[dict[str, Any]]
    folder: str
    """Where the backend's own files go."""
    said: str
    """Where the script writes what it found."""
    cache: str
    arguments: dict[str, Any]
    endpoint: bool
    """Whether the model is asked at `url`, by chat; its name there is `model`."""
    url: str = ""
    model: str = ""
    model_args: dict[str, Any] = {}
    device: str = "cpu"
    batch_size: int | str = 8
    hub: str = "modelscope"


class Asking:
    """One evaluation by a backend, a model at a time."""

    def __init__(
        self, plan: EvaluatePlan, backend: Backend, tasks: list[Task], folder: Path, reporter: Reporter
    ) -> None:
        self.version = ""
        tuned = bool(plan.adapter or plan.base)
        self.subjects = (["base"] if plan.compare or not tuned else []) + (["tuned"] if tuned else [])
        """What the models are called in the results, in the order in which they are asked."""
        self._plan, self._backend, self._tasks, self._folder, self._reporter = plan, backend, tasks, folder, reporter
        self._part, self._key = 0, key_of("YCDY_EVALUATE_ENDPOINT_KEY")

    def told(self, subject: str) -> dict[str, Told]:
        """What each task came to on this model, by name; once for a run. Raises as `run` in __init__.py does."""
        folder = self._folder / subject
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SAID).exists():
            with self._reached(subject, folder) as (work, secrets):
                files.write_bytes(folder / "work.json", msgspec.json.encode(work))
                self._run(subject, folder, secrets)
        said = msgspec.json.decode((folder / SAID).read_bytes(), type=Said)
        self.version = said.version
        self._part += 1
        return {one.name: one for told in said.tasks.values() for one in told}

    @contextmanager
    def _reached(self, subject: str, folder: Path) -> Iterator[tuple[Work, dict[str, str]]]:
        """(work, secrets): how the backend comes to the model, for as long as it may ask."""
        plan, work = self._plan, self._work(folder)
        model = plan.base if subject == "base" and plan.base else plan.model
        adapter = plan.adapter if subject == "tuned" else None
        if plan.endpoint:
            yield self._at(work, plan.endpoint, plan.endpoint_model), {KEY: self._key or "none"}
        elif self._backend.loads:
            texts = folder.parent / "tokenizer"
            loading.tokenizer(plan.model.path, plan.adapter).save_pretrained(texts)
            peft = {"peft": str(adapter)} if adapter else {}
            work.model_args = {"pretrained": str(model.path), "tokenizer": str(texts), "dtype": plan.dtype, **peft}
            yield work, {}
        else:
            self._reporter.phase(_("Starting {engine}").format(engine=_("a server")))
            with serving_model(plan, model, adapter, folder / "server", self._reporter) as facts:
                yield self._at(work, facts["url"], facts["model"]), {KEY: facts["api_key"]}

    def _work(self, folder: Path) -> Work:
        device = self._plan.device
        cuda = device.kind == "cuda"
        return Work(
            tasks=[self._task(task, folder) for task in self._tasks], folder=str(folder), said=str(folder / SAID),
            cache=str(find_home().path / "cache" / "backends"), arguments=self._plan.arguments, endpoint=False,
            device=f"cuda:{device.index}" if cuda else device.kind, batch_size="auto" if cuda else 8,
            hub="huggingface" if find_home().load_settings().source == "huggingface" else "modelscope",
        )  # fmt: skip

    def _at(self, work: Work, address: str, name: str) -> Work:
        """The work on a model behind an address, with or without /v1."""
        work.endpoint, work.model, work.url = True, name, access.server(address) + "/v1"
        work.model_args = {"base_url": f"{work.url}/chat/completions", "model": name, "num_concurrent": 4}
        return work

    def _task(self, task: Task, folder: Path) -> dict[str, Any]:
        """As the scripts want it; one of our suites is written in the backend's format beside the models' folders."""
        found = {"name": task.name, "task": task.task, "path": str(task.path or ""), "limit": self._plan.limit}
        found |= {"chat": False, "max_tokens": 0}
        if not task.suite:
            return found | ({"task": str(task.path)} if self._backend.loads and task.path else {})
        suites = folder.parent / "suites"
        found |= {"limit": 0, "chat": conversion.by_chat(task.suite), "max_tokens": conversion.MAX_NEW_TOKENS}
        if self._backend.loads:
            return found | {"task": str(conversion.for_lm_eval(task.suite, self._plan.limit, suites))}
        name = Path(task.name).stem
        path = conversion.for_evalscope(task.suite, self._plan.limit, suites / name)
        return found | {"task": "suite_questions", "path": str(path)}

    def _run(self, subject: str, folder: Path, secrets: dict[str, str]) -> None:
        place = 0
        parts = len(self._tasks) * len(self.subjects)
        refused: list[str] = []

        def heed(line: str) -> None:
            nonlocal place
            if self._reporter.stopping:
                raise Interrupted(_("Interrupted before everything was measured."), _("Go on with: runs resume"))
            if turn := TURN.match(line):
                place = int(turn[1])
                named = _("{suite} on the {model} model").format(
                    suite=Path(self._tasks[place].name).stem, model=_(subject)
                )
                self._reporter.phase(f"{self._backend.title}: {named}")
            elif found := REFUSED.match(line):
                refused[:] = [found[1], *json.loads(found[2])[:1], *_near(json.loads(found[2]))]
            elif bar := BAR.search(line):
                part = self._part * len(self._tasks) + place
                self._reporter.progress(part * 100 + int(bar[1]) * 100 // max(1, int(bar[2])), parts * 100)

        assert self._plan.python  # backends.python has seen to it
        script = SCRIPTS[self._backend.name]
        environ = self._environ() | secrets
        status, last = foreign.run(self._plan.python, script, folder / "work.json", environ, heed)
        if status:
            raise self._failed(status, last, refused)

    def _environ(self) -> dict[str, str]:
        """The engines' clean environment, with the way to the hubs where a task's rows may have to be fetched."""
        cache, device = find_home().path / "cache" / "backends", self._plan.device
        environ = engines.environment(cache, device.kind, device.index, "") | {
            "MODELSCOPE_CACHE": str(cache / "modelscope"), "EVALSCOPE_CACHE": str(cache / "evalscope"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_DATASETS_OFFLINE": "1",
            "HF_EVALUATE_OFFLINE": "1",  # a metric of that library is a program, fetched and run
        }  # fmt: skip
        if not (self._plan.fetches or self._plan.endpoint):
            return environ
        here = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
        environ |= {name: os.environ[name] for name in WAYS if name in os.environ} | {
            "no_proxy": here,
            "NO_PROXY": here,
        }
        if not self._plan.fetches:
            return environ
        settings = find_home().load_settings()
        hubs = {
            "HF_ENDPOINT": settings.huggingface_endpoint,
            "MODELSCOPE_DOMAIN": settings.modelscope_endpoint.partition("//")[2],
        }
        named = {name: os.environ[name] for name in TOKENS if name in os.environ}
        return environ | hubs | named | {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

    def _failed(self, status: int, last: str, refused: list[str]) -> ToolboxError:
        title = self._backend.title
        if refused and refused[0] == "no task":
            near = refused[2:]
            return NotFoundError(
                _("{title} has no task {name!r}.").format(title=title, name=refused[1]),
                _("Did you mean {name}?").format(name=", ".join(near)) if near else _("Check the spelling."),
            )
        if refused:
            return InputError(
                _("{title} would run what the model writes, without a sandbox, for {name}.").format(
                    title=title, name=refused[1]
                ),
                _("Measure it without --backend, in the sandbox here."),
            )
        if "Loglikelihood is not supported" in last:
            return InputError(
                _("{title} asks a server by chat, which tells no likelihoods.").format(title=title),
                _("Let it load the model: --model or --run instead of --endpoint; or measure without --backend."),
            )
        if UNREACHED.search(last):
            return HubError(
                _("{title} could not fetch the rows of its tasks: {reason}").format(title=title, reason=last),
                _("Check the network, HF_HUB_OFFLINE and huggingface_endpoint (config), or name files that are here."),
            )
        if foreign.killed(status):
            return OutOfMemoryError(
                _("{title} was killed, as the system does where memory runs out.").format(title=title),
                _("Free some memory, or set a smaller batch: --backend-args batch_size=1"),
            )
        return ToolboxError(
            _("{title} failed: {reason}").format(title=title, reason=last or status),
            _("The run's log.txt has all it said."),
        )


def _near(words: list[Any]) -> list[str]:
    return list(words[1]) if len(words) > 1 else []
