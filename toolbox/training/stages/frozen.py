"""The model as it was before the training, to judge new answers by: the reference of `finetune --stage ppo|grpo`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from toolbox import loading, methods
from toolbox.plan import FinetunePlan
from toolbox.training.step import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Frozen:
    """The reference of one plan: the policy with its adapter switched off, so that no second model is loaded.

    Where the base itself is changed (all weights; PiSSA and OLoRA take their beginning off it), it is a second copy in
    the plan's dtype, loaded when it is first asked for.
    """

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan
        self._copy: PreTrainedModel | None = None

    @contextmanager
    def forward(self, policy: Forward) -> Iterator[Forward]:
        """`policy`'s Forward for the reference, while entered."""
        if not methods.changes_base(self._plan):
            with policy.model.disable_adapter():  # type: ignore[operator]
                yield policy
            return
        if self._copy is None:
            plan = self._plan
            quantization = plan.BitsAndBytesConfig if plan.quantization != "none" else None
            self._copy = loading.base_model(plan.model.path, plan.dtype, policy.device, quantization)
            self._copy.set_attn_implementation(policy.base.config._attn_implementation)
            self._copy.eval().requires_grad_(False)
        yield replace(policy, model=self._copy)
