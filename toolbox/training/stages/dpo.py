"""DPO and its variants: prefer the chosen answer, and stay near the reference. `finetune --stage dpo`."""

from collections.abc import Sequence

import torch

from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.stages import Dpo
from toolbox.training import batches
from toolbox.training.stages import Stage, Totals, losses, pairs
from toolbox.training.stages.pairs import Pair
from toolbox.training.stages.reference import Reference
from toolbox.training.step import Forward, Outcome
from toolbox.training.store import Items


def make(plan: FinetunePlan) -> Stage:
    """The reference is computed before the first step, but for `reference_free`."""
    options = plan.options if isinstance(plan.options, Dpo) else Dpo()
    reference = Reference(plan)

    def prepare(forward: Forward, items: Items, run: Run, reporter: Reporter) -> None:
        if not options.reference_free:
            reference.prepare(forward, items, pairs.sides, run, reporter)

    def loss(forward: Forward, items: Sequence[Pair], totals: Totals) -> Outcome:
        """The mean over the effective batch's pairs; rewards are beta log π/π_ref (arXiv:2305.18290, section 5)."""
        sides = pairs.sides(items)
        policy = forward.logps(sides)
        known = torch.zeros_like(policy) if options.reference_free else reference.logps(sides, like=policy)
        tokens = torch.tensor([batches.label_tokens([side]) for side in sides], device=policy.device)
        both = losses.Pairs(*policy.chunk(2), *known.chunk(2), *tokens.chunk(2))
        value = losses.dpo(both, options).sum() / totals.rows
        return Outcome(value, pairs.preferred(options.beta * both.won, options.beta * both.lost))

    return Stage(loss, encode=pairs.encode, item=Pair, prepare=prepare)
