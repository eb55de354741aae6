"""CPO: prefer the chosen answer, and learn it, without a reference. `finetune --stage cpo`."""

from collections.abc import Sequence

import torch

from toolbox.plan import FinetunePlan
from toolbox.stages import Cpo
from toolbox.training.stages import Stage, Totals, losses, pairs
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward, Outcome


def make(plan: FinetunePlan) -> Stage:
    options = plan.options if isinstance(plan.options, Cpo) else Cpo()

    def loss(forward: Forward, items: Sequence[Pair], totals: Totals) -> Outcome:
        """The mean over pairs of the preference loss, and over chosen label tokens of the cross-entropy."""
        tokens = forward.token_logps(pairs.sides(items))
        reduce = torch.mean if options.loss_type == "ipo" else torch.sum
        chosen, rejected = torch.stack([reduce(answer) for answer in tokens]).chunk(2)
        likelihood = torch.cat(tokens[: len(items)]).sum() / totals.label_tokens
        value = losses.cpo(chosen, rejected, options).sum() / totals.rows - options.cpo_alpha * likelihood
        return Outcome(value, pairs.preferred(options.beta * chosen, options.beta * rejected))

    return Stage(loss, encode=pairs.encode, item=Pair)
