"""`plan --exact`: the peak of a training step, counted in a dry run of the very step on fake tensors.

No weights are read and no GPU is needed: the model is made of its config.json. What is trained on is the worst
micro-batch as the memory model assumes it: every row as long as the longest, all of it labels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from toolbox import files, loading, methods, planning
from toolbox.datasets import Prompt
from toolbox.errors import InputError, Interrupted
from toolbox.i18n import _
from toolbox.plan import ExactPlan, FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.stages import SEQUENCES, Grpo, Ppo
from toolbox.training import adapted, attention, batches, hollow, layouts, optim
from toolbox.training.counting import Live
from toolbox.training.rows import IGNORED, Item, Sample
from toolbox.training.stages import stage_for
from toolbox.training.stages.kto import Judged
from toolbox.training.stages.pairs import Pair
from toolbox.training.stages.reference import Reference
from toolbox.training.stages.rollouts import Episode
from toolbox.training.step import Forward, Stepper
from toolbox.training.tuner import Tuner, tuner_for
from toolbox.training.tuners import ready

CUDA_BLOCK = 512
"""torch's CUDA allocator hands out multiples of it (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


class Counted(msgspec.Struct, kw_only=True, frozen=True):
    """`parts_bytes` adds up to `peak_bytes`; both are of tensors, without the process or a GPU's context."""

    peak_bytes: int
    parts_bytes: dict[str, int]
    operation: str
    """That made the peak, as `aten.mm.default`."""
    phase: str
    """Of the step: forward, backward or optimizer."""


