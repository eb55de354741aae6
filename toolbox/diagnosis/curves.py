"""Rules on a training's curves: no number, diverged though finite, no gradient, no effect. All are statistics.

A loss is noisy, since each step sees other rows. Its noise is taken from the differences of successive steps, which a
trend hardly touches, by their median, which a jump hardly touches; what is called a rise or a standstill is one beyond
that noise. The evaluation loss is over the same rows each time, so two of its values compare without that noise.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, median

from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.traces import Traces
from toolbox.i18n import _, sentences

Curve = list[tuple[float, float]]
"""(step, value) points."""

REWARDED = ("ppo", "grpo")
"""Stages whose loss is not meant to fall: their reward is to rise."""
LIKELIHOOD = ("pt", "sft")
"""Stages whose loss is a token's mean cross-entropy."""
ROSE = math.log(1.5)
"""A rise by half of the loss is called divergence, if it is beyond the noise too."""
SIGMAS = 5.0
"""Standard errors; more than the usual 3, since the best level is the lowest of many windows."""
STILL = 1e-4
"""An evaluation loss that moved by less than this part of itself has not moved: no fourth digit is another."""
STILL_NOISY = 5e-3
"""The same for the training loss, with its noise at worst."""
MANY_STEPS = 30
"""From so many steps on the training loss alone tells a standstill."""
FEW_STEPS = 10
"""A training of fewer is a trial: that it changed little is no fault, unless it could not change anything."""
NO_ROUNDING = 1e-7
"""AdamW moves a weight by about the learning rate a step (arXiv:1412.6980, section 2.1). Where all steps together come
to less than this, no weight of usual size (1e-2 to 1) changes in float32, whose unit roundoff is 6e-8."""


def no_number(traces: Traces) -> Cause | None:
    """NaN or infinity: what came before tells whether the learning rate or the rows are to blame."""
    evidence = traces.ended_with("diverged")
    if not evidence:
        return None
    losses = traces.facts.curve("loss")
    ends = [_point(losses[0]), *map(_point, losses[-2:])] if len(losses) > 2 else [_point(point) for point in losses]
    rate = traces.training.get("learning_rate")
    rose = len(losses) >= 2 and losses[-1][1] > math.exp(ROSE) * min(value for _step, value in losses)
    if rose and rate:
        return Cause(
            kind="nan",
            message=_("The loss rose and then was no finite number any more: the learning rate is too high."),
            evidence=[*evidence, *ends, f"plan.yaml: learning_rate {rate:g}"],
            remedy=_("Take a tenth of the learning rate, or let --tune find one."),
            command=traces.once_more(learning_rate=_rounded(rate / 10)),
        )
    sixteen = traces.facts.plan.get("dtype") == "float16"
    told = _("In float16 numbers above 65504 overflow: take bfloat16 or float32 (in a recipe: dtype).")
    return Cause(
        kind="nan",
        message=_("The loss was no finite number, though it had not risen before: rows or weights bring it about."),
        evidence=[*evidence, *ends],
        remedy=sentences(
            _("Look at the rows that the message names; if there is nothing odd, check the model's files."),
            told if sixteen else "",
        ),
        command=traces.command("data", "check", *_names(traces)),
    )


def diverged(traces: Traces) -> Cause | None:
    """The loss went up and stayed up, though it is finite."""
    if traces.facts.plan.get("stage") in REWARDED or traces.ended_with("diverged"):
        return None
    losses, rate = traces.facts.curve("loss"), traces.training.get("learning_rate")
    if not losses:
        return None
    held = traces.facts.curve("eval_loss")
    evidence = _worse_than_guessing(losses, traces) or (_rise_held(held, losses) if len(held) > 1 else _rise(losses))
    if not evidence or not rate:
        return None
    return Cause(
        kind="diverged",
        message=_("The training diverged: the loss is far above where it was. The learning rate is too high."),
        evidence=[*evidence, f"plan.yaml: learning_rate {rate:g}"],
        remedy=_("Take a tenth of the learning rate, or let --tune find one. This run made the model worse."),
        command=traces.once_more(learning_rate=_rounded(rate / 10)),
    )


def _worse_than_guessing(losses: Curve, traces: Traces) -> list[str]:
    """A cross-entropy above that of guessing all tokens alike, ln(vocabulary), for half of the steps or more."""
    vocabulary = traces.facts.model.get("vocab_size") or 0
    if traces.facts.plan.get("stage") not in LIKELIHOOD or len(losses) < 2 or vocabulary < 2:
        return []
    guessing, after = math.log(vocabulary), [value for _step, value in losses[1:]]
    if losses[0][1] >= guessing or median(after) <= guessing:
        return []
    told = _("guessing among {count} tokens would come to ln({count}) = {loss:.3g}")
    return [_point(losses[0]), _point(losses[-1]), told.format(count=vocabulary, loss=guessing)]


