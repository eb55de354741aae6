"""Advantages and clipped losses of policy gradients: pure functions, a paper each; `finetune --stage ppo|grpo`."""

from collections.abc import Sequence
from typing import Literal

import torch

from toolbox.stages import Grpo

STD_FLOOR = 1e-4
"""What TRL adds to the standard deviation that advantages are divided by."""


def gae(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) of one answer's tokens, [tokens] each: arXiv:1506.02438, equation 16.

    `rewards` and `values` [tokens]: of each token, and of the state before it; after the last token nothing comes.
    """
    advantages, following, value_after = torch.zeros_like(values), torch.zeros(()), torch.zeros(())
    for place in reversed(range(len(values))):
        surprise = rewards[place] + gamma * value_after - values[place]
        following = surprise + gamma * lam * following
        advantages[place], value_after = following, values[place]
    return advantages, advantages + values


def whiten(values: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """`values` [any] with variance 1, and mean 0 or, without `shift_mean`, their own."""
    if len(values) < 2:
        return values - values.mean() if shift_mean else values
    mean = values.mean()
    whitened = (values - mean) * torch.rsqrt(values.var() + 1e-8)
    return whitened if shift_mean else whitened + mean


def grouped(rewards: torch.Tensor, scale: Literal["group", "batch", "none"]) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, standard deviations) of answers in groups, [groups, answers] each: arXiv:2402.03300, section 4.1.2.

    `scale` says which standard deviation divides them: the group's, the batch's (arXiv:2508.08221), or none
    (arXiv:2503.20783). A reward that is NaN counts nowhere, and its advantage is 0.
    """
    mean = rewards.nanmean(1, keepdim=True)
    std = _nanstd(rewards, 1) if scale != "batch" else _nanstd(rewards.reshape(1, -1), 1)
    advantages = rewards - mean
    if scale != "none":
        advantages = advantages / (std + STD_FLOOR)
    return advantages.nan_to_num(0.0), std.expand_as(rewards)


def _nanstd(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Bessel's standard deviation along `dim`, which is kept; 0 where fewer than two are numbers."""
    count = (~values.isnan()).sum(dim, keepdim=True)
    squares = ((values - values.nanmean(dim, keepdim=True)) ** 2).nansum(dim, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def clipped(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The loss of each token, [tokens]: arXiv:1707.06347, equation 7; `low` and `high` apart: arXiv:2503.14476."""
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def is_clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(below, above): where the clipping takes the gradient away, [tokens] each, as 0 or 1."""
    below, above = (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    return below.float(), above.float()


def clipped_value(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float) -> torch.Tensor:
    """The value head's loss of each token, [tokens]: half the larger square, of the value and of the clipped one."""
    near = torch.clamp(values, old - cliprange, old + cliprange)
    return 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)


def kl(logps: torch.Tensor, reference: torch.Tensor, estimator: Literal["k1", "k3"]) -> torch.Tensor:
    """An estimate of KL(policy ‖ reference) by each token drawn from the policy, [tokens].

    k1: log π/π_ref; k3: never below zero, and of less variance (J. Schulman, "Approximating KL divergence", 2020;
    arXiv:2402.03300, equation 4).
    """
    log_ratio = logps - reference
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


def adapted(coefficient: float, measured: float, target: float, answers: int, horizon: float) -> float:
    """The KL coefficient of the next step: arXiv:1909.08593, section 2.2."""
    error = min(max(measured / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * answers / horizon)


def log_ratios(
    logps: torch.Tensor, old: torch.Tensor, lengths: Sequence[int], level: Literal["token", "sequence"]
) -> torch.Tensor:
    """log π/π_old of each token, [tokens]; for sequences, the mean of its answer (arXiv:2507.18071, equation 7)."""
    ratios = logps - old
    if level == "token":
        return ratios
    return torch.cat([part.mean().expand(len(part)) for part in ratios.split(list(lengths))])


def weights(options: Grpo, counted: Sequence[bool], lengths: Sequence[int], rows: int, tokens: int) -> torch.Tensor:
    """What each token counts in the effective batch's loss, [tokens], by `options.loss_type`.

    `counted` and `lengths`: of the micro-batch's answers; `rows` and `tokens`: of the whole effective batch.
    grpo: the mean over answers of their means (arXiv:2402.03300, equation 3). dapo and bnpo: the mean over tokens
    (arXiv:2503.14476, equation 8); TRL's bnpo takes it over a micro-batch, so that the division of the batch would
    matter. dr_grpo: over the longest answers there could be (arXiv:2503.20783).
    """
    share = {
        "grpo": [1 / (length * rows) for length in lengths],
        "dr_grpo": [1 / (options.max_completion_length * rows)] * len(lengths),
    }.get(options.loss_type, [1 / max(1, tokens)] * len(lengths))
    return torch.tensor([
        one if counts else 0.0
        for one, counts, length in zip(share, counted, lengths, strict=True)
        for _token in range(length)
    ])  # fmt: skip
