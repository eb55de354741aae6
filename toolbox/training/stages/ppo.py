"""PPO: a value head tells what was to be expected of an answer (arXiv:1707.06347; for language models 1909.08593).

`finetune --stage ppo --reward-model RUN`.
"""

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from msgspec.structs import replace

from toolbox.plan import FinetunePlan
from toolbox.stages import Ppo
from toolbox.training.stages import Experience, Stage, Totals, policy, rollouts, scoring
from toolbox.training.stages.frozen import Frozen
from toolbox.training.stages.rollouts import Episode, HeedStop, Question, Rollouts, joined
from toolbox.training.step import Forward, Outcome

KL_COEF = "kl_coef"
"""What is remembered from step to step."""


def make(plan: FinetunePlan) -> Stage:
    ppo = Proximal(plan, plan.options if isinstance(plan.options, Ppo) else Ppo())
    updates = ppo.options.num_ppo_epochs * ppo.options.num_mini_batches
    return ppo.rollouts.stage(ppo.loss, ppo.totals, ppo.experience, updates, scoring.extend, ppo.kept, scoring.left_out)


class Proximal:
    """The functions of the stage for one plan."""

    def __init__(self, plan: FinetunePlan, options: Ppo) -> None:
        self.options, self.rollouts = options, Rollouts(plan, options)
        self.kept = {KL_COEF: options.kl_coef}
        self._frozen, self._seed = Frozen(plan), plan.seed

    def experience(
        self, forward: Forward, micro_batches: Sequence[Sequence[Question]], step: int, heed_stop: HeedStop
    ) -> Experience:
        """Answers with their advantages and returns, learnt from `num_ppo_epochs` times in mini-batches."""
        questions = [question for questions in micro_batches for question in questions]
        episodes = self.rollouts.answers(forward, questions, step, heed_stop)
        scores, figures = self.rollouts.rewards(episodes)
        sizes = [episode.size for episode in episodes]
        epochs = [self._mini_batches(sizes, step, epoch) for epoch in range(self.options.num_ppo_epochs)]
        first = [places for mini_batch in epochs[0] for places in mini_batch]
        known = self._looked_at(forward, [[episodes[place] for place in places] for places in first])
        in_place = dict(zip(chain(*first), chain(*known), strict=True))
        episodes = [in_place[place] for place in range(len(episodes))]
        learnt, told = judged(episodes, scores.nan_to_num(0.0), self.options, self.kept[KL_COEF])
        self._adapt(told, len(learnt))
        updates = [[[learnt[i] for i in places] for places in mini_batch] for epoch in epochs for mini_batch in epoch]
        return Experience(updates, figures | told)

    def _mini_batches(self, sizes: Sequence[int], step: int, epoch: int) -> list[list[list[int]]]:
        """The places of episodes in each mini-batch's micro-batches: shuffled anew for each epoch."""
        order, count = list(range(len(sizes))), min(self.options.num_mini_batches, len(sizes))
        random.Random(f"{self._seed}/{step}/{epoch}").shuffle(order)
        parts = [sorted(order[begin::count], key=lambda place: sizes[place]) for begin in range(count)]
        return [self.rollouts.divided(part) for part in parts]

    @torch.no_grad()
    def _looked_at(self, forward: Forward, micro_batches: list[list[Episode]]) -> list[list[Episode]]:
        """With log-probabilities and values before the first update, and the reference's log-probabilities.

        They are computed as the loss does it, in the first updates' micro-batches: so the first ratio is exactly 1.
        """
        made = []
        for episodes in micro_batches:
            logps, values, _entropies = self._seen(forward, episodes)
            lengths = [episode.length for episode in episodes]
            parts = zip(episodes, logps.split(lengths), values.split(lengths), strict=True)
            made.append([replace(episode, logps=logp, values=value) for episode, logp, value in parts])
        if not self.options.kl_coef:
            return made
        with self._frozen.forward(forward) as reference:
            return rollouts.noted(reference, made, "reference", self.options.temperature)

    def _seen(self, forward: Forward, episodes: Sequence[Episode]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-probabilities, values, entropies) of the answers' tokens, [tokens] each."""
        head: Any = scoring.head_of(forward.model)
        logits, targets, hidden = forward.logits_and_hidden([episode.sample for episode in episodes])
        logps, entropies = rollouts.token_logps(logits, targets, self.options.temperature)
        return logps, head(hidden)[:, 0], entropies

    def _adapt(self, told: dict[str, float], episodes: int) -> None:
        """Bring the KL coefficient nearer to what gives the wanted KL, where one is wanted."""
        options = self.options
        if options.kl_coef and options.kl_target:
            measured, horizon = told["objective/kl"], options.kl_horizon
            self.kept[KL_COEF] = policy.adapted(self.kept[KL_COEF], measured, options.kl_target, episodes, horizon)

    def totals(self, forward: Forward, micro_batches: Sequence[Sequence[Episode]]) -> Totals:
        episodes = [episode for episodes in micro_batches for episode in episodes]
        return Totals(len(episodes), sum(episode.length for episode in episodes))

    def loss(self, forward: Forward, episodes: Sequence[Episode], totals: Totals) -> Outcome:
        """arXiv:1707.06347, equation 9, without the entropy: means over the mini-batch's tokens."""
        options = self.options
        logps, values, entropies = self._seen(forward, episodes)
        old, advantages, old_values, returns = (
            joined(episodes, name, like=logps) for name in ("logps", "advantages", "values", "returns")
        )
        log_ratio = logps - old
        gain = policy.clipped(log_ratio.exp(), advantages, options.cliprange, options.cliprange)
        valued = policy.clipped_value(values, old_values, returns, options.cliprange_value)
        below, above = policy.is_clipped(log_ratio.exp(), advantages, options.cliprange, options.cliprange)
        figures = {
            "loss/policy_avg": gain,
            "loss/value_avg": valued,
            "clip_ratio/region_mean": below + above,
            "policy/approxkl_avg": 0.5 * log_ratio**2,
            "entropy": entropies,
        }
        return Outcome((gain + options.vf_coef * valued).sum() / totals.label_tokens, figures)