def _rise(losses: Curve) -> list[str]:
    """The end against the best level before it, as ratios, where it is beyond the noise."""
    values = [math.log(value) for _step, value in losses if value > 0]
    width = max(5, len(values) // 10)  # a few rows that are easy by chance make no level
    if len(values) < 4 * width or len(values) < len(losses):
        return []
    end = median(values[-width:])
    best, at = min((level, at) for at, level in enumerate(running_median(values[:-width], width)))
    if end - best < ROSE or end - best < SIGMAS * _error_between(values, width):
        return []
    told = _("from the best level on, the loss rose {times:.3g}-fold")
    return [_point(losses[at]), _point(losses[-1]), told.format(times=math.exp(end - best))]


def running_median(values: Sequence[float], width: int) -> Iterator[float]:
    """The median of each `width` values that follow each other; the window stays sorted from one to the next."""
    window, half = sorted(values[:width]), width // 2
    for leaving, coming in zip(values, [*values[width:], None], strict=False):
        yield window[half] if width % 2 else (window[half - 1] + window[half]) / 2
        if coming is not None:
            del window[bisect_left(window, leaving)]
            insort(window, coming)


def _rise_held(held: Curve, losses: Curve) -> list[str]:
    """The last evaluation loss against the first, where the training loss is up there too.

    An evaluation loss that rises while the training loss falls is overfitting, which is another matter.
    """
    end = median(value for _step, value in losses[-max(1, len(losses) // 3) :])
    if held[0][1] <= 0 or held[-1][1] < math.exp(ROSE) * held[0][1] or end <= held[0][1]:
        return []
    return [f"metrics.jsonl: step {step:g}, eval_loss {value:.4g}" for step, value in (held[0], held[-1])]


def no_gradient(traces: Traces) -> Cause | None:
    norms = [value for _step, value in traces.facts.curve("grad_norm")]
    if not norms or any(norms):
        return None
    return Cause(
        kind="no_gradient",
        message=_("No gradient reached the weights that are trained, so they stayed what they were."),
        evidence=[_("metrics.jsonl: grad_norm 0 in all {count} steps").format(count=len(norms))],
        remedy=_("Train other weights: another --method, or other modules for the adapter."),
        command=traces.once_more("LoraConfig.target_modules=all-linear"),
    )


def no_effect(traces: Traces) -> Cause | None:
    """The training changed nothing: its learning rate is too low, or there was next to nothing to learn from."""
    losses = traces.facts.curve("loss")
    finished = traces.status.state == "done"
    if not losses or not finished or traces.facts.plan.get("stage") in REWARDED or no_gradient(traces):
        return None
    rates = [value for _step, value in traces.facts.curve("learning_rate")]
    powerless = len(rates) == len(losses) and sum(rates) < NO_ROUNDING
    still = _eval_stands(traces, len(losses)) if len(traces.facts.curve("eval_loss")) > 1 else _loss_stands(losses)
    if not powerless and not still:
        return None
    evidence = still or [_point(losses[0]), _point(losses[-1])]
    if rates:
        told = _("metrics.jsonl: learning_rate at most {highest:.3g}, in all {count} steps together {sum:.3g}")
        evidence += [told.format(highest=max(rates), count=len(rates), sum=sum(rates))]
    return Cause(
        kind="no_effect",
        message=_("The training had no effect: the loss did not move."),
        evidence=[*evidence, *_dropped(traces)],
        remedy=_(
            "Raise the learning rate (--tune finds one), train longer, or check that the rows have answers to learn."
        ),
        command=f"{traces.once_more(learning_rate=None)} --tune",
        certainty="certain" if powerless else "likely",
    )


def _eval_stands(traces: Traces, steps: int) -> list[str]:
    held = traces.facts.curve("eval_loss")
    before = held[0][1]
    moved = max(abs(value - before) for _step, value in held)
    if steps < FEW_STEPS or moved > STILL * abs(before):
        return []
    told = _("metrics.jsonl: eval_loss {before:.6g} before, {after:.6g} after {steps} steps, on the same rows")
    return [told.format(before=before, after=held[-1][1], steps=steps)]


def _loss_stands(losses: Curve) -> list[str]:
    """The last third against the first: the difference, and two standard errors of it, are both small."""
    values = [value for _step, value in losses]
    if len(values) < MANY_STEPS:
        return []
    third = len(values) // 3
    first, last = fmean(values[:third]), fmean(values[-third:])
    error = 2 * _noise(values) * math.sqrt(2 / third)
    if abs(last - first) + error > STILL_NOISY * abs(first):
        return []
    told = _("metrics.jsonl: loss {first:.5g} in the first third, {last:.5g} ± {error:.1g} in the last")
    return [told.format(first=first, last=last, error=error)]


def _noise(values: Sequence[float]) -> float:
    """The standard deviation of values around their trend: for normal ones, median |difference| / 0.6745 / √2."""
    return median(abs(b - a) for a, b in pairwise(values)) / 0.6745 / math.sqrt(2)


def _error_between(values: Sequence[float], width: int) -> float:
    """The standard error of the difference of two medians over `width` values: each has σ √(π / 2 width)."""
    return _noise(values) * math.sqrt(math.pi / width)


def _dropped(traces: Traces) -> list[str]:
    dropped, rows = traces.facts.result.get("rows_dropped") or 0, traces.facts.result.get("rows") or 0
    if dropped <= rows:
        return []
    return [_("result.json: {dropped} rows had no answer to learn, {rows} had").format(dropped=dropped, rows=rows)]


def _names(traces: Traces) -> list[str]:
    return [str(spec.get("name")) for spec in traces.facts.plan.get("datasets") or [] if isinstance(spec, dict)]


def _point(point: tuple[float, float]) -> str:
    return f"metrics.jsonl: step {point[0]:g}, loss {point[1]:.4g}"


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
