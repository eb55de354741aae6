"""A server of our own for as long as an evaluation asks it: the gateway in a thread, on loopback, with a new key."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolbox import engines, serving
from toolbox.config import find_home
from toolbox.errors import EngineError, Interrupted, ToolboxError
from toolbox.i18n import _
from toolbox.models import ModelFacts
from toolbox.plan import EvaluatePlan, ServedAdapter, ServePlan
from toolbox.runs import Reporter, Run, Silent

LOOK_EVERY_S = 0.1


class _Told(Silent):
    """What the gateway's thread tells, and how it is told to end."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.stopping = False
        self.error: ToolboxError | None = None

    def ready(self, **facts: Any) -> None:
        self.facts = facts


@contextmanager
def serving_model(
    plan: EvaluatePlan, model: ModelFacts, adapter: Path | None, folder: Path, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """While inside, the model, with its adapter where there is one, answers: yields `url api_key model`.

    Its files lie in `folder`. However this process ends, the engine ends too. Raises EngineError where it can't be
    started, Interrupted when asked to stop before it answers.
    """
    told = _Told()
    served = _plan(plan, model, adapter)
    folder.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=_serve, args=(served, Run(folder), told), name="gateway")
    thread.start()
    try:
        while not told.facts:
            if not thread.is_alive():
                raise told.error or EngineError(_("The engine could not be started."))
            if reporter.stopping:
                raise Interrupted(_("Interrupted before everything was measured."), _("Go on with: runs resume"))
            time.sleep(LOOK_EVERY_S)
        yield told.facts
    finally:
        told.stopping = True
        thread.join()


def _serve(plan: ServePlan, run: Run, told: _Told) -> None:
    try:
        serving.run(plan, run, told)
    except ToolboxError as error:
        told.error = error


def _plan(plan: EvaluatePlan, model: ModelFacts, adapter: Path | None) -> ServePlan:
    engine, why = engines.choose("auto", plan.device.kind == "cuda", find_home(), quantization=model.quantization)
    python = engine.interpreter(find_home())
    if python is None:
        raise EngineError(_("The engine {name} is not installed.").format(name=engine.name))
    return ServePlan(
        entry="toolbox.serving:run", model=model, device=plan.device, name="base", engine=engine.name, engine_why=why,
        adapters=[ServedAdapter("tuned", adapter)] if adapter else [], python=python, port=0, dtype=plan.dtype,
    )  # fmt: skip
