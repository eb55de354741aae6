"""One optimizer step: forward, backward, clip, update; and the loss that it and the evaluation share."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from toolbox.errors import DivergedError
from toolbox.i18n import _
from toolbox.training import batches, optim
from toolbox.training.rows import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN_ROWS = 8


@dataclass(frozen=True)
class Forward:
    """How a loss is computed: the model, the layout of its batches, and the arithmetic."""

    model: "PreTrainedModel"
    pad_token_id: int
    device: str
    dtype: str
    layout: batches.Layout = batches.pad

    def loss_sum(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The cross-entropy over the label tokens of `samples`, summed, in float32."""
        logits, targets = self.logits(samples)
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def logits(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [labels, vocabulary], targets [labels]) where a label is, and nowhere else."""
        batch = self.layout(samples, self.pad_token_id).to(self.device)
        with self._autocast():
            logits = self.model(**batch.inputs, use_cache=False).logits
        return (logits[0] if batch.kept is None else logits[batch.kept]), batch.targets

    def _autocast(self) -> AbstractContextManager[None]:
        """The adapter's float32 weights take part in the plan's dtype."""
        mixed = self.dtype != "float32"
        return torch.autocast(self.device.split(":")[0], getattr(torch, self.dtype) if mixed else None, enabled=mixed)


class Stepper:
    """Makes optimizer steps; holds the state that must outlive a process: the optimizer's and the loss scaler's."""

    def __init__(self, forward: Forward, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.forward = forward
        self._max_grad_norm = max_grad_norm
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(forward.device.split(":")[0], enabled=forward.dtype == "float16")

    def step(self, micro_batches: Sequence[Sequence[Sample]], number: int, rate: float) -> tuple[float, float]:
        """(summed loss, norm of the gradients before clipping) of optimizer step `number`.

        The gradient is that of the mean over all label tokens of the effective batch, however it is divided.
        Raises DivergedError before any weight is changed.
        """
        labels = sum(batches.label_tokens(samples) for samples in micro_batches)
        losses = []
        for samples in micro_batches:
            loss = self.forward.loss_sum(samples)
            self.scaler.scale(loss / labels).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        values = torch.stack(losses).tolist()
        if bad := [samples for samples, value in zip(micro_batches, values, strict=True) if not math.isfinite(value)]:
            raise diverged(number, bad)
        grad_norm = self._clip()
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():
            raise diverged(number, micro_batches)
        optim.set_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return sum(values), grad_norm

    def _clip(self) -> float:
        self.scaler.unscale_(self.optimizer)
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return float(torch.nn.utils.clip_grad_norm_(trained, self._max_grad_norm))


def diverged(number: int, micro_batches: Sequence[Sequence[Sample]]) -> DivergedError:
    rows = [f"{sample.dataset}:{sample.number}" for samples in micro_batches for sample in samples]
    shown = ", ".join(rows[:SHOWN_ROWS]) + (" …" if len(rows) > SHOWN_ROWS else "")
    return DivergedError(
        _("The loss is no finite number any more at step {step}; its rows: {rows}.").format(step=number, rows=shown),
        _("Look at these rows, or use a smaller --learning-rate; the weights before that step are kept."),
    )
