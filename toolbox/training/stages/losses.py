"""Losses on log-probabilities: pure functions, a paper each; the stages of `finetune --stage dpo|kto|…` call them."""

import math
from typing import Any, Protocol

import msgspec
import torch
import torch.nn.functional as F

from toolbox import plugins
from toolbox.i18n import _
from toolbox.stages import Cpo, Dpo, Kto, Rm, Simpo


class Pairs(msgspec.Struct, frozen=True):
    """Log-probabilities of two answers to each of some prompts, summed over their tokens, [pairs] each."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    """Tokens of each answer, [pairs]."""
    rejected_tokens: torch.Tensor

    @property
    def won(self) -> torch.Tensor:
        """log π/π_ref of the chosen answers, [pairs]."""
        return self.chosen - self.ref_chosen

    @property
    def lost(self) -> torch.Tensor:
        """log π/π_ref of the rejected answers, [pairs]."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> torch.Tensor:
        return self.won - self.lost

    @property
    def margin_per_token(self) -> torch.Tensor:
        """The margin of the means over each answer's tokens, [pairs]."""
        return self.won / self.chosen_tokens - self.lost / self.rejected_tokens


def _smoothed(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of logistic regression where a share `smoothing` of the labels is flipped (cDPO, E. Mitchell)."""
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def sigmoid(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """DPO: arXiv:2305.18290, equation 7."""
    return _smoothed(options.beta * pairs.margin, options.label_smoothing)


def sigmoid_norm(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """DPO with means over tokens in place of sums: arXiv:2411.15124, section 5.1."""
    return _smoothed(options.beta * pairs.margin_per_token, options.label_smoothing)


def hinge(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """SLiC on DPO's margin: arXiv:2309.06657, equation 10."""
    return torch.relu(1 - options.beta * pairs.margin)


def ipo(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """IPO: arXiv:2310.12036, equation 17, on means over tokens, as its authors computed it."""
    return (pairs.margin_per_token - 1 / (2 * options.beta)) ** 2


def exo_pair(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """EXO for pairs: arXiv:2402.00856, equation 16; without smoothing it is infinite, so the paper's 1e-3 is taken."""
    flipped = options.label_smoothing or 1e-3
    logits = options.beta * pairs.margin
    won, lost = F.logsigmoid(logits), F.logsigmoid(-logits)
    return won.exp() * (won - math.log1p(-flipped)) + lost.exp() * (lost - math.log(flipped))


def nca_pair(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """NCA for pairs: arXiv:2402.05369, equation 13."""
    won, lost = options.beta * pairs.won, options.beta * pairs.lost
    return -F.logsigmoid(won) - 0.5 * F.logsigmoid(-won) - 0.5 * F.logsigmoid(-lost)


def robust(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """Robust DPO, unbiased under flipped labels: arXiv:2403.00409, equation 8."""
    flipped, logits = options.label_smoothing, options.beta * pairs.margin
    return (-(1 - flipped) * F.logsigmoid(logits) + flipped * F.logsigmoid(-logits)) / (1 - 2 * flipped)


def bco_pair(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """BCO for pairs: arXiv:2404.04656, without the shift of rewards."""
    return -F.logsigmoid(options.beta * pairs.won) - F.logsigmoid(-options.beta * pairs.lost)


def sppo_hard(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """SPPO with certain preferences: arXiv:2405.00675, equation 4.7."""
    aim = 0.5 / options.beta
    return (pairs.won - aim) ** 2 + (pairs.lost + aim) ** 2


def aot(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """AOT, by sorting the micro-batch's margins: arXiv:2406.05882, algorithm 1, paired."""
    policy = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return _smoothed(options.beta * (policy - reference), options.label_smoothing)


def aot_unpaired(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """AOT, by sorting each side's log-ratios: arXiv:2406.05882, algorithm 1, unpaired."""
    return _smoothed(options.beta * (pairs.won.sort().values - pairs.lost.sort().values), options.label_smoothing)


def apo_zero(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """APO, for answers better than the model's own: arXiv:2408.06266, equation 7."""
    return 1 - torch.sigmoid(options.beta * pairs.won) + torch.sigmoid(options.beta * pairs.lost)


def apo_down(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """APO, for answers worse than the model's own: arXiv:2408.06266, equation 8."""
    return torch.sigmoid(options.beta * pairs.won) + 1 - torch.sigmoid(options.beta * pairs.margin)


def discopop(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """DiscoPOP, found by search: arXiv:2406.08414, equation 5."""
    logits = options.beta * pairs.margin
    share = torch.sigmoid(logits / options.discopop_tau)
    return -F.logsigmoid(logits) * (1 - share) + torch.exp(-logits) * share


class PairLoss(Protocol):
    """What a loss named `dpo.NAME` is, built in or a plugin's."""

    def __call__(self, pairs: Pairs, options: Dpo) -> torch.Tensor:
        """The loss of each pair, [pairs]."""


class TokenLoss(Protocol):
    """What a loss named `sft.NAME` is, built in or a plugin's."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each token, [labels], of `logits` [labels, vocabulary] in float32 and `targets` [labels]."""


def dpo(pairs: Pairs, options: Dpo) -> torch.Tensor:
    """DPO's loss of each pair, [pairs], by `options.loss_type`. Raises InputError where a plugin's gives another."""
    name = f"dpo.{options.loss_type}"
    loss: PairLoss = plugins.find("loss", name)
    return _checked(name, loss(pairs, options), pairs.chosen)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each token, [labels]."""
    return F.cross_entropy(logits, targets, reduction="none")


def sft(logits: torch.Tensor, targets: torch.Tensor, loss_type: str) -> torch.Tensor:
    """The loss of each token, [labels]. Raises InputError where a plugin's gives another."""
    loss: TokenLoss = plugins.find("loss", f"sft.{loss_type}")
    return _checked(f"sft.{loss_type}", loss(logits, targets), targets)


def _checked(name: str, values: Any, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(values, torch.Tensor) or values.shape != like.shape:
        given = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise plugins.wrong(
            "loss", name, _("it gives {given} and has to give {wanted}").format(given=given, wanted=list(like.shape))
        )
    return values


def kto(log_ratios: torch.Tensor, wanted: torch.Tensor, kl: torch.Tensor, options: Kto) -> torch.Tensor:
    """KTO's loss of each answer, [rows]: arXiv:2402.01306, equations 7 and 8; or APO-zero (arXiv:2408.06266).

    `log_ratios` [rows]: log π/π_ref; `wanted` [rows]: bool; `kl`: the reference point, a scalar without gradient.
    """
    shift = kl if options.loss_type == "kto" else 0.0
    value = torch.where(wanted, log_ratios - shift, shift - log_ratios)
    weight = torch.where(wanted, options.desirable_weight, options.undesirable_weight)
    return weight * (1 - torch.sigmoid(options.beta * value))


def orpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """ORPO's penalty of each pair, [pairs], without its likelihood term: arXiv:2403.07691, equations 4 and 7.

    `chosen` and `rejected` [pairs]: mean log-probabilities a token.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -beta * F.logsigmoid(log_odds)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, accurate near zero and far from it (M. Mächler 2012)."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def simpo(chosen: torch.Tensor, rejected: torch.Tensor, options: Simpo) -> torch.Tensor:
    """SimPO's loss of each pair, [pairs]: arXiv:2405.14734, equation 6.

    `chosen` and `rejected` [pairs]: mean log-probabilities a token.
    """
    return _smoothed(options.beta * (chosen - rejected) - options.simpo_gamma, options.label_smoothing)


def cpo(chosen: torch.Tensor, rejected: torch.Tensor, options: Cpo) -> torch.Tensor:
    """CPO's preference loss of each pair, [pairs]: arXiv:2401.08417, equation 3, with SLiC's and IPO's forms.

    `chosen` and `rejected` [pairs]: summed log-probabilities; mean ones a token for `ipo`.
    """
    margin = chosen - rejected
    if options.loss_type == "hinge":
        return torch.relu(1 - options.beta * margin)
    if options.loss_type == "ipo":
        return (margin - 1 / (2 * options.beta)) ** 2
    return _smoothed(options.beta * margin, options.label_smoothing)


def reward(chosen: torch.Tensor, rejected: torch.Tensor, options: Rm) -> torch.Tensor:
    """The Bradley-Terry loss of each pair of rewards, [pairs]: arXiv:2203.02155, equation 1."""
    centred = options.center_rewards_coefficient * (chosen + rejected) ** 2
    return centred - F.logsigmoid(chosen - rejected)
