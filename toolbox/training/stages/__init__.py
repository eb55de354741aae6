"""What each stage of training differs in, a small module each; the loop is one for all. `finetune --stage NAME`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from toolbox import plugins
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.training import batches, rows
from toolbox.training.rows import Encoded, Item, Sample
from toolbox.training.step import Forward, Outcome
from toolbox.training.store import Items

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Totals:
    """What a loss has to know of the whole effective batch, so that its division into micro-batches is no matter."""

    rows: int
    label_tokens: int
    """Of the first sequence of each item: the answer that is learnt from."""
    kl: torch.Tensor | None = None
    """KTO's reference point."""


def count(forward: Forward, micro_batches: Sequence[Sequence[Item]]) -> Totals:
    """The rows and the label tokens of an effective batch."""
    items = [item for micro_batch in micro_batches for item in micro_batch]
    return Totals(len(items), batches.label_tokens([item.sequences[0] for item in items]))


def _nothing(forward: Forward, items: Items, run: Run, reporter: Reporter) -> None:
    """There is nothing to prepare."""


def _no_more(model: "PreTrainedModel", run: Run) -> dict[str, str]:
    """The tuner's result is all there is."""
    return {}


@dataclass(frozen=True)
class Experience:
    """What a step learns from.

    `updates`: the micro-batches of each of its optimizer steps, in their order. `figures`: of all of it, for the
    metrics.
    """

    updates: Sequence[Sequence[Sequence[Item]]]
    figures: Mapping[str, float] = field(default_factory=dict)


def _as_they_are(
    forward: Forward, micro_batches: Sequence[Sequence[Item]], step: int, heed_stop: Callable[[], None]
) -> Experience:
    """A step learns from its rows, once."""
    return Experience([micro_batches])


@dataclass(frozen=True)
class Stage:
    """A stage for one training: what its functions know of the plan is in them."""

    loss: Callable[[Forward, Sequence[Any], Totals], Outcome]
    """A micro-batch's share of the effective batch's mean loss, and figures of its rows."""
    as_prompts: bool = False
    """Whether rows come without their last answers, and with all their other columns."""
    encode: Callable[..., Encoded] = rows.encode
    """(data set's name, rows, tokenizer, max_length) to items."""
    item: type[Any] = Sample
    """What `encode` makes of a row."""
    weighed_by: Literal["label_tokens", "rows"] = "rows"
    """What a mean over several steps weighs each of them by."""
    totals: Callable[[Forward, Sequence[Sequence[Any]]], Totals] = count
    extend: Callable[["PreTrainedModel"], None] = lambda model: None
    """Puts further weights, to be trained and kept beside the tuner's, into the model: a module named `score`."""
    prepare: Callable[[Forward, Items, Run, Reporter], None] = _nothing
    """Done once, before the first step and before a checkpoint is read, with the model as it comes and all items that
    the steps will see or that are held out."""
    experience: Callable[[Forward, Sequence[Sequence[Any]], int, Callable[[], None]], Experience] = _as_they_are
    """What a step learns from, made of its rows in micro-batches before it: a function of the model, the rows and the
    step's number (from 0). The last argument raises Interrupted where a stop was asked for."""
    updates: int = 1
    """Optimizer steps that a step makes, where its rows suffice."""
    longer_by: int = 0
    """Tokens that an experience has more than its row."""
    measure: Callable[[Forward, Sequence[Any]], dict[str, float]] | None = None
    """Figures of held-out rows, where a loss of theirs says nothing."""
    kept: dict[str, float] = field(default_factory=dict)
    """What the stage remembers from step to step; checkpoints keep it."""
    exporting: Callable[["PreTrainedModel"], AbstractContextManager[object]] = nullcontext
    """Takes out of the model what is only for the training, while the result is written."""
    export: Callable[["PreTrainedModel", Run], dict[str, str]] = _no_more
    """Completes what the tuner has exported; returns its part of the result."""


def stage_for(plan: FinetunePlan) -> Stage:
    """The stage of a plan, made by `make` in the module that `plugins.BUILT_IN` names."""
    stage: Stage = plugins.find("stage", plan.stage)(plan)
    return stage
