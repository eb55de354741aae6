"""Log-probabilities of given tokens, in pieces and in the logits' own memory; every stage of `finetune` reads them."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

PIECE = {"cpu": 1 << 21}
"""Logits handled at once in float32: on a CPU as many as its cache holds; elsewhere ELSEWHERE."""
ELSEWHERE = 1 << 25


class TokenLogps(torch.autograd.Function):
    """log softmax(logits) at `targets`: logits [tokens, vocabulary], targets [tokens] to [tokens] in float32.

    `cross_entropy(logits.float(), targets)` holds three copies in float32 of what is the largest tensor of a step.
    Here the backward pass writes the gradient over the logits, so they must have been made for this alone; autograd
    refuses where another operation has kept them.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sums, chosen = [], []
        for piece, wanted in _pieces(logits, targets):
            values = piece.float()
            chosen.append(values.gather(1, wanted[:, None])[:, 0])
            sums.append(_logsumexp(values, of_its_own=values.dtype != piece.dtype))
        total = torch.cat(sums)
        ctx.save_for_backward(logits, targets, total)
        return torch.cat(chosen) - total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """d logp / d logits = onehot(target) - softmax(logits)."""
        logits, targets, total = ctx.saved_tensors
        begin = 0
        for piece, wanted in _pieces(logits, targets):
            end = begin + len(wanted)
            values = piece.float().sub_(total[begin:end, None]).exp_().mul_(-gradient[begin:end, None])
            values.scatter_add_(1, wanted[:, None], gradient[begin:end, None])
            if values.dtype != piece.dtype:  # else they are the logits' own memory
                piece.copy_(values)
            begin = end
        return logits, None


def _logsumexp(values: torch.Tensor, of_its_own: bool) -> torch.Tensor:
    """log Σ exp over the last dimension, as torch's own, whose copy of `values` is spared where they may be changed."""
    highest = values.amax(-1, keepdim=True)
    shifted = values.sub_(highest) if of_its_own else values - highest
    return shifted.exp_().sum(-1).log_().add_(highest[:, 0])


def _pieces(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    """Views of `logits` with their targets."""
    rows = max(1, PIECE.get(logits.device.type, ELSEWHERE) // logits.shape[-1])
    return zip(logits.split(rows), targets.split(rows), strict=True)


def token_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`TokenLogps`, in float32 and with a gradient."""
    logps: torch.Tensor = TokenLogps.apply(logits, targets)  # type: ignore[no-untyped-call]
    return logps
