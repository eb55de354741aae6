"""Fine-tuning: rows, batches, a tuner, one loop. `finetune` reaches it through a job; `run` works from Python too."""

import random
import time
from typing import TYPE_CHECKING, Any

from toolbox import datasets, loading
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.training import batches, kernels, rows, seeds
from toolbox.training.layouts import choose
from toolbox.training.loop import Loop, total_steps
from toolbox.training.meter import Meter
from toolbox.training.stages import Stage, stage_for
from toolbox.training.step import Forward
from toolbox.training.tuner import tuner_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Fine-tune as `plan` says, leaving an adapter, or a model, in the run.

    Started again, it goes on from the newest checkpoint. Returns the `--json` object of `finetune`.
    Raises InputError, Interrupted, DivergedError.
    """
    begun = time.monotonic()
    device = loading.torch_device(plan.device.kind, plan.device.index)
    tokenizer = loading.tokenizer(plan.model.path)
    reporter.phase(_("Reading the data"))
    stage = stage_for(plan)
    encoded = _encode(plan, stage, tokenizer)
    samples, held_out = _split(encoded.samples, plan)
    reporter.phase(_("Loading the model"))
    tuner, meter = tuner_for(plan), Meter(device)
    seeds.set_seed(plan.seed)
    model = tuner.load(device)
    stage.extend(model)
    sequences = [sequence for item in encoded.samples for sequence in item.sequences]
    forward = Forward(model, tokenizer.pad_token_id or 0, device, plan.dtype)
    if plan.training.use_liger_kernel:
        kernels.fuse(forward, sequences)
    forward = choose(forward, sequences, reporter)
    seen = batches.of_steps(samples, total_steps(plan.training, len(samples)), plan.training, plan.seed)
    stage.prepare(forward, [*seen, *held_out], run, reporter)
    loop = Loop(plan, run, reporter, forward, tuner, stage, samples, held_out, meter)
    state = loop.train()
    reporter.phase(_("Saving the result"))
    peak_bytes = meter.peak_bytes()
    exported = {**tuner.export(model, tokenizer, run), **stage.export(model, run)}
    return {
        "run": run.id,
        "state": "done",
        "stage": plan.stage,
        **exported,
        "steps": state.step,
        "train_loss": state.loss_sum / state.weight,
        "eval_loss": state.evaluated.get("eval_loss"),
        "eval_loss_before": state.before.get("eval_loss"),
        "eval": state.evaluated,
        "eval_before": state.before,
        "peak_bytes": peak_bytes,
        "predicted_peak_bytes": plan.estimate.peak_bytes,
        "rows": len(samples),
        "rows_held_out": len(held_out),
        "rows_skipped": sum(spec.skipped for spec in plan.datasets),
        "rows_cut": encoded.cut,
        "rows_dropped": encoded.dropped,
        "tokens": state.tokens,
        "tokens_per_s": round(state.tokens / state.elapsed_s, 1),
        "elapsed_s": round(time.monotonic() - begun, 1),
    }


def _encode(plan: FinetunePlan, stage: Stage, tokenizer: "PreTrainedTokenizerBase") -> rows.Encoded:
    """All rows of the plan's data sets as the stage takes them, and how many were cut and dropped, said aloud."""
    longest = plan.training.max_length
    parts = [stage.encode(spec.name, datasets.load(spec), tokenizer, longest) for spec in plan.datasets]
    encoded = rows.Encoded(
        [sample for part in parts for sample in part.samples],
        sum(part.cut for part in parts),
        sum(part.dropped for part in parts),
    )
    kept = len(encoded.samples)
    print(
        _("{kept} rows; {cut} cut at {max_length} tokens, {dropped} dropped, as no answer was left.").format(
            kept=kept, cut=encoded.cut, max_length=plan.training.max_length, dropped=encoded.dropped
        ),
        flush=True,
    )
    if kept < 2:
        raise InputError(
            _("Of the data, {kept} rows are left to train on.").format(kept=kept),
            _("Use a larger --max-length, or data with more rows."),
        )
    return encoded


def _split(samples: list[rows.Item], plan: FinetunePlan) -> tuple[list[rows.Item], list[rows.Item]]:
    """(training, held-out) rows: the last `eval_rows` of the shuffled data are held out, but never all."""
    shuffled = list(samples)
    random.Random(plan.seed).shuffle(shuffled)
    held_out = min(plan.eval_rows, len(shuffled) - 1)
    return shuffled[: len(shuffled) - held_out], shuffled[len(shuffled) - held_out :]
