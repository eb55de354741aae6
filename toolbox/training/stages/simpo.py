"""SimPO: prefer the chosen answer by its mean log-probability a token; no reference. `finetune --stage simpo`."""

from collections.abc import Sequence

from toolbox.plan import FinetunePlan
from toolbox.stages import Simpo
from toolbox.training.stages import Stage, Totals, losses, pairs
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward, Outcome


def make(plan: FinetunePlan) -> Stage:
    options = plan.options if isinstance(plan.options, Simpo) else Simpo()

    def loss(forward: Forward, items: Sequence[Pair], totals: Totals) -> Outcome:
        """The mean over the effective batch's pairs."""
        chosen, rejected = pairs.mean_logps(forward, items)
        value = losses.simpo(chosen, rejected, options).sum() / totals.rows
        return Outcome(value, pairs.preferred(options.beta * chosen, options.beta * rejected))

    return Stage(loss, encode=pairs.encode, item=Pair)
