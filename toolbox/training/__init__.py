"""Fine-tuning: rows, batches, a tuner, one loop. `finetune` reaches it through a job; `run` works from Python too."""

import time
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files, loading, templates, tunings
from toolbox.errors import MAY_LACK_MEMORY, InputError
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.stages import SEQUENCES
from toolbox.training import batches, kernels, preparing, seeds, strength
from toolbox.training.ladder import Ladder, free, lowered
from toolbox.training.layouts import choose
from toolbox.training.loop import Loop, total_steps
from toolbox.training.meter import Meter
from toolbox.training.packing import Packs
from toolbox.training.stages import stage_for
from toolbox.training.step import Forward
from toolbox.training.store import Items
from toolbox.training.tuner import tuner_for
from toolbox.training.tuning import tune

__all__ = ["lowered", "run"]


def run(plan: FinetunePlan, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Fine-tune as `plan` says, leaving an adapter, or a model, in the run.

    Started again, it goes on from the newest checkpoint; so it does, a rung of the ladder further down, where memory
    runs out. Returns the `--json` object of `finetune`.
    Raises InputError, Interrupted, DivergedError, OutOfMemoryError.
    """
    begun, ladder = time.monotonic(), Ladder(plan, run, reporter)
    ladder.heed_kill()
    while True:
        try:
            with seeds.repeatable(plan.device.kind):
                result = _attempt(ladder, run, reporter)
        except MAY_LACK_MEMORY as error:
            ladder.descend(error)
        else:
            return {
                **result,
                **({"tuning": msgspec.to_builtins(tuned)} if (tuned := tunings.read(run)) else {}),
                "ladder": [msgspec.to_builtins(rung) for rung in ladder.rungs],
                "elapsed_s": round(time.monotonic() - begun, 1),
            }
        free()


def _attempt(ladder: Ladder, run: Run, reporter: Reporter) -> dict[str, Any]:
    """The whole way from the plan, as the ladder has left it, to the result."""
    plan, fresh = ladder.plan, not (run.has_checkpoint() or ladder.rungs)
    device = loading.torch_device(plan.device.kind, plan.device.index)
    meter = ladder.begin(Meter(device))
    tokenizer = loading.tokenizer(plan.model.path, chat_template=plan.chat_template)
    stage = stage_for(plan)
    data = preparing.prepare(plan, stage, tokenizer, run, reporter)
    reporter.phase(_("Loading the model"))
    ladder.longest = int(data.samples.store.index.longest.max())
    tuner = tuner_for(plan)
    seeds.set_seed(plan.seed)
    model = tuner.load(device)
    stage.extend(model)
    ladder.reached = 0
    sequences = [sequence for item in data.probes() for sequence in item.sequences]
    forward = Forward(model, tokenizer.pad_token_id or 0, device, plan.dtype)
    if plan.training.use_liger_kernel:
        kernels.fuse(forward, sequences)
    forward = choose(forward, sequences, reporter, stage.longer_by)
    samples = _packed(data.samples, plan, forward) if plan.training.packing else data.samples
    steps = total_steps(plan.training, len(samples))
    seen = samples.members(batches.of_steps(len(samples), steps, plan.training, plan.seed))
    if plan.tune and not run.has_checkpoint():
        stage.prepare(forward, data.distinct(seen), run, reporter)
        ladder.plan = tune(plan, run, reporter, forward, stage, data.samples, data.held_out, steps)
    loop = Loop(ladder, run, reporter, forward, tuner, stage, samples, data.held_out, meter)
    loop.probe()
    stage.prepare(forward, data.distinct(seen), run, reporter)
    state = loop.train()
    strengthened = strength.choose(plan, forward, tokenizer, run, reporter)
    reporter.phase(_("Saving the result"))
    peak_bytes = meter.peak_bytes()
    with stage.exporting(model):
        exported = {**tuner.export(model, tokenizer, run), **stage.export(model, run)}
    made = Path(exported["adapter"] or exported["model"])
    templates.leave(made, plan.model.path, tokenizer, model.generation_config.eos_token_id)
    data.remove()
    return {
        "run": run.id,
        "state": "done",
        "stage": plan.stage,
        **exported,
        **strengthened,
        "hashes": {"output": files.hashes(made.glob("*.safetensors"))},
        "steps": state.step,
        "train_loss": state.loss_sum / state.weight,
        "eval_loss": state.evaluated.get("eval_loss"),
        "eval_loss_before": state.before.get("eval_loss"),
        "eval": state.evaluated,
        "eval_before": state.before,
        "peak_bytes": peak_bytes,
        "predicted_peak_bytes": plan.estimate.peak_bytes,
        "probe_peak_bytes": state.probe_peak_bytes,
        **_rows(data, plan),
        "tokens": state.tokens,
        "tokens_per_s": round(state.tokens / state.elapsed_s, 1),
        "measured": {**meter.measured(), "steps_s": state.elapsed_s, "fresh": fresh},
    }


def _rows(data: preparing.Prepared, plan: FinetunePlan) -> dict[str, int]:
    """What became of the rows, in numbers."""
    return {
        "rows": len(data.samples),
        "rows_held_out": len(data.held_out),
        "rows_left_out": data.twice,
        "rows_skipped": sum(spec.skipped for spec in plan.datasets),
        "rows_cut": data.facts.cut,
        "rows_dropped": data.facts.dropped,
    }


def _packed(samples: Items, plan: FinetunePlan, forward: Forward) -> Packs:
    """Raises InputError for a model that takes only padded batches: a short row would take as much room as a pack."""
    if forward.layout is batches.pad:
        raise InputError(
            _("This model can't keep rows apart without padding, so they can't be packed."), _("Leave out --packing.")
        )
    packs = Packs(samples, plan.training.max_length * SEQUENCES.get(plan.stage, 1))
    print(_("{rows} rows in {packs} packs.").format(rows=len(samples), packs=len(packs)), flush=True)
    return packs
