"""Supervised fine-tuning: the likelihood of the answers. `finetune --stage sft`."""

from collections.abc import Sequence

from toolbox.plan import FinetunePlan
from toolbox.stages import Sft
from toolbox.training.rows import Sample
from toolbox.training.stages import Stage, Totals, losses
from toolbox.training.step import Forward, Outcome


def make(plan: FinetunePlan) -> Stage:
    loss_type = plan.options.loss_type if isinstance(plan.options, Sft) else Sft().loss_type

    def own_loss(forward: Forward, samples: Sequence[Sample], totals: Totals) -> Outcome:
        """The mean of a plugin's loss over the effective batch's label tokens."""
        logits, targets = forward.logits(samples)
        return Outcome(losses.sft(logits.float(), targets, loss_type).sum() / totals.label_tokens)

    return Stage(loss if loss_type == Sft().loss_type else own_loss, weighed_by="label_tokens")


def loss(forward: Forward, samples: Sequence[Sample], totals: Totals) -> Outcome:
    """The mean cross-entropy over the effective batch's label tokens."""
    return Outcome(forward.loss_sum(samples) / totals.label_tokens)
