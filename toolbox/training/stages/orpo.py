"""ORPO: learn the chosen answer while the odds against the rejected one grow, without a reference.

`finetune --stage orpo`.
"""

from collections.abc import Sequence

import torch

from toolbox.plan import FinetunePlan
from toolbox.stages import Orpo
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import Stage, Totals, losses, pairs
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward, Outcome


def make(plan: FinetunePlan) -> Stage:
    options = plan.options if isinstance(plan.options, Orpo) else Orpo()

    def loss(forward: Forward, items: Sequence[Pair], totals: Totals) -> Outcome:
        """The cross-entropy of the chosen conversations, prompts included as in the authors' code, and the penalty."""
        tokens = forward.token_logps([*(_whole(pair.chosen) for pair in items), *(pair.rejected for pair in items)])
        learnt, rejected = tokens[: len(items)], torch.stack([answer.mean() for answer in tokens[len(items) :]])
        chosen = torch.stack(
            [logps[_answer(pair.chosen, logps)].mean() for logps, pair in zip(learnt, items, strict=True)]
        )
        penalty = losses.orpo(chosen, rejected, options.beta).sum() / totals.rows
        value = penalty - torch.cat(learnt).sum() / totals.label_tokens
        return Outcome(value, pairs.preferred(options.beta * chosen, options.beta * rejected))

    return Stage(loss, encode=pairs.encode, item=Pair, totals=totals)


def totals(forward: Forward, micro_batches: Sequence[Sequence[Pair]]) -> Totals:
    """Every token of the chosen conversations but the first counts: it is learnt."""
    items = [pair for micro_batch in micro_batches for pair in micro_batch]
    return Totals(len(items), sum(pair.chosen.size - 1 for pair in items))


def _whole(sample: Sample) -> Sample:
    """`sample` with a label on every token."""
    return Sample(sample.dataset, sample.number, sample.input_ids, sample.input_ids)


def _answer(sample: Sample, like: torch.Tensor) -> torch.Tensor:
    """Which of the predicted tokens of `sample` are its answer's, [tokens - 1]."""
    return torch.tensor([label != IGNORED for label in sample.labels[1:]], device=like.device)
