"""Plugins that look on while a model is trained, and may end it: `finetune --callback NAME`, or those of `--plugin`."""

from pathlib import Path
from typing import Any

from toolbox import plugins
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.plugins import Callback


class Callbacks:
    """All callbacks of a training, told in the order in which they were named."""

    def __init__(self, plan: FinetunePlan) -> None:
        """Raises InputError where a plugin gives something else than a Callback."""
        self._all: dict[str, Callback] = {}
        for name in plan.callbacks:
            self._all[name] = plugins.find("callback", name)(plan)
            if not isinstance(self._all[name], Callback):
                raise plugins.wrong("callback", name, _("it gives no {kind}").format(kind="toolbox.plugins.Callback"))

    def train_begins(self, model: Any, step: int, steps: int) -> None:
        for one in self._all.values():
            one.on_train_begin(model, step, steps)

    def step_ended(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether one asks to end the training here; all are told."""
        answers = [one.on_step_end(step, metrics) for one in self._all.values()]
        return any(answers)

    def evaluated(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether one asks to end the training here; all are told."""
        answers = [one.on_evaluate(step, metrics) for one in self._all.values()]
        return any(answers)

    def saved(self, step: int, folder: Path) -> None:
        for one in self._all.values():
            one.on_save(step, folder)

    def train_ended(self, step: int) -> None:
        for one in self._all.values():
            one.on_train_end(step)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {name: one.state_dict() for name, one in self._all.items()}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        for name, state in states.items():
            self._all[name].load_state_dict(state)
