"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, SwanLab (`finetune --tracker NAME`).

Each has a thread of its own, so that one that fails or hangs neither ends nor stalls the training.
"""

import hashlib
import inspect
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from toolbox import plugins
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run

PROJECT = "yichuidingyin"
"""What the trackers' own variables (WANDB_PROJECT, SWANLAB_PROJ_NAME) don't name otherwise."""
WAITING = 10_000
"""Steps that may wait for a slow tracker; with more, it counts as hanging."""
CLOSING_S = 30.0
"""How long a tracker may take to send the rest once the training is done."""


class Tracker(Protocol):
    """What a tracker is, built in or a plugin's: made of (plan, run, step), where `step` steps are done already."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """All trackers of a training; steps are told to each in its own thread."""

    def __init__(self, plan: FinetunePlan, run: Run, step: int, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lines = [_Line(name, plan, run, step) for name in plan.training.report_to]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for line in self._lines:
            line.put((step, dict(metrics)))
        self._drop_failed()

    def _drop_failed(self) -> None:
        for line in [line for line in self._lines if line.failure]:
            self._lines.remove(line)
            self._reporter.phase(
                _("The tracker {name} is left out from here on: {reason}.").format(
                    name=line.name, reason=line.failure.rstrip(".")
                )
            )

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.end()
        self._drop_failed()


class _Line:
    """A tracker in its thread, and what waits for it."""

    def __init__(self, name: str, plan: FinetunePlan, run: Run, step: int) -> None:
        self.name, self.failure = name, ""
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, args=(plan, run, step), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, told: tuple[int, dict[str, float]] | None) -> None:
        try:
            self._waiting.put_nowait(told)
        except queue.Full:
            self.failure = _("it does not keep up")

    def end(self) -> None:
        """Let it send the rest."""
        self.put(None)
        self._thread.join(CLOSING_S)
        if self._thread.is_alive() and not self.failure:
            self.failure = _("it does not end")

    def _work(self, plan: FinetunePlan, run: Run, step: int) -> None:
        try:
            tracker: Tracker = plugins.find("tracker", self.name)(plan, run, step)
            while told := self._waiting.get():
                tracker.log(*told)
            tracker.close()
        except (Exception, SystemExit) as error:  # whatever a tracker meets, the training goes on
            blamed = plugins.blame(error)
            text = " ".join(str(error).split())
            self.failure = blamed.message if blamed else f"{type(error).__name__}: {text}"


class TensorBoard:
    """Files for `tensorboard --logdir RUN/tensorboard`; what was written past `step` before is marked as void."""

    def __init__(self, plan: FinetunePlan, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = plan.tensorboard or run.path / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases: nothing is asked for, and of this machine nothing is sent but the plan and the metrics.

    A resumed run goes on under the same id; WANDB_MODE=offline keeps it in RUN/wandb for `wandb sync`.
    """

    def __init__(self, plan: FinetunePlan, run: Run, step: int) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off", disable_code=True, disable_git=True, disable_job_creation=True, silent=True,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=run.id, id=identity(run), resume="allow",
            dir=run.path, config=described(plan), settings=quiet,
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """SwanLab; SWANLAB_MODE=local or offline keeps it in RUN/swanlog, for `swanlab watch` or `swanlab sync`."""

    def __init__(self, plan: FinetunePlan, run: Run, step: int) -> None:
        import swanlab

        wanted = {"metadata_collect": False, "hardware_monitor": False, "requirements_collect": False,
                  "conda_collect": False, "collect_hardware": False, "collect_runtime": False,
                  "log_proxy_type": "none"}  # fmt: skip
        quiet = swanlab.Settings(**{name: value for name, value in wanted.items() if name in _settings(swanlab)})
        again: dict[str, Any] = {}
        if "resume" in inspect.signature(swanlab.init).parameters:  # since 0.7
            again = {"id": identity(run), "resume": "allow"}
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME") or PROJECT, experiment_name=run.id, config=described(plan),
            logdir=str(run.path / "swanlog"), settings=quiet, **again,
        )  # fmt: skip
        self._swanlab = swanlab

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._swanlab.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._swanlab.finish()


def _settings(swanlab: Any) -> Sequence[str]:
    """What this version of SwanLab can be told."""
    return list(swanlab.Settings.model_fields)


def described(plan: FinetunePlan) -> dict[str, Any]:
    """The plan as a tracker's config: what was decided, without the folders of this machine."""
    told = msgspec.to_builtins(plan, enc_hook=str)
    told["model"] = {name: told["model"][name] for name in ("id", "revision", "architecture", "parameters")}
    told["model"]["id"] = Path(told["model"]["id"]).name if plan.model.source == "local" else plan.model.id
    told["datasets"] = [
        {"name": Path(spec.name).name, "rows": spec.rows, "sha256": spec.sha256} for spec in plan.datasets
    ]
    told["plugins"] = [{"name": file.path.name, "sha256": file.sha256} for file in plan.plugins]
    for name in ("entry", "tensorboard", "why"):
        told.pop(name)
    return dict(told)


def identity(run: Run) -> str:
    """The run's id and where it is in a few characters: the same at each start of the run, and nobody else's."""
    return f"{run.id}-{hashlib.sha256(os.fsencode(run.path)).hexdigest()[:8]}"
