"""gptq, awq and fp8: llmcompressor writes them, in an interpreter of its own, as compressed-tensors (`export`).

Transformers, vLLM, SGLang and lmdeploy load that layout. Loaded here it is dequantised (`loading.base_model`).
"""

import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import datasets, engines, files, foreign, loading, units
from toolbox.errors import InputError, OutOfMemoryError, ToolboxError
from toolbox.exporting import bnb, checking
from toolbox.i18n import _
from toolbox.plan import ExportPlan
from toolbox.serving.view import SAFE

if TYPE_CHECKING:
    from toolbox.exporting import Step

SCRIPT = Path(__file__).with_name("oneshot.py")
IGNORED = ["lm_head", r"re:.*embed.*"]
"""What stays as it is, as in the checkpoints that are published in these formats."""
LAYER = re.compile(r"\((\d+)/(\d+)\): Calibrating")
"""How llmcompressor's bars begin: which layer of how many."""


class Work(msgspec.Struct, kw_only=True):
    """WORK.json, which oneshot.py reads."""

    method: str
    model: str
    output: str
    said: str
    """Where it writes its version and its peak."""
    device: str
    dtype: str
    seed: int
    ignore: list[str]
    bits: int = 8
    symmetric: bool = True
    group_size: int = 0
    rows: list[list[int]] = []
    """Token ids to calibrate with."""


def write(plan: ExportPlan, source: Path, folder: Path, step: "Step") -> list[str]:
    """Write the model in `source` into `folder`, with all that belongs to it. Returns what it was calibrated with.

    Raises ToolboxError where llmcompressor fails, OutOfMemoryError where it was killed.
    """
    rows = calibration(plan, source) if plan.calibration else []
    said = _compress(plan, source, folder, rows, step)
    for name in ("recipe.yaml", "README.md"):
        (folder / name).unlink(missing_ok=True)
    bnb.add_texts(source, folder)
    made = _("Written by llmcompressor {version}, which took {size} of memory.").format(
        version=said["version"], size=units.size(said["peak_bytes"])
    )
    if not rows:
        return [made, _("What a GPU rounds while it serves, the activations, was not rounded in this measurement.")]
    counted = _("Calibrated with {rows} rows, {tokens} tokens, of {names}; {group} weights share a scale.").format(
        rows=len(rows), tokens=sum(map(len, rows)), group=plan.settings["group_size"],
        names=", ".join(spec.name for spec in plan.calibration),
    )  # fmt: skip
    return [made, counted]


def calibration(plan: ExportPlan, source: Path) -> list[list[int]]:
    """Token ids of the rows to calibrate with: drawn by the seed, rendered by the model's own template.

    Rows that the export is measured with stay out, as long as there are others.
    """
    tokenizer = loading.tokenizer(source, plan.adapter)
    measured = set(checking.questions(plan, source).texts)
    texts = [text for row in _drawn(plan) if (text := checking.rendered(tokenizer, row))]
    unseen = [text for text in texts if text not in measured] or texts
    chosen = unseen[: plan.settings["num_calibration_samples"]]
    longest = plan.settings["max_seq_length"]
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"])[:longest] for text in chosen]
    if rows := [row for row in ids if len(row) > 1]:
        return rows
    raise InputError(_("There are no rows to calibrate with."), _("Name others with --calibration."))


def _drawn(plan: ExportPlan) -> list[datasets.Row]:
    """More than are needed, in an order of the seed's; each data set gives the same share."""
    share = -(-2 * plan.settings["num_calibration_samples"] // len(plan.calibration)) + checking.ROWS
    rows = []
    for spec in plan.calibration:
        held_out = set(plan.held_out.get(spec.name, ()))
        places = set(random.Random(plan.seed).sample(range(spec.rows), min(share, spec.rows)))
        taken = (row for place, row in enumerate(datasets.stream(spec)) if place in places)
        rows += [row for row in taken if row.number not in held_out]
    random.Random(plan.seed).shuffle(rows)
    return rows


def _compress(plan: ExportPlan, source: Path, folder: Path, rows: list[list[int]], step: "Step") -> dict[str, Any]:
    """Have it done; returns what it took. The model is shown as links to weights and texts: no code goes along."""
    scratch = folder / ".work"
    model = scratch / "model"
    model.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in SAFE:
            (model / path.name).symlink_to(path.absolute())
    chosen = {name: plan.settings[name] for name in ("bits", "symmetric", "group_size") if name in plan.settings}
    work = Work(
        method=plan.format, model=str(model), output=str(folder), said=str(scratch / "said.json"),
        device="cuda:0" if plan.device.kind == "cuda" else "cpu", dtype=plan.dtype, seed=plan.seed,
        ignore=IGNORED, rows=rows, **chosen,
    )  # fmt: skip
    files.write_bytes(scratch / "work.json", msgspec.json.encode(work))
    _run(plan, scratch, step)
    said: dict[str, Any] = files.read_json(scratch / "said.json") or {}
    shutil.rmtree(scratch)
    return said


def _run(plan: ExportPlan, scratch: Path, step: "Step") -> None:
    """Run oneshot.py; it ends with this process, and when `step` raises."""
    environ = engines.environment(scratch / "cache", plan.device.kind, plan.device.index, "")
    done, total = 0, 0

    def heed(line: str) -> None:
        nonlocal done, total
        if layer := LAYER.search(line):
            done, total = int(layer[1]) - 1, int(layer[2])
        step(done, total)

    assert plan.python  # exports.choose has seen to it
    status, last = foreign.run(plan.python, SCRIPT, scratch / "work.json", environ, heed)
    if status:
        raise _failed(status, last)


def _failed(status: int, last: str) -> ToolboxError:
    if foreign.killed(status):
        return OutOfMemoryError(
            _("llmcompressor was killed, as the system does where memory runs out."),
            _("Free some memory, calibrate with fewer rows (--calibration-rows), or take bnb or gguf."),
        )
    return ToolboxError(
        _("llmcompressor failed: {reason}").format(reason=last or status), _("The run's log.txt has all it said.")
    )
