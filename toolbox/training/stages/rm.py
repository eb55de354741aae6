"""Reward model: a number for each answer, higher for the chosen one. `finetune --stage rm`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from toolbox.plan import FinetunePlan
from toolbox.stages import Rm
from toolbox.training.stages import Stage, Totals, losses, pairs, scoring
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward, Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toolbox.runs import Run


def make(plan: FinetunePlan) -> Stage:
    options = plan.options if isinstance(plan.options, Rm) else Rm()

    def loss(forward: Forward, items: Sequence[Pair], totals: Totals) -> Outcome:
        """The mean over the effective batch's pairs; rewards are the score at each answer's last token."""
        chosen, rejected = scores(forward, items)
        value = losses.reward(chosen, rejected, options).sum() / totals.rows
        return Outcome(value, pairs.preferred(chosen, rejected))

    def export(model: "PreTrainedModel", run: "Run") -> dict[str, str]:
        return scoring.export(model, run, plan)

    return Stage(loss, encode=pairs.encode, item=Pair, extend=scoring.extend, export=export)


def scores(forward: Forward, items: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """(chosen, rejected): the reward of each answer, [pairs] each."""
    head: Any = scoring.head_of(forward.model)
    chosen, rejected = head(forward.last_hidden(pairs.sides(items)))[:, 0].chunk(2)
    return chosen, rejected
