"""The memory model held against the dry run: `PYTHONPATH=. python bench/exact.py`.

    … [--quick] [--models NAME …] [--methods lora qlora full] [--device NAME:MEMORY]

Every model of bench/exact_models.py × LoRA, QLoRA and all weights × three lengths, planned as `plan` does it. Bytes are
of tensors: what a dry run has not (context, fragmentation) is left out of both. Prints each error, by parts in MiB
(predicted minus counted), then their median, 95th percentile and the worst.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact_models import QUICK, SHAPES
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from toolbox import device, models, planning
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.plan import FinetunePlan
from toolbox.training import exact
from toolbox.training.counting import PARTS
from toolbox.wishes import Wishes

METHODS = ("lora", "qlora", "full")
LENGTHS = {512: False, 2048: False, 8192: True}
"""Tokens of a row, and whether activations are computed anew."""
MIB = 1 << 20


def written(name: str, folder: Path) -> models.ModelFacts:
    """The facts of a model whose whole config.json is written to a folder of its own."""
    kind, values = SHAPES[name]
    config: Any = AutoConfig.for_model(kind, **values)
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    config.architectures, config.dtype = [names[kind]], "bfloat16"
    (folder / name).mkdir()
    config.to_json_file(folder / name / "config.json", use_diff=False)
    read = json.loads((folder / name / "config.json").read_text("utf-8"))
    return models.facts_of_config(read, id=name, source="local", path=folder / name)


def plans(facts: models.ModelFacts, method: str, on: device.Device, home: Home) -> Iterator[FinetunePlan]:
    """One for each length that the model takes, one row at once."""
    for length, anew in LENGTHS.items():
        if length <= facts.max_position_embeddings:
            wishes = Wishes(
                method=method,
                max_length=length,
                per_device_train_batch_size=1,
                settings=[f"gradient_checkpointing={anew}".lower(), "gradient_accumulation_steps=4"],
            )
            yield planning.plan_finetune(facts, [], on, wishes, home, must_fit=False)


def error(plan: FinetunePlan, counted: exact.Counted) -> float:
    """Of the prediction, as a share of what was counted; a line of the table is printed."""
    fast = {part: plan.estimate.parts_bytes.get(part, 0) for part in PARTS}
    off = sum(fast.values()) / counted.peak_bytes - 1
    parts = " ".join(f"{part} {(fast[part] - counted.parts_bytes[part]) / MIB:+.0f}" for part in PARTS)
    print(
        f"{plan.model.id:18} {plan.method:6} {plan.training.max_length:5} {counted.peak_bytes / MIB:9.0f} {off:+7.1%}"
        f"  {parts}  ({counted.phase}, {counted.operation})",
        flush=True,
    )
    return off


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--quick", action="store_true")
    asked.add_argument("--models", nargs="*", default=[])
    asked.add_argument("--methods", nargs="*", default=METHODS)
    asked.add_argument("--device", default="NVIDIA H100 80GB HBM3:80GiB")
    words = asked.parse_args()
    on, begun, errors = device.assume(words.device), time.process_time(), dict[str, list[float]]()
    print(f"{'model':18} {'method':6} {'tokens':>5} {'counted':>9} {'error':>7}  predicted - counted, MiB")
    with tempfile.TemporaryDirectory() as scratch:
        for name in words.models or (QUICK if words.quick else SHAPES):
            facts = written(name, Path(scratch))
            for method in words.methods:
                planned = list(plans(facts, method, on, Home(Path(scratch) / "home")))
                try:
                    found = [error(*pair) for pair in zip(planned, exact.peaks(planned), strict=True)]
                except (InputError, RuntimeError, NotImplementedError) as failure:
                    print(f"{name:18} {method:6} failed: {' '.join(str(failure).split())[:200]}", flush=True)
                    continue
                errors.setdefault(method, []).extend(found)
    for method, found in [*errors.items(), ("all", [one for some in errors.values() for one in some])]:
        sizes = sorted(map(abs, found))
        print(
            f"{method:6} {len(sizes):4} rows: median {statistics.median(sizes):.1%}, "
            f"95th percentile {sizes[int(0.95 * (len(sizes) - 1))]:.1%}, worst {sizes[-1]:.1%}"
        )
    print(f"{time.process_time() - begun:.0f} s of CPU time")


if __name__ == "__main__":
    main()