def run(plan: ExactPlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """The job of `plan --exact`; returns a `Counted`. Raises as `peak`, and Interrupted."""

    def heed_stop() -> None:
        if reporter.stopping:
            raise Interrupted(_("Stopped before the end of the dry run."), _("Start it again."))

    if plan.config:
        files.write_json(run.path / "config.json", plan.config)
        plan.model = msgspec.structs.replace(plan.model, path=run.path)
    reporter.phase(_("Dry run of a training step"))
    try:
        return msgspec.to_builtins(peak(plan, heed_stop))  # type: ignore[no-any-return]
    except (RuntimeError, NotImplementedError) as error:  # torch's own words for what has no fake kernel
        raise InputError(
            _("{model} can't be run dry: {reason}").format(
                model=plan.model.id, reason=" ".join(str(error).split())[: loading.SHOWN_CHARS]
            ),
            _("Leave out --exact; the other figures stand."),
        ) from error


def peak(plan: FinetunePlan, heed_stop: Callable[[], None] = lambda: None) -> Counted:
    """The peak of a step of `plan` with the optimizer's state there, on the plan's device. Raises InputError."""
    return next(peaks([plan], heed_stop))


def peaks(plans: Sequence[FinetunePlan], heed_stop: Callable[[], None] = lambda: None) -> Iterator[Counted]:
    """The peak of each of `plans`, which differ in nothing but the numbers of their training: one model is made."""
    plan = plans[0]
    with torch.device("meta"):
        tuner = tuner_for(plan)
        model = tuner.load("meta")
        stage_for(plan).extend(model)
    with hollow.Fake(allow_non_fake_inputs=True), hollow.as_on(plan.device, plan.dtype):
        frozen = hollow.filled(model)
        if plan.device.kind == "cpu":
            adapted.adapt(model)
        for each in plans:
            model.activation_checkpointing_disable()
            ready(model, each)
            yield count(each, tuner, model, frozen, heed_stop)


def count(
    plan: FinetunePlan,
    tuner: Tuner,
    model: Any,
    tensors: Iterable[torch.Tensor],
    heed_stop: Callable[[], None] = lambda: None,
) -> Counted:
    """The peak of a step on `model`, loaded by `tuner` and extended by the stage, of fake or of real tensors.

    `tensors`: all that lies in memory because of the model.
    """
    live = Live(model.config.get_text_config().vocab_size, CUDA_BLOCK if plan.device.kind == "cuda" else 1, heed_stop)
    live.note(tensors, "weights")
    before = model.config._attn_implementation
    stepper = _stepper(plan, model, live)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    live.note(trained, "weights" if methods.trained_weights(plan.method) else "adapter")
    live.watch(trained)
    with hollow.replaced(Reference, "logps", lambda self, samples, like: torch.zeros_like(like)), live:
        tuner.follow(model, stepper.optimizer, 0, 1)
        _gradients(stepper.optimizer)
        stepper.optimizer.step()  # which makes its state
        stepper.optimizer.zero_grad(set_to_none=True)
        if plan.training.gradient_accumulation_steps > 1:
            live.note(_gradients(stepper.optimizer), "gradients")
        live.forget_peak()
        step = partial(stepper.step, [items(plan, longest_tokens(plan))], 2, plan.training.learning_rate)
        try:
            step()
        except attention.NodesLost:
            attention.attend_by(stepper.forward.base, before)
            stepper.forward = replace(stepper.forward, layout=_made_real(batches.pad))
            live.forget_peak()
            step()
    live.close()
    attention.attend_by(stepper.forward.base, before)
    operation, phase = live.peak_at
    return Counted(peak_bytes=live.peak_bytes, parts_bytes=live.peak_parts, operation=operation, phase=phase)


def longest_tokens(plan: FinetunePlan) -> int:
    """Of a sequence, at most."""
    return min(plan.training.max_length, planning.load_of(plan).longest_tokens)


def items(plan: FinetunePlan, tokens: int) -> Sequence[Item]:
    """A micro-batch of the plan's stage: rows of `tokens` tokens that begin otherwise, all labels."""
    rows, each = plan.training.per_device_train_batch_size, SEQUENCES.get(plan.stage, 2 if plan.stage == "kto" else 1)
    vocab_size = plan.model.vocab_size
    ids = [[number % vocab_size, *[1 % vocab_size] * (tokens - 1)] for number in range(rows * each)]
    samples = [Sample("", number, tokens, tokens) for number, tokens in enumerate(ids)]
    if isinstance(plan.options, Ppo | Grpo):
        return [_episode(sample, plan.options.response_length) for sample in samples]
    if plan.stage == "kto":
        return [Judged(*pair) for pair in zip(samples[::2], [True] * rows, samples[1::2], strict=True)]
    return [Pair(*pair) for pair in zip(samples[::2], samples[1::2], strict=True)] if each == 2 else samples


def _episode(sample: Sample, longest: int) -> Episode:
    """An answer of at most `longest` tokens, with all that any loss may ask of it."""
    answer = min(longest, sample.size - 1)
    labels = [IGNORED] * (sample.size - answer) + sample.labels[-answer:]
    figures = {name: torch.zeros(answer) for name in ("advantages", "logps", "reference", "values", "returns")}
    row = Prompt(sample.number, [])
    return Episode(Sample("", sample.number, sample.input_ids, labels), row, text="", ended=True, **figures)


def _stepper(plan: FinetunePlan, model: Any, live: Live) -> Stepper:
    """As the loop has it, with the layout that `layouts.choose` would prove to be right."""
    forward = Forward(model, 0, "cpu", plan.dtype)
    base = forward.base
    if layouts.may_flatten(base, longest_tokens(plan)):
        attention.attend_by(base, attention.TREES)
        forward = replace(forward, layout=batches.flatten_shared)
    forward = replace(forward, layout=_made_real(forward.layout))
    optimizer = optim.make(model.named_parameters(), plan)

    def begins(*_arguments: Any) -> None:
        live.phase = "optimizer"

    def ends(*_arguments: Any) -> None:
        live.phase = ""

    optimizer.register_step_pre_hook(begins)
    optimizer.register_step_post_hook(ends)
    return Stepper(forward, stage_for(plan), optimizer, plan.training.max_grad_norm)


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Gradients of all weights, as an earlier micro-batch leaves them."""
    made = []
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        weight.grad = torch.zeros_like(weight)
        made.append(weight.grad)
    return made


def _made_real(layout: batches.Layout) -> batches.Layout:
    """`layout`, whose numbers are real: attention asks where rows begin and end."""

    def made(samples: Sequence[Sample], pad_token_id: int) -> batches.Batch:
        with unset_fake_temporarily():
            batch = layout(samples, pad_token_id)
            if nodes := batch.inputs.get("nodes"):
                attention.spans(nodes, torch.device("cpu"))
        return batch

    return made
