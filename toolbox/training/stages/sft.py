"""Supervised fine-tuning: the likelihood of the answers. `finetune --stage sft`."""

from collections.abc import Sequence

from toolbox.plan import FinetunePlan
from toolbox.training.rows import Sample
from toolbox.training.stages import Stage, Totals
from toolbox.training.step import Forward, Outcome


def make(plan: FinetunePlan) -> Stage:
    return Stage(loss, weighed_by="label_tokens")


def loss(forward: Forward, samples: Sequence[Sample], totals: Totals) -> Outcome:
    """The mean cross-entropy over the effective batch's label tokens."""
    return Outcome(forward.loss_sum(samples) / totals.label_tokens)
