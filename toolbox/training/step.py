"""One optimizer step: forward, backward, clip, update; whatever the stage, whose loss it takes."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from toolbox.errors import DivergedError
from toolbox.i18n import _
from toolbox.training import batches, logps, optim
from toolbox.training.rows import Item, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toolbox.training.stages import Stage

SHOWN_ROWS = 8


@dataclass(frozen=True)
class Forward:
    """What a stage computes its loss from: the model, the layout of its batches, and the arithmetic."""

    model: "PreTrainedModel"
    pad_token_id: int
    device: str
    dtype: str
    layout: batches.Layout = batches.pad

    @property
    def base(self) -> Any:
        """The transformers model within an adapter's."""
        return getattr(self.model, "get_base_model", lambda: self.model)()

    def loss_sum(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The cross-entropy over the label tokens of `samples`, summed, in float32."""
        return -logps.token_logps(*self.logits(samples)).sum()

    def token_logps(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, ...]:
        """The log-probabilities of each sample's label tokens, [labels] for each, in float32."""
        tokens = logps.token_logps(*self.logits(samples))
        return tokens.split([batches.label_tokens([sample]) for sample in samples])

    def logps(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The log-probability of each sample's label tokens together, [samples], in float32."""
        return torch.stack([tokens.sum() for tokens in self.token_logps(samples)])

    def logits(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [labels, vocabulary], targets [labels]) where a label is, and nowhere else."""
        batch = self.layout(samples, self.pad_token_id).to(self.device)
        return self._run(batch), batch.targets

    def last_hidden(self, samples: Sequence[Sample]) -> torch.Tensor:
        """What the language head sees at each sample's last token, [samples, hidden_size], in float32."""
        return self._run_seeing(batches.at_ends(self.layout(samples, self.pad_token_id)).to(self.device))[1]

    def logits_and_hidden(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits, targets) as `logits` gives them, and what the language head sees there, [labels, hidden_size]."""
        batch = self.layout(samples, self.pad_token_id).to(self.device)
        logits, hidden = self._run_seeing(batch)
        return logits, batch.targets, hidden

    def _run_seeing(self, batch: batches.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, what the language head sees in float32) where they are kept."""
        seen: list[torch.Tensor] = []
        head: Any = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self._run(batch)
        finally:
            hook.remove()
        return logits, (seen[0][0] if batch.kept is None else seen[0][batch.kept]).float()

    def _run(self, batch: batches.Batch) -> torch.Tensor:
        inputs = batch.inputs | {
            name: torch.zeros_like(batch.inputs["input_ids"]) for name in _kinds(type(self.base).forward)
        }
        with self.autocast():
            logits = self.model(**inputs, use_cache=False).logits
        # Not logits[0], whose gradient is a second tensor of that size, filled with zeros and copied into.
        return logits.flatten(0, 1) if batch.kept is None else logits[batch.kept]

    def autocast(self) -> AbstractContextManager[None]:
        """The adapter's float32 weights take part in the plan's dtype."""
        mixed = self.dtype != "float32"
        return torch.autocast(self.device.split(":")[0], getattr(torch, self.dtype) if mixed else None, enabled=mixed)


@cache
def _kinds(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments in which a model is told which tokens are text (0 is), which some ask for in every training."""
    return ("mm_token_type_ids",) if "mm_token_type_ids" in inspect.signature(forward).parameters else ()


@dataclass(frozen=True)
class Outcome:
    """What a stage made of a micro-batch.

    `loss`: its share of the effective batch's mean loss, a scalar with a gradient: the shares of all micro-batches add
    up to it. `figures`: values of single rows, [any number] each, to be averaged over the effective batch.
    """

    loss: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stepped:
    """An optimizer step that was made: the effective batch's mean loss, the gradients' norm before clipping, and the
    stage's figures, averaged."""

    loss: float
    grad_norm: float
    figures: dict[str, float]


class Stepper:
    """Makes optimizer steps; holds the state that must outlive a process: the optimizer's and the loss scaler's."""

    def __init__(
        self, forward: Forward, stage: "Stage", optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        self.forward, self.stage = forward, stage
        self._max_grad_norm = max_grad_norm
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(forward.device.split(":")[0], enabled=forward.dtype == "float16")
        self.changing = False
        """Whether weights are being changed: after an error then, they are of no step."""

    def step(self, micro_batches: Sequence[Sequence[Item]], number: int, rate: float) -> Stepped:
        """Make optimizer step `number`.

        The gradient is that of the mean over the effective batch, however it is divided.
        Raises DivergedError before any weight is changed.
        """
        totals = self.stage.totals(self.forward, micro_batches)
        outcomes = []
        for items in micro_batches:
            outcome = self.stage.loss(self.forward, items, totals)
            self.scaler.scale(outcome.loss).backward()  # type: ignore[no-untyped-call]
            outcomes.append(Outcome(outcome.loss.detach(), outcome.figures))
        values = torch.stack([outcome.loss for outcome in outcomes]).tolist()
        if bad := [items for items, value in zip(micro_batches, values, strict=True) if not math.isfinite(value)]:
            raise diverged(number, culprits(self.forward, self.stage, bad))
        grad_norm = self._clip()
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():
            raise diverged(number, [item for items in micro_batches for item in items])
        optim.set_rate(self.optimizer, rate)
        self.changing = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.changing = False
        self.optimizer.zero_grad(set_to_none=True)
        return Stepped(sum(values), grad_norm, means(outcomes))

    def _clip(self) -> float:
        self.scaler.unscale_(self.optimizer)
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return float(torch.nn.utils.clip_grad_norm_(trained, self._max_grad_norm))


def mean_step(made: Sequence[Stepped]) -> Stepped:
    """The means of several optimizer steps."""
    if len(made) == 1:
        return made[0]
    known = [{"loss": one.loss, "grad_norm": one.grad_norm} | one.figures for one in made]
    names = {name: None for one in known for name in one}
    figures = {name: fmean(one[name] for one in known if name in one) for name in names}
    return Stepped(figures.pop("loss"), figures.pop("grad_norm"), figures)


def means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of all micro-batches, averaged; one without any value is left out.

    Where the rewards of both sides are known, so is their margin.
    """
    names = {name: None for outcome in outcomes for name in outcome.figures}
    values = {name: torch.cat([outcome.figures[name].detach() for outcome in outcomes]) for name in names}
    found = {name: float(value.float().mean()) for name, value in values.items() if len(value)}
    if {"rewards/chosen", "rewards/rejected"} <= set(found):
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


def culprits(forward: Forward, stage: "Stage", micro_batches: Sequence[Sequence[Item]]) -> list[Item]:
    """Those of the rows whose loss is no finite number by themselves; all, where none is so alone."""
    rows = [item for items in micro_batches for item in items]
    with torch.no_grad():
        alone = [stage.loss(forward, [row], stage.totals(forward, [[row]])).loss for row in rows]
    return [row for row, loss in zip(rows, alone, strict=True) if not math.isfinite(float(loss))] or rows


def diverged(number: int, items: Sequence[Item]) -> DivergedError:
    rows = sorted({(item.dataset, item.number) for item in items})
    shown = ", ".join(f"{dataset}:{row}" for dataset, row in rows[:SHOWN_ROWS])
    shown += " …" if len(rows) > SHOWN_ROWS else ""
    return DivergedError(
        _("The loss is no finite number any more at step {step}; its rows: {rows}.").format(step=number, rows=shown),
        _("Look at these rows, or use a smaller --learning-rate; the weights before that step are kept."),
    )