def judged(
    episodes: Sequence[Episode], scores: torch.Tensor, options: Ppo, kl_coef: float
) -> tuple[list[Episode], dict[str, float]]:
    """The episodes with advantages, whitened over all of them, and returns; and figures under TRL's names.

    `scores` [episodes]. Each token's reward is the KL to the reference, weighed by -kl_coef; the last one's has the
    score too (arXiv:1909.08593, equation 2).
    """
    divergence, rewards = [], []
    for episode, score in zip(episodes, scores.tolist(), strict=True):
        logps: Any = episode.logps
        kl = torch.zeros_like(logps)
        if episode.reference is not None:
            kl = policy.kl(logps, episode.reference, options.kl_estimator)
        reward = -kl_coef * kl
        reward[-1] += score - (0.0 if episode.ended else options.missing_eos_penalty)
        divergence.append(kl)
        rewards.append(reward)
    lengths, figures = [episode.length for episode in episodes], {}
    if options.kl_coef:
        figures = {
            "kl": float(torch.cat(divergence).mean()),
            "objective/kl": float(torch.stack([kl.sum() for kl in divergence]).mean()),
            "kl_coef": kl_coef,
        }
    figures["objective/rlhf_reward"] = float(torch.stack([reward.sum() for reward in rewards]).mean())
    if options.whiten_rewards:
        rewards = list(policy.whiten(torch.cat(rewards), shift_mean=False).split(lengths))
    made = [
        policy.gae(reward, episode.values, options.gamma, options.lam)  # type: ignore[arg-type]
        for episode, reward in zip(episodes, rewards, strict=True)
    ]
    advantages = policy.whiten(torch.cat([advantage for advantage, _returns in made])).split(lengths)
    parts = zip(episodes, advantages, made, strict=True)
    return [replace(episode, advantages=part, returns=returns) for episode, part, (_raw, returns) in parts], figures
