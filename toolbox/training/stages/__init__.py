"""What each stage of training differs in, a small module each; the loop is one for all. `finetune --stage NAME`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
class Stage:
    """A stage for one training: what its functions know of the plan is in them."""

    loss: Callable[[Forward, Sequence[Any], Totals], Outcome]
    """A micro-batch's share of the effective batch's mean loss, and figures of its rows."""
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
    export: Callable[["PreTrainedModel", Run], dict[str, str]] = _no_more
    """Completes what the tuner has exported; returns its part of the result."""


def stage_for(plan: FinetunePlan) -> Stage:
    """The stage of a plan, made by `make` in the module that `plugins.BUILT_IN` names."""
    stage: Stage = plugins.find("stage", plan.stage)(plan)
    return stage
