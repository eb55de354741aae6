"""GRPO: answers to a question are better or worse than its others, so that no value is learnt (arXiv:2402.03300).

`finetune --stage grpo --reward NAME`.
"""

from collections.abc import Sequence

import msgspec
import torch

from toolbox.plan import FinetunePlan
from toolbox.stages import Grpo
from toolbox.training.stages import Experience, Stage, Totals, policy, rollouts
from toolbox.training.stages.frozen import Frozen
from toolbox.training.stages.rollouts import Episode, HeedStop, Question, Rollouts, joined
from toolbox.training.step import Forward, Outcome

CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean")
ALIKE = 1e-8
"""Rewards with less of a standard deviation are equal."""


def make(plan: FinetunePlan) -> Stage:
    grpo = GroupRelative(plan, plan.options if isinstance(plan.options, Grpo) else Grpo())
    return grpo.rollouts.stage(grpo.loss, grpo.totals, grpo.experience, grpo.options.num_iterations)


class GroupRelative:
    """The functions of the stage for one plan."""

    def __init__(self, plan: FinetunePlan, options: Grpo) -> None:
        self.options, self.rollouts = options, Rollouts(plan, options)
        self._frozen = Frozen(plan)

    def experience(
        self, forward: Forward, micro_batches: Sequence[Sequence[Question]], step: int, heed_stop: HeedStop
    ) -> Experience:
        """Groups of answers with their advantages, learnt from `num_iterations` times."""
        questions = [question for questions in micro_batches for question in questions]
        episodes = self.rollouts.answers(forward, questions, step, heed_stop, self.options.num_generations)
        rewards, figures = self.rollouts.rewards(episodes)
        advantages, std = policy.grouped(rewards.view(len(questions), -1), self.options.scale_rewards)
        figures |= {
            "reward_std": float(std.mean()),
            "frac_reward_zero_std": float((std.mean(1) < ALIKE).double().mean()),
        }
        learnt = [
            msgspec.structs.replace(episode, advantages=advantage.expand(episode.length))
            for episode, advantage in zip(episodes, advantages.flatten().float(), strict=True)
        ]
        made = self._with_logps(forward, self.rollouts.divided(learnt))
        return Experience([made] * self.options.num_iterations, figures)

    def _with_logps(self, forward: Forward, micro_batches: list[list[Episode]]) -> list[list[Episode]]:
        """With the log-probabilities before the first update, and by the reference, where the loss needs them."""
        options = self.options
        if options.num_iterations > 1:
            micro_batches = rollouts.noted(forward, micro_batches, "logps", options.temperature)
        if options.beta:
            with self._frozen.forward(forward) as reference:
                micro_batches = rollouts.noted(reference, micro_batches, "reference", options.temperature)
        return micro_batches

    def totals(self, forward: Forward, micro_batches: Sequence[Sequence[Episode]]) -> Totals:
        """The answers, and the tokens of those that count."""
        episodes = [episode for episodes in micro_batches for episode in episodes]
        return Totals(len(episodes), sum(episode.length for episode in episodes if self._counts(episode)))

    def _counts(self, episode: Episode) -> bool:
        return episode.ended or not self.options.mask_truncated_completions

    def loss(self, forward: Forward, episodes: Sequence[Episode], totals: Totals) -> Outcome:
        """Equation 3, with its variants."""
        options = self.options
        high = options.epsilon_high or options.epsilon
        logits, targets = forward.logits([episode.sample for episode in episodes])
        logps, entropies = rollouts.token_logps(logits, targets, options.temperature)
        lengths, counted = [episode.length for episode in episodes], [self._counts(episode) for episode in episodes]
        old = logps.detach() if options.num_iterations == 1 else joined(episodes, "logps", like=logps)
        advantages = joined(episodes, "advantages", like=logps)
        ratio = policy.log_ratios(logps, old, lengths, options.importance_sampling_level).exp()
        losses = policy.clipped(ratio, advantages, options.epsilon, high)
        figures = dict(zip(CLIPPED, policy.is_clipped(ratio, advantages, options.epsilon, high), strict=True))
        figures |= {"clip_ratio/region_mean": sum(figures.values(), torch.zeros_like(ratio)), "entropy": entropies}
        if options.beta:
            kl = policy.kl(logps, joined(episodes, "reference", like=logps), "k3")
            figures["kl"] = kl * ratio if options.use_bias_correction_kl else kl
            losses = losses + options.beta * figures["kl"]
        weights = policy.weights(options, counted, lengths, totals.rows, totals.label_tokens).to(losses.device)
        return Outcome((losses * weights).sum(), {name: value[weights > 0] for name, value in figures.items()})
